"""Where the credentials stand in a text: prose, SQL, URLs, headers, code, or cut JSON.

A `Scan` looks for a few words with byte searches and lets the rules look around each hit.
Every rule reads the original text and answers with the span of the value alone, so what is
replaced later leaves the grammar around it as it was. Each look is bounded or moves on past
what it read, which keeps the time linear in the length of the text.
"""

import re
from collections.abc import Callable, Iterator

from open_llm_proxy.server.redaction.credentials import (
    is_basic_auth,
    is_mixed,
    is_ordinary,
    is_stand_in,
    name_kind,
)
from open_llm_proxy.server.redaction.grammars import assigned_credentials
from open_llm_proxy.server.redaction.shapes import (
    Span,
    find_pem_blocks,
    find_shapes,
    find_webhooks,
)
from open_llm_proxy.server.redaction.values import quoted_value

# Every name that `name_kind` knows contains one of these.
_NAME_WORDS = (
    *(b"key", b"secret", b"token", b"pass", b"pwd", b"auth", b"cookie", b"credential", b"bearer"),
    *(b"signature", b"sig="),
)
_Rule = Callable[[str, bytes], Iterator[Span]]
_BEARER = re.compile(r"(?i)bearer(?:[ \t]{1,8}|%20|\+)(?P<value>[A-Za-z0-9._~+/=-]{6,512})")
_BEARER_REST = re.compile(r"[A-Za-z0-9._~+/=-]*")
_BASIC = re.compile(r"(?i)basic(?:[ \t]{1,8}|%20|\+)(?P<value>[A-Za-z0-9+/]{6,1024}={0,2})")
_CREATE_SECRET = re.compile(
    rb"create\s{1,8}(?:or\s{1,8}replace\s{1,8})?(?:persistent\s{1,8}|temp(?:orary)?\s{1,8})?secret\b"
)
_IDENTIFIED = re.compile(
    r"(?i)identified\s{1,8}(?:with\s{1,8}[\w\"'`]{1,40}\s{1,8})?(?:by|as)\s{1,8}"
    r"(?:password\s{1,8})?(?=\\{0,63}[\"'])"
)
_COMMAND_LENGTH = 1000
_CURL_FLAG = re.compile(
    r"""(?x)\s(?:
    (?:-u|-U|--user|--proxy-user)[ =]{0,2}["']?[^\s"':]{0,64}:(?P<password>[^\s"'\\]+)
    | -b[ ]?["'](?P<cookie>[^\s"'=]{1,64}=[^"'\r\n\\]+))"""
)
_PASSWORD_COMMAND = re.compile(rb"mysql|sshpass|(?:docker|podman|registry) login")
_PASSWORD_FLAG = re.compile(
    r"""\s-p(?P<space>[ =]?)["']?(?P<password>[^\s"'\\;|&-][^\s"'\\;|&]*)"""
)
_LONGEST_USERINFO = 512
_NOT_USERINFO = re.compile(r"[\s\"'<>`?#\\]")
_ESCAPED_SLASHES = re.compile(r":(?:\\{1,3}/){2}\Z")  # as PHP writes them
_DATABASES = (
    *("postgres", "postgresql", "mysql", "mariadb", "mongodb", "mongodb+srv"),
    *("redis", "rediss", "amqp", "amqps"),
)


class Scan:
    """The places of a text where a rule could apply, found by byte searches alone.

    `places` is what ordinary text does not have; `credentials` looks closely.
    """

    __slots__ = ("_lower", "_shapes", "_text", "_words")

    def __init__(self, text: str) -> None:
        latin = text.encode("latin-1", "replace")  # one byte per character: the same offsets
        self._text, self._lower = text, latin.lower()
        self._shapes = find_shapes(text, latin)
        self._words = [
            word
            for mark, words in _TRIGGERS
            if mark in self._lower
            for word in words
            if word in self._lower
        ]

    def __bool__(self) -> bool:
        return bool(self._words or self._shapes)

    def places(self) -> list[int]:
        """The offsets where something was found, in no order."""
        found = [start for start, _ in self._shapes]
        for word in self._words:
            found += _positions(self._lower, word)
        return found

    def credentials(self) -> list[Span]:
        """The spans of every credential, in no order and perhaps overlapping."""
        spans = list(self._shapes)
        names: list[int] = []
        for word in self._words:
            if word in _NAME_WORDS:
                names += _positions(self._lower, word)
            for rule in _RULES.get(word, ()):
                spans += rule(self._text, self._lower)
        if names:
            creates_secret = _CREATE_SECRET.search(self._lower) is not None
            spans += assigned_credentials(self._text, sorted(names), creates_secret)
        return spans


def _positions(lower: bytes, word: bytes) -> Iterator[int]:
    position = lower.find(word)
    while position >= 0:
        yield position
        position = lower.find(word, position + len(word))


