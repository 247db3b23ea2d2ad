"""Where a credential may stand in a text: prose, SQL, URLs, headers, code, commands, tables.

A `Scan` looks for a few words with byte searches, which cost next to nothing; most texts have
none of them. Each rule then looks around its word: at a place that it recognises, it reads the
original text and answers with the spans of the values alone, so what is replaced later leaves
the grammar around it as it was. What it reads is bounded, or the rule goes on behind it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from open_llm_proxy.server.redaction.commands import command_values
from open_llm_proxy.server.redaction.credentials import (
    MARK,
    is_basic_auth,
    is_mixed,
    is_ordinary,
    is_stand_in,
    name_kind,
)
from open_llm_proxy.server.redaction.grammars import NamedValues
from open_llm_proxy.server.redaction.layouts import tag_values
from open_llm_proxy.server.redaction.pem import PEM_LINE, key_block
from open_llm_proxy.server.redaction.shapes import SHORTEST_SHAPE, Span, find_shapes
from open_llm_proxy.server.redaction.values import quoted_value

# So many of one word, or long runs of letters and digits, are looked at; what follows in a text
# that has more is replaced as a whole. A mark is seen through faster than a name.
_MOST_WORDS, _MOST_RUNS, _MOST_MARKS = 10_000, 30_000, 100_000
_FEW_CHARACTERS = 512  # of fewer, one pattern tells in a single pass that there is nothing
_Judge = Callable[[re.Match[str]], Iterator[Span]]


@dataclass(frozen=True, slots=True)
class _Rule:
    """What to read where the pattern matches at one of the words, which are in lower case.

    `judge` yields spans of credentials; an empty one says only how far the text was read. Or it is
    asked whether the pattern's `value` is one.
    """

    words: tuple[bytes, ...]
    pattern: re.Pattern[str]
    judge: _Judge | None = None
    is_secret: Callable[[str], bool] = bool

    def credentials(self, match: re.Match[str]) -> Iterator[Span]:
        if self.judge is not None:
            yield from self.judge(match)
        elif self.is_secret(match["value"]):
            yield match.span("value")


def _bearer(match: re.Match[str]) -> Iterator[Span]:
    """`Bearer …` wherever it stands (RFC 6750); in prose it is a word among others."""
    text, start = match.string, match.start("value")
    value = match["value"].rstrip(".")
    if is_stand_in(value) or is_ordinary(value) or name_kind(value):
        return
    closed = text[match.end() : match.end() + 1] in ("", '"', "'", "`", "\n", "\\", ",")
    wordlike = not is_mixed(value, 6) and value.count(".") < 2
    if not wordlike or (len(value) >= 12 and closed and match[0][0] == "B"):
        rest = _BEARER_REST.match(text, start + len(value)) if len(value) > 500 else None
        yield start, rest.end() if rest else start + len(value)


def _sql_user(match: re.Match[str]) -> Iterator[Span]:
    """`CREATE USER bob IDENTIFIED BY '…'` of MySQL and Oracle."""
    if "user" in match.string[max(0, match.start() - 80) : match.start()].lower():
        value = quoted_value(match.string, match.end())
        if value and not is_stand_in(str(value)):
            yield value.start, value.end


def _userinfo(match: re.Match[str]) -> Iterator[Span]:
    """The password of `scheme://user:password@host`, or a user that is a key (RFC 3986).

    People do not escape what they should, so the password goes on to the last `@` that can
    belong to it: not to one of another URL, nor in the path or the query behind the host.
    """
    text, start, run = match.string, match.start("run"), match["run"].partition("://")[0]
    scheme = text[max(0, match.start() - 12) : match.start()].lower()
    at = run.find("@")
    user, separator, _ = run[:at].partition(":")
    if at < 0 or "/" in user or run.startswith("sha256:", at + 1):
        return
    while separator and (following := run.find("@", at + 1)) >= 0:
        between = run[len(user) + 1 : following]
        beginning, has_slash, _ = between.partition("/")
        if "=" in run[at:following] or beginning.isdigit():
            break  # ?mail=me@example.org
        if has_slash and not scheme.endswith(_DATABASES):
            break
        at = following
    password = run[len(user) + 1 : at]
    if any(
        (mark == "/" and not scheme.endswith(_DATABASES)) or password.partition(mark)[0].isdigit()
        for mark in "/?#"
        if mark in password
    ):
        return  # host:8080/path@1.0
    if separator and password and not is_stand_in(password):
        yield start + len(user) + 1, start + at
    if is_mixed(user, 20) and not is_stand_in(user):
        yield start, start + len(user)


_DATABASES = (
    *("postgres", "postgresql", "mysql", "mariadb", "mongodb", "mongodb+srv", "mssql"),
    *("redis", "rediss", "amqp", "amqps", "clickhouse", "pymysql", "psycopg2", "psycopg"),
)
_BEARER_REST = re.compile(r"[A-Za-z0-9._~+/=-]*")
_RULES = (
    _Rule(
        (b"bearer",),
        re.compile(r"(?i)bearer(?:[ \t]{1,8}|%20|\+)(?P<value>[A-Za-z0-9._~+/=-]{6,512})"),
        _bearer,
    ),
    _Rule(
        (b"basic",),
        re.compile(r"(?i)basic(?:[ \t]{1,8}|%20|\+)(?P<value>[A-Za-z0-9+/]{6,1024}={0,2})"),
        is_secret=is_basic_auth,
    ),
    _Rule(
        (b"identified",),
        re.compile(
            r"(?i)identified\s{1,8}(?:with\s{1,8}[\w\"'`]{1,40}\s{1,8})?(?:by|as)\s{1,8}"
            r"(?:password\s{1,8})?(?=\\{0,63}[\"'])"
        ),
        _sql_user,
    ),
    _Rule(  # PHP escapes the slashes
        (b"://", b":\\"),
        re.compile(
            r":(?:\\{0,63}/){2}(?=[^\s\"'<>`?#\\@/])"
            r"(?P<run>[^\s\"'<>`\\@]{0,509}@[^\s\"'<>`\\]{0,509})"
        ),
        _userinfo,
    ),
    _Rule(  # the secret paths of Slack's and Discord's webhooks
        (b"hooks",),
        re.compile(
            r"(?i)hooks(?:\.slack\.com/(?:services|workflows)|(?<=discord\.com/api/webhooks)"
            r"|(?<=discordapp\.com/api/webhooks))/(?P<value>[\w/-]+)"
        ),
        is_secret=lambda path: is_mixed(path, 16),
    ),
    _Rule(  # of Azure's clients; the first four characters stay
        (b"q~",), re.compile(r"(?<=[\w.~-]{3}[0-9])(?P<value>Q~[\w.~-]{16,})", re.ASCII)
    ),
    _Rule(  # as in /etc/shadow, .htpasswd and Django's tables; compose files double the "$"
        (b"$", b"sha256$"),
        re.compile(
            r"(?:\$\$?(?:2[abxy]?|[1567]|g?y|apr1|argon2(?:id|[id])|s?crypt|pbkdf2(?:-sha\d{1,3})?"
            r"|sha1|md5)\$|\$[PHS]\$|sha256\$(?=[0-9]{3}))"
            r"(?:[A-Za-z0-9./$=,-]{0,64}\$)?(?P<value>[A-Za-z0-9./+]{10,}+[A-Za-z0-9./+$=]*+)"
            rf"(?!{re.escape(MARK)})"  # behind a salt
        ),
        is_secret=lambda hashed: is_mixed(hashed, 10),
    ),
    _Rule((b"-----begin", b"-----end", b"---- begin", b"---- end"), PEM_LINE, key_block),
    _Rule((b"value=", b"content="), re.compile(r"(?i)value=|content="), tag_values),
)
# Every name that `name_kind` knows contains one of these.
_NAME_WORDS = (
    *(b"key", b"secret", b"token", b"pass", b"pwd", b"auth", b"cookie", b"credential", b"bearer"),
    *(b"signature", b"sig="),
)
_HIDDEN_LETTER = b"\\u00"  # a name or a quote of JSON may be escaped as \u0041
# What to look for, some of it only where the text has a mark: one byte, which is found much faster,
# or a word that was looked for before.
_SEARCHES: tuple[tuple[bytes, tuple[bytes, ...]], ...] = (
    (b"", (*_NAME_WORDS[:-2], b"basic", b"identified", b"hooks")),
    (b"=", (b"signature", b"sig=")),
    (b"@", (b"://", b":\\")),
    (b"<", (b"value=", b"content=")),
    (b"$", (b"$", b"sha256$")),
    (b"~", (b"q~",)),
    (b"\\", (_HIDDEN_LETTER,)),
    (b"key", (b"private key",)),
    (b"private key", (b"-----begin", b"-----end", b"---- begin", b"---- end")),
)
_OFTEN = (b"$", _HIDDEN_LETTER)
_ANY_WORD = re.compile(b"|".join(re.escape(word) for _, words in _SEARCHES for word in words))


class Scan:
    """The places of a text where a credential may stand.

    `places` are the offsets of words that may belong to one, in no order, `count` is how many of
    them look so much like one that they are to be read closely; `credentials` reads them.
    """

    __slots__ = ("_direct", "_hits", "_limit", "_lower", "_matches", "_named", "_text")

    def __init__(self, text: str) -> None:
        latin = text.encode("latin-1", "replace")  # one byte per character: the same offsets
        self._text, self._lower = text, latin.lower()
        self._limit = len(text)
        self._hits: dict[bytes, list[int]] = {}
        self._direct: list[Span] = []
        self._matches: list[tuple[_Rule, list[re.Match[str]]]] = []
        self._named: NamedValues | None = None
        if len(text) >= SHORTEST_SHAPE:
            self._direct, self._limit = find_shapes(text, latin, _MOST_RUNS)
        if b" -" in self._lower:
            values, limit = command_values(text, self._lower, _MOST_WORDS)
            self._direct += values
            self._limit = min(self._limit, limit)
        if len(text) > _FEW_CHARACTERS or _ANY_WORD.search(self._lower):
            self._find_words()
        if self._hits:
            found = [(rule, self._matches_of(rule)) for rule in _RULES]
            self._matches = [(rule, matches) for rule, matches in found if matches]
            if hits := self._hits_of(_NAME_WORDS):
                self._named = NamedValues(text, self._lower, hits)

    def _find_words(self) -> None:
        lower = self._lower
        for mark, words in _SEARCHES:
            for word in words if mark in (self._hits if len(mark) > 1 else lower) else ():
                if word in lower:
                    most = _MOST_MARKS if word in _OFTEN else _MOST_WORDS
                    self._hits[word] = hits = list(islice(_positions(lower, word), most))
                    if len(hits) == most:
                        self._limit = min(self._limit, hits[-1])

    def _hits_of(self, words: tuple[bytes, ...]) -> list[int]:
        return sorted(
            hit for word in words for hit in self._hits.get(word, ()) if hit < self._limit
        )

    def _matches_of(self, rule: _Rule) -> list[re.Match[str]]:
        hits = self._hits_of(rule.words)
        return [match for hit in hits if (match := rule.pattern.match(self._text, hit))]

    def __bool__(self) -> bool:
        """Whether there is anything to read; what escapes hide is seen only when they are read."""
        has_escapes = b"\\" in self._lower and bool(self._hits)
        return has_escapes or self.count > 0 or self._limit < len(self._text)

    @property
    def places(self) -> list[int]:
        places = [start for start, _ in self._direct]
        for hits in self._hits.values():
            places += hits
        return places

    @property
    def count(self) -> int:
        named = len(self._named.names) if self._named else 0
        return named + len(self._direct) + sum(len(matches) for _, matches in self._matches)

    def start_of(self, number: int) -> int | None:
        """Where the text must end to have no more than `number` places; None where it may stay."""
        if self.count <= number:
            return self._limit if self._limit < len(self._text) else None
        starts = [start for start, _ in self._direct]
        starts += [match.start() for _, matches in self._matches for match in matches]
        starts += [name.start for name in self._named.names] if self._named else []
        return min(self._limit, sorted(starts)[number])

    def credentials(self, is_passed: Callable[[int], bool]) -> Iterator[Span]:
        """The spans of every credential, in no order and perhaps overlapping.

        A place for which `is_passed` says yes is not read.
        """
        yield from self._direct
        for rule, matches in self._matches:
            done = 0
            for match in matches:
                if match.start() >= done and not is_passed(match.start()):
                    for start, end in rule.credentials(match):
                        done = max(done, end)
                        if start < end:
                            yield start, end
        if self._named:
            yield from self._named.credentials(is_passed)
        if self._limit < len(self._text):
            yield self._limit, len(self._text)


def _positions(lower: bytes, word: bytes) -> Iterator[int]:
    position = lower.find(word)
    while position >= 0:
        yield position
        position = lower.find(word, position + len(word))
