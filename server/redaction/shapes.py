"""Credentials that show by themselves: the key shapes of providers, JWTs and key pairs.

Most are a prefix and a long run of letters and digits. `find_shapes` first finds the long
runs with byte searches, which cost next to nothing, and tries the patterns only there, so
prose is passed at hundreds of megabytes a second. The lengths are less strict than the
providers', because a key that lost its end in a cut text is still most of a key.
"""

import re
from collections.abc import Iterator

from open_llm_proxy.server.redaction.credentials import is_mixed

Span = tuple[int, int]

# Prefixes whose rest must hold letters and digits, or both cases, to be a key and no identifier.
_PREFIXED = r"""
    sk-[\w-]{16,}
    | (?:gh[pousr]|gsk|hf|npm|r8|fw|dckr_pat|whsec|lin_api|pul|rubygems|shpat|shpss|shpca|shppa
      |dop_v1|doo_v1|sq[pau]|tgp_v1|secret|ntn|phc|phx|pat|sbp|sgp|tskey)_[A-Za-z0-9]{16,}
    | github_pat_\w{20,} | [sr]k_(?:live|test)_\w{10,}
    | gl(?:pat|dt|rt|ptt|cbt|ft|agent)-[\w-]{16,}
    | (?:pypi|nvapi|xai|pplx|csk|gsk|jina|voyage|tvly|lsv2_pt|lsv2_sk|tskey-auth)-[\w-]{16,}
    | xapp-[\w-]{14,}
    | ya29\.[\w-]{16,} | GOCSPX-[\w-]{16,} | hvs\.[\w-]{16,} | ATATT3\w{16,}
    | sq0(?:atp|csp)-[\w-]{16,} | dapi[0-9a-f]{32} | sl\.[\w-]{40,}
    | SG\.[\w-]{16,64}\.[\w-]{16,64} | key-[0-9a-z]{24,} | mfa\.[\w-]{60,}
"""
# These are keys whatever follows the prefix.
_PLAIN = r"""
    AIza[\w-]{30,} | AKIA[A-Z0-9]{12,} | A[SB]IA[A-Z0-9]{16}(?![A-Z0-9])
    | xox[abeoprs]-(?=[\w-]{0,40}[0-9])[\w-]{10,} | AGE-SECRET-KEY-1[A-Z0-9]{40,}
    | (?:[pst]k\.)?(?<![_-])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*){0,3}
    | (?<=[0-9]{8}:)AA[\w-]{30,}
"""
# Letters of an escape (\n, \u003d) or of a percent code (%3D) before a key are not part of it.
_SHAPE = re.compile(
    r"(?: (?<![A-Za-z0-9]) | (?<=\\[nrtbf]) | (?<=\\u[0-9a-fA-F]{4}) | (?<=%[0-9A-Fa-f]{2}) )"
    rf"(?: (?P<prefixed>{_PREFIXED}) | {_PLAIN} )"
    r"(?: [._-]?(?:v1_)?[A-Za-z0-9]{16,}+ )*+",  # more keys, stuck to it
    re.VERBOSE | re.ASCII,
)
# The beginnings of those patterns; without a look-behind, which makes the search fast.
_PREFIX = re.compile(
    r"sk|gh[pousr]_|g(?:sk|it|l)|hf_|npm_|r[8ku]|fw_|dckr|whsec|lin_|pul_|shp|do[po]_|tgp_|secret_|"
    r"ntn_|ph[cx]_|pat_|sbp_|sgp_|tskey|pk|pypi|nvapi|xai-|pplx|csk|jina|voyage|tvly|lsv2|xox|"
    r"xapp|ya29|GOCSPX|hvs|ATATT|sq[0pau]|dapi|sl\.|SG\.|A[KSBGI]|eyJ|AA|"
    r"key-|mfa"
)
# Discord's: the number of the bot in Base64, so the first letter is one of three.
_BOT_LETTERS = ("M", "N", "O")
_BOT_TOKEN = re.compile(
    r"[\w-]{23,29}\.[\w-]{6,7}\.(?=[\w-]*[0-9])[\w-]{12,}(?:\.[\w-]{6,7}\.[\w-]{12,})*+", re.ASCII
)
_LOWER = b"abcdefghijklmnopqrstuvwxyz._-"
SHORTEST_SHAPE = 19  # characters
_PLAIN_WORD = re.compile(rf"[a-z_.-]{{0,60}}|[A-Za-z0-9_.@-]{{0,{SHORTEST_SHAPE - 1}}}")
_LONG_RUN = 32
_SHORTEST_RUN = b"a" * SHORTEST_SHAPE
# Letters, digits, ".", "_" and "-" become "a", so that a run of them can be searched for.
_RUN_BYTES = bytes(
    ord("a") if chr(code) in "._-" or (code < 128 and chr(code).isalnum()) else ord(" ")
    for code in range(256)
)
# An S3 key pair side by side: 20 capitals and digits, then 40 characters of Base64.
_KEY_PAIR = re.compile(
    r"[A-Z0-9]{20}[^A-Za-z0-9/+]{1,8}(?:[A-Za-z_ ]{1,24}[^A-Za-z0-9/+]{1,8})?"
    r"([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
)


def is_plain(text: str) -> bool:
    """Whether it is one word that can hold no credential: most keys, and many values, are.

    It has no separators and is shorter than any key, or has neither capitals nor digits.
    """
    return _PLAIN_WORD.fullmatch(text) is not None


def find_shapes(text: str, latin: bytes, most: int) -> tuple[list[Span], int]:
    """Find credentials by their shape alone; also tells how far the text was read.

    `latin` is `text` with one byte per character, so that both have the same offsets; `most` is
    how many runs with capitals or digits are looked at, where a longer one counts as several.
    """
    runs = latin.translate(_RUN_BYTES)
    found: list[Span] = []
    end = 0
    while (start := runs.find(_SHORTEST_RUN, end)) >= 0:
        end = runs.find(b" ", start)
        if end < 0:
            end = len(runs)
        if not latin[start:end].translate(None, _LOWER):
            continue  # register_hex_tiles
        most -= 1 + (end - start) // _LONG_RUN
        if most < 0:
            return found, start
        if _PREFIX.search(text, start, end):
            found += _prefixed_keys(text, start, end)
        start += text[start - 1 : start] == "\\"  # the n of \\n
        if text[start : start + 1] in _BOT_LETTERS and (bot := _BOT_TOKEN.match(text, start)):
            found.append(bot.span())
        if end - start == 20 and text[start:end].isupper():
            found += _key_pair(text, start, end)
    return found, len(text)


def _prefixed_keys(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _SHAPE.finditer(text, start, end):
        if match["prefixed"] is None or _looks_made(match["prefixed"]):
            yield match.span()


def _key_pair(text: str, start: int, end: int) -> Iterator[Span]:
    pair = _KEY_PAIR.match(text, start)
    if pair and is_mixed(text[start:end], 20) and is_mixed(pair[1], 40) and not pair[1].islower():
        yield start, end
        yield pair.span(1)


def _looks_made(key: str) -> bool:
    """Whether a prefixed run is a key; `sk-estimator-doc-link-2` and `hf_hub_download` are not."""
    body = key[3:]
    longest = max(len(run) for run in re.split(r"[^A-Za-z0-9]", body))
    has_both_cases = not body.islower() and not body.isupper()
    if is_mixed(body, 10):
        return has_both_cases or longest >= 10
    return has_both_cases and longest >= 16
