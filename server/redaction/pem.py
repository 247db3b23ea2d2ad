"""Private key blocks (RFC 7468 and its kin) of any length, also those that were cut."""

import re
from collections.abc import Iterator

from open_llm_proxy.server.redaction.credentials import is_mixed

_LABEL = r"[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?"
PEM_LINE = re.compile(
    rf"-----(?P<what>BEGIN|END) {_LABEL}-----|---- (?P<ssh>BEGIN|END) {_LABEL} ----"
)
"""The first or the last line of a block."""
_BREAK = r"(?:\r?\n|\\{1,15}[nr])"  # real or escaped
# Before the characters of a line: indentation, quotes of mails and code, the + of a diff.
_MARGIN = r"[ \t>|#*\"'+\\]{0,40}"
_HEADER = r"[A-Za-z-]{4,24}: [^\r\n\\]{0,100}"
_LINES = re.compile(
    rf"(?:{_BREAK}{_MARGIN}(?:{_HEADER}|[A-Za-z0-9+/=]*+)"
    rf"(?=[ \t\"'+,;]{{0,8}}(?:{_BREAK}|\\|\Z)|[\"'`]))*+(?:[ \t\"'+,;]{{0,8}}\Z)?"
)
_ONE_LINE = re.compile(r" ?[A-Za-z0-9+/=]{16,}+(?: [A-Za-z0-9+/=]{16,}+)*+")
_RUN = re.compile(r"[A-Za-z0-9+/=]{12,}")
_LAST_LINE = re.compile(
    rf"(?:{_BREAK}|\A){_MARGIN}([A-Za-z0-9+/=]{{1,100}})[ \t\"'+,;]{{0,8}}(?:{_BREAK})?\Z"
)
_LONGEST_LINE = 200


def key_block(match: re.Match[str]) -> Iterator[tuple[int, int]]:
    """The span of the block that begins or ends at a match of `PEM_LINE`, marks included."""
    text, after = match.string, match.end()
    if "END" in (match["what"], match["ssh"]):
        start = _start_of_tail(text, match.start())
        if start < match.start():
            yield start, after
        return
    dashes = text.find("----", after)
    end = PEM_LINE.match(text, dashes) if dashes >= 0 else None
    if end and "END" in (end["what"], end["ssh"]):
        if _is_key(text[after:dashes]):
            yield match.start(), end.end()
        yield end.end(), end.end()
        return
    lines = _LINES.match(text, after)
    rest = lines.end() if lines else after
    if rest == after and (line := _ONE_LINE.match(text, after)):
        rest = line.end()
    if text[after:rest].strip("\r\n\\nr \t"):
        yield match.start(), rest


def _is_key(body: str) -> bool:
    """Whether it is the content of a block: lines of Base64, and no words about such blocks."""
    lines = _LINES.match(body)
    if lines and lines.end() == len(body):
        return bool(body.strip("\r\n\\nr \t\"'"))
    runs = _RUN.findall(body)
    return any(len(run) >= 24 or is_mixed(run, 12) for run in runs)


def _start_of_tail(text: str, end: int) -> int:
    """Where the lines of Base64 before `end` begin, which have lost their first line."""
    start = kept = end
    while line := _LAST_LINE.search(text, max(0, start - _LONGEST_LINE), start):
        if is_mixed(line[1], 16) or line[1].endswith("="):
            kept = line.start(1)
        start = line.start()
    return kept