def _bearers(text: str, lower: bytes) -> Iterator[Span]:
    """`Bearer …` wherever it stands (RFC 6750); in prose it is a word among others."""
    for hit in _positions(lower, b"bearer"):
        match = _BEARER.match(text, hit)
        if match is None:
            continue
        value, start = match["value"].rstrip("."), match.start("value")
        if is_stand_in(value) or is_ordinary(value) or name_kind(value):
            continue
        closed = text[match.end() : match.end() + 1] in ("", '"', "'", "`", "\n", "\\", ",")
        wordlike = not is_mixed(value, 6) and value.count(".") < 2
        if not wordlike or (len(value) >= 12 and closed and text[hit] == "B"):
            rest = _BEARER_REST.match(text, start + len(value))
            yield start, rest.end() if rest and len(value) > 500 else start + len(value)


def _basic_auth(text: str, lower: bytes) -> Iterator[Span]:
    for hit in _positions(lower, b"basic"):
        if (match := _BASIC.match(text, hit)) and is_basic_auth(match["value"]):
            yield match.span("value")


def _sql_users(text: str, lower: bytes) -> Iterator[Span]:
    """`CREATE USER bob IDENTIFIED BY '…'` of MySQL and Oracle."""
    for hit in _positions(lower, b"identified"):
        if b"user" in lower[max(0, hit - 80) : hit] and (match := _IDENTIFIED.match(text, hit)):
            value = quoted_value(text, match.end())
            if value and not is_stand_in(str(value)):
                yield value.start, value.end


def _userinfos(text: str, lower: bytes) -> Iterator[Span]:
    for hit in _positions(lower, b"@"):
        yield from _userinfo(text, hit)


def _userinfo(text: str, at: int) -> Iterator[Span]:
    """The password of `scheme://user:password@host`, or a user that is a key (RFC 3986)."""
    lowest = max(0, at - _LONGEST_USERINFO)
    colon = text.rfind("://", lowest, at)
    start = colon + 3
    if colon < 0:
        slash = text.rfind("/", lowest, at)
        slashes = _ESCAPED_SLASHES.search(text, max(lowest, slash - 8), slash + 1)
        if slashes is None:
            return
        colon, start = slashes.span()
    if _NOT_USERINFO.search(text, start, at) or text.startswith("sha256:", at + 1):
        return
    user, separator, password = text[start:at].partition(":")
    scheme = text[max(0, colon - 12) : colon].lower()
    if "/" in user or ("/" in password and not _is_database_password(scheme, password)):
        return
    if separator and password and not is_stand_in(password):
        yield start + len(user) + 1, at
    if is_mixed(user, 20) and not is_stand_in(user):
        yield start, start + len(user)


def _is_database_password(scheme: str, password: str) -> bool:
    """Whether a "/" may be part of the password: not in `//host:5432/name?to=a@b`."""
    return scheme.endswith(_DATABASES) and not password.split("/")[0].isdigit()


def _curl_users(text: str, lower: bytes) -> Iterator[Span]:
    """`curl -u user:password` and `curl -b name=value`."""
    position = 0
    for hit in _positions(lower, b"curl"):
        end = _end_of_command(lower, hit)
        for match in _CURL_FLAG.finditer(text, max(hit, position), end):
            group = "password" if match["password"] else "cookie"
            if not is_stand_in(match[group]) and not match[group].isdigit():
                yield match.span(group)
        position = max(position, end)


def _password_flags(text: str, lower: bytes) -> Iterator[Span]:
    """`mysql -ppassword`, `sshpass -p password` and `docker login -p password`."""
    for hit in _positions(lower, b" -p"):
        line = lower[max(0, hit - _COMMAND_LENGTH // 4) : hit].rpartition(b"\n")[2]
        command = _PASSWORD_COMMAND.search(line)
        match = _PASSWORD_FLAG.match(text, hit) if command else None
        if command and match and not is_stand_in(match["password"]):
            joined = match["space"] == ""  # for mysql, "-p name" names the database
            if joined or command[0] != b"mysql":
                yield match.span("password")


def _end_of_command(lower: bytes, start: int) -> int:
    """Where the command's line ends; a backslash before the end continues it."""
    limit = min(start + _COMMAND_LENGTH, len(lower))
    end = start
    while (end := lower.find(b"\n", end + 1, limit)) >= 0:
        if lower[end - 1] != ord("\\"):
            return end
    return limit


# By the word, in lower case, without which a rule has nothing to find.
_RULES: dict[bytes, tuple[_Rule, ...]] = {
    b"bearer": (_bearers,),
    b"basic": (_basic_auth,),
    b"identified": (_sql_users,),
    b"@": (_userinfos,),
    b"-----begin": (lambda text, _: find_pem_blocks(text),),
    b"hooks": (lambda _, lower: find_webhooks(lower),),
    b"curl": (_curl_users,),
    b" -p": (_password_flags,),
}
# What to look for: words of names and of rules, some under a mark that is much faster to find.
_TRIGGERS: tuple[tuple[bytes, tuple[bytes, ...]], ...] = (
    (b"", (*_NAME_WORDS[:-2], b"basic", b"identified")),
    (b"=", (b"signature", b"sig=")),
    (b"-", (b"curl", b" -p", b"-----begin")),
    (b"/", (b"hooks",)),
    (b"@", (b"@",)),
)
