"""Where the credentials stand in a text: prose, SQL, URLs, headers, code, or cut JSON.

A `Scan` looks for a few words with byte searches and lets the rules look around each hit.
Every rule reads the original text and answers with the span of the value alone, so what is
replaced later leaves the grammar around it as it was. Each look is bounded, or moves on past
what it read, and is paid for from the budget of `Looks`.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial

from open_llm_proxy.server.redaction.credentials import (
    is_basic_auth,
    is_mixed,
    is_ordinary,
    is_stand_in,
    name_kind,
)
from open_llm_proxy.server.redaction.grammars import assigned_credentials
from open_llm_proxy.server.redaction.looks import Looks, rest_of
from open_llm_proxy.server.redaction.shapes import (
    SHORTEST_SHAPE,
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
_Rule = Callable[[str, bytes, Looks], Iterator[Span]]
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
# Where a userinfo may begin and what it consists of; PHP escapes the slashes.
_AUTHORITY = re.compile(r":(?:\\{0,3}/){2}(?=[^\s\"'<>`?#\\@/])")
_USERINFO = re.compile(r"[^\s\"'<>`?#\\]{0,509}")
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
        self._shapes = find_shapes(text, latin) if len(text) >= SHORTEST_SHAPE else []
        self._words: list[bytes] = []
        if len(text) > _FEW_CHARACTERS or _ANY_TRIGGER.search(self._lower):
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

    def credentials(self, looks: Looks) -> list[Span]:
        """The spans of every credential, in no order and perhaps overlapping.

        Where the looks are used up, the last span is all that follows.
        """
        spans = list(self._shapes)
        rules: list[_Rule] = [rule for word in self._words for rule in _RULES.get(word, ())]
        if names := [word for word in self._words if word in _NAME_WORDS]:
            rules.append(partial(_names, names))
        for rule, _ in zip(rules, looks.shares(len(rules)), strict=True):
            spans += rule(self._text, self._lower, looks)
        return spans


def _names(words: list[bytes], text: str, lower: bytes, looks: Looks) -> Iterator[Span]:
    hits = sorted(hit for word in words for hit in _positions(lower, word))
    creates_secret = _CREATE_SECRET.search(lower) is not None
    yield from assigned_credentials(text, hits, creates_secret, looks)


def _positions(lower: bytes, word: bytes) -> Iterator[int]:
    position = lower.find(word)
    while position >= 0:
        yield position
        position = lower.find(word, position + len(word))


def _bearers(text: str, lower: bytes, looks: Looks) -> Iterator[Span]:
    """`Bearer …` wherever it stands (RFC 6750); in prose it is a word among others."""
    position = 0
    for hit in _positions(lower, b"bearer"):
        match = _BEARER.match(text, hit) if hit >= position else None
        if match is None:
            continue
        if not looks.take(hit):
            yield rest_of(text, hit)
            return
        value, start = match["value"].rstrip("."), match.start("value")
        if is_stand_in(value) or is_ordinary(value) or name_kind(value):
            continue
        closed = text[match.end() : match.end() + 1] in ("", '"', "'", "`", "\n", "\\", ",")
        wordlike = not is_mixed(value, 6) and value.count(".") < 2
        if not wordlike or (len(value) >= 12 and closed and text[hit] == "B"):
            rest = _BEARER_REST.match(text, start + len(value))
            position = rest.end() if rest and len(value) > 500 else start + len(value)
            yield start, position


def _basic_auth(text: str, lower: bytes, looks: Looks) -> Iterator[Span]:
    for hit in _positions(lower, b"basic"):
        if match := _BASIC.match(text, hit):
            if not looks.take(hit):
                yield rest_of(text, hit)
                return
            if is_basic_auth(match["value"]):
                yield match.span("value")


def _sql_users(text: str, lower: bytes, looks: Looks) -> Iterator[Span]:
    """`CREATE USER bob IDENTIFIED BY '…'` of MySQL and Oracle."""
    for hit in _positions(lower, b"identified"):
        if b"user" in lower[max(0, hit - 80) : hit] and (match := _IDENTIFIED.match(text, hit)):
            if not looks.take(hit):
                yield rest_of(text, hit)
                return
            value = quoted_value(text, match.end())
            if value and not is_stand_in(str(value)):
                yield value.start, value.end


def _userinfos(text: str, lower: bytes, looks: Looks) -> Iterator[Span]:
    """The password of `scheme://user:password@host`, or a user that is a key (RFC 3986)."""
    for authority in _AUTHORITY.finditer(text):
        start = authority.end()
        run = _USERINFO.match(text, start)
        end = run.end() if run else start
        following = text.find("://", start, end)
        at = text.find("@", start, end if following < 0 else following)
        while at >= 0:
            if not looks.take(at):
                yield rest_of(text, start)
                return
            yield from _userinfo(text, authority.start(), start, at)
            at = text.find("@", at + 1, end if following < 0 else following)


def _userinfo(text: str, colon: int, start: int, at: int) -> Iterator[Span]:
    if text.startswith("sha256:", at + 1):
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


def _curl_users(text: str, lower: bytes, looks: Looks) -> Iterator[Span]:
    """`curl -u user:password` and `curl -b name=value`."""
    position = 0
    for hit in _positions(lower, b"curl"):
        if hit < position and lower.startswith(b"\n", position):
            continue  # of the command that was read
        end = _end_of_command(lower, hit, max(hit, position))
        for match in _CURL_FLAG.finditer(text, max(hit, position), end):
            if not looks.take(match.start()):
                yield rest_of(text, match.start())
                return
            group = "password" if match["password"] else "cookie"
            if not is_stand_in(match[group]) and not match[group].isdigit():
                yield match.span(group)
        position = max(position, end)


def _password_flags(text: str, lower: bytes, looks: Looks) -> Iterator[Span]:
    """`mysql -ppassword`, `sshpass -p password` and `docker login -p password`."""
    if not _PASSWORD_COMMAND.search(lower):
        return
    for hit in _positions(lower, b" -p"):
        line = lower[max(0, hit - _COMMAND_LENGTH // 4) : hit].rpartition(b"\n")[2]
        command = _PASSWORD_COMMAND.search(line)
        match = _PASSWORD_FLAG.match(text, hit) if command else None
        if command and match:
            if not looks.take(hit):
                yield rest_of(text, hit)
                return
            joined = match["space"] == ""  # for mysql, "-p name" names the database
            if (joined or command[0] != b"mysql") and not is_stand_in(match["password"]):
                yield match.span("password")


def _end_of_command(lower: bytes, start: int, position: int) -> int:
    """Where the line of the command at `start` ends, from `position` on; a backslash before the
    end continues it."""
    limit = min(start + _COMMAND_LENGTH, len(lower))
    end = position - 1
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
    b"-----begin": (lambda text, _, __: find_pem_blocks(text),),
    b"hooks": (lambda _, lower, __: find_webhooks(lower),),
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
_FEW_CHARACTERS = 512  # of fewer, one pattern tells in a single pass that there is nothing
_ANY_TRIGGER = re.compile(b"|".join(word for _, words in _TRIGGERS for word in words))
