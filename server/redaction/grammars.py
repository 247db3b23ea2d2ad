"""The value after a name, in the grammar that the characters between them belong to.

Each function answers with the value if it is a credential, and with None otherwise. How sure
it must look depends on the grammar: JSON's quoted keys and an environment's `KEY=` leave no
doubt, `token: …` in a sentence does.
"""

import re
from collections.abc import Callable, Iterator

from open_llm_proxy.server.redaction.credentials import (
    Kind,
    is_mixed,
    is_ordinary,
    is_password_in_sentence,
    is_quoted_secret,
    is_secret_word,
    is_stand_in,
    name_kind,
    word_set,
)
from open_llm_proxy.server.redaction.layouts import is_manifest, manifest_values, table_values
from open_llm_proxy.server.redaction.names import Name, names_at
from open_llm_proxy.server.redaction.values import (
    CALL,
    END_OF_ARGUMENT,
    END_OF_LINE,
    Value,
    bare_value,
    element_value,
    quoted_value,
)

_QUOTE = r"\\{0,63}[\"'`]"
_SCHEME = re.compile(
    r"(?i)(?P<whole>digest|aws4-hmac-sha256|aws|hawk|oauth|googlelogin|mac|sharedkey(?:lite)?) "
    r"|(?:bearer|basic|token|negotiate|ntlm|api-?key|key|bot|splunk|deepl-auth-key|snowflake)"
    r"(?: {1,4}|%20|\+)"
)
_HEADER_VALUE = re.compile(r"[^\s\"'`\\,;<>(){}\[\]]{1,512}")
_HEADER_LINE = re.compile(r"[^\r\n'`\\]*")
_COOKIE = re.compile(r"[^\s\"'`\\=(]{1,128}=[^\s\"'`\\(]")
_COOKIE_LINE = re.compile(r"[^\r\n\"'`\\]*")
_ITEM = re.compile(r"[\s,]{0,64}")
_SETTER = re.compile(r"(?:^|\.)(?:set|with)(?=[A-Z_])[\w-]*$")
_SIBLING_SECRET = re.compile(rf"\s{{0,16}},\s{{0,64}}(?:{_QUOTE})?(?:s3_)?secret(?![a-zA-Z0-9])")
_SIBLING_KEY = re.compile(
    rf"(?:{_QUOTE})?[ \t]{{0,16}}(?P<sign>=>?|:=?)[ \t]{{0,16}}(?=(?P<quote>{_QUOTE})?)"
)
_TEXT_TOKEN = re.compile(  # "token": "the", "logprob": -1
    rf"(?i:token)(?:{_QUOTE})?\s{{0,8}}[:=]\s{{0,64}}{_QUOTE}[^\"'`\n]{{0,80}}[\"'`]"
    rf"\s{{0,64}},\s{{0,64}}(?:{_QUOTE})?(?:logprob|bytes|score|lemma|pos|offset|token_id)s?\b"
)
_PARSER_WORDS = word_set(
    "unexpected invalid unknown illegal special next last first bad expected near missing "
    "unrecognized"
)
_PAGE = re.compile(r"(?:next|prev(?:ious)?|first|last|start|end|page|cursor|offset)[-_]?[0-9]{0,6}")
_PAGING = re.compile(
    r"[?&](?:sort|sort_by|order|order_by|page|per_page|page_size|limit|offset|cursor|after|before)="
)
_CREATE_SECRET = re.compile(
    rb"create\s{1,8}(?:or\s{1,8}replace\s{1,8})?(?:persistent\s{1,8}|temp(?:orary)?\s{1,8})?secret\b"
)
_JOINTS = ("++", "..", "&&", "%%", "?:")  # "password="+x+"…": code between two strings
_NAMING_WORDS = word_set("create drop replace persistent temporary temp exists")


class NamedValues:
    """The values whose names contain one of the words found at `hits`, ascending.

    `names` are those that announce a credential and that something follows.
    """

    __slots__ = ("_lower", "_text", "names")

    def __init__(self, text: str, lower: bytes, hits: list[int]) -> None:
        self._text = text
        self._lower = lower
        self.names = [name for name in names_at(text, hits) if _announces(name)]

    def credentials(self, is_passed: Callable[[int], bool]) -> Iterator[tuple[int, int]]:
        """Their spans; a name for whose place `is_passed` says yes is not read."""
        # In a CREATE SECRET of DuckDB any literal after a name is a value.
        creates_secret = bool(self.names) and _CREATE_SECRET.search(self._lower) is not None
        position = after_table = after_manifest = 0
        for name in self.names:
            if name.start < position or is_passed(name.start):
                continue
            if name.kind is Kind.WORD and (manifest := is_manifest(self._text, name.start)):
                values, after_manifest = manifest_values(self._text, after_manifest, manifest)
                yield from values
                continue
            if name.start >= after_table and name.is_column:
                values, after_table = table_values(self._text, name.start)
                yield from values
            for value in _values_of(name, creates_secret):
                yield value.start, value.end
                position = max(position, value.after)


def _announces(name: Name) -> bool:
    """Whether there is anything to read after the name, or beside it if it is in quotes."""
    if name.kind is None:
        return _begins_pair(name) and _key_of_pair(name) is not None
    if name.kind is Kind.WORD and _TEXT_TOKEN.match(name.text, name.start):
        return False
    return (
        name.following() is not None
        or name.is_column
        or name.text[name.end : name.end + 1] in ('"', "\\", "<")
        or name.before(8).rstrip(" \t\"'").endswith("kind:")
    )


def _values_of(name: Name, creates_secret: bool) -> Iterator[Value]:
    following = name.following()
    if name.kind is None:
        value = _key_of_pair(name)
    elif following is None or (following["sign"] is None and name.kind is Kind.SIGNATURE):
        return
    elif following["quote"] and name.text.startswith("[", following.end()):
        yield from _listed(name, following.end() + 1)
        return
    elif following.lastgroup == "separated":
        value = _separated(name, following)
    elif following.lastgroup == "typed" and name.kind is Kind.AUTHORIZATION:
        value = _authorization(name, name.end + 2)  # Authorization: Digest username="…"
    elif following.lastgroup == "spaced":
        value = _spaced(name, following.end(), creates_secret)
    else:
        value = _READ_AFTER[following.lastgroup or ""](name, following.end())
    if value is not None:
        yield value


def _separated(name: Name, separator: re.Match[str]) -> Value | None:
    """What follows `=`, `:` or `>`."""
    sign, blank, at = separator["sign"], separator["blank"], separator.end()
    quotes_key = separator["quote"] is not None
    ends_line = "\n" in blank and not blank.strip()
    if name.is_parameter and not quotes_key:
        return _query_parameter(name, at)
    if _assigns_nothing(name, separator):
        return None
    if sign == ">":
        return _element(name, separator.end("sign")) if _is_tag(name) else None
    if quoted_value(name.text, at):
        if ends_line and not quotes_key:
            return None  # class Token: and its docstring
        return _quoted(name, at, key_quoted=quotes_key, assigned="=" in sign)
    if name.kind in (Kind.AUTHORIZATION, Kind.COOKIE):
        return (_cookie if name.kind is Kind.COOKIE else _authorization)(name, at)
    tight = sign[0] in "=%\\" and not blank and not quotes_key
    value = _bare(name, at, tight=tight, may_stand_alone=sign == ":" and blank[:1] == " ")
    return value if value and (not ends_line or is_mixed(str(value), 12)) else None


def _assigns_nothing(name: Name, separator: re.Match[str]) -> bool:
    """A signature outside a URL, a comparison of a parser, or a part of an ARN or a type."""
    if separator["sign"] in ("==", "==="):
        is_text = name.kind not in (Kind.PASSWORD, Kind.SECRET) or "token" in str(name).lower()
        return is_text or not quoted_value(name.text, separator.end())
    is_part = name.before(1) == separator["sign"] == ":" and not separator["blank"]
    is_type = name.before(2) == "::" and separator["quote"] is not None
    return name.kind is Kind.SIGNATURE or is_type or (is_part and not separator["quote"])


def _query_parameter(name: Name, at: int) -> Value | None:
    """A value in a URL's query, where paging speaks of tokens and keys that are none."""
    value = bare_value(name.text, at)
    if value is None or is_stand_in(str(value)):
        return None
    if name.kind is Kind.WORD:  # ?sort=asc&token=next
        around = name.text[max(0, name.start - 200) : name.end + 200]
        is_word = str(value).isalpha() and str(value).islower()
        if _PAGE.fullmatch(str(value)) or (is_word and _PAGING.search(around)):
            return None
    return value.whole() if name.kind is Kind.PASSWORD or not is_ordinary(str(value)) else None


def _quoted(
    name: Name, at: int, *, key_quoted: bool = False, assigned: bool = True
) -> Value | None:
    value = quoted_value(name.text, at)
    if value is None or name.kind is None:
        return None
    if not key_quoted:
        is_parsers = str(name).lower() == "token" and _PARSER_WORDS.intersection(
            name.words_before()[-1:]
        )
        if is_parsers or not _is_quoted_here(name, value, str(value)):
            return None  # unexpected token: "}"
    is_secret = is_quoted_secret(name.kind, str(value), key_quoted=key_quoted, assigned=assigned)
    return value if is_secret else None


def _is_quoted_here(name: Name, value: Value, content: str) -> bool:
    """Whether the quote opens a value, and does not close a string that the name is in."""
    if content[:1] in ")],;}:> \t\r\n" or ("\n" in content and not value.is_block):
        return False
    if not value.is_closed and not is_mixed(content.split(" ")[0], 6):
        return False
    if value.is_raw and set("[]()\\").intersection(content):
        return False  # a regular expression
    return content[:1] + content[-1:] not in _JOINTS or is_mixed(content, 6)


def _bare(
    name: Name, at: int, *, tight: bool = False, may_stand_alone: bool = False
) -> Value | None:
    value = bare_value(name.text, at)
    if value is None or name.kind is None or value.precedes(CALL):
        return None
    if not tight:
        value = value.without_punctuation()
    word = str(value)
    if word.lower() == str(name).lower():
        return None  # login(s3_key=s3_key)
    if tight and word.isidentifier() and not is_mixed(word, 6) and value.precedes(END_OF_ARGUMENT):
        tight = False  # login(password=pw)
    is_secret = is_secret_word(
        name.kind,
        word,
        tight=tight,
        shouted=str(name).isupper(),
        alone=may_stand_alone and value.precedes(END_OF_LINE) and name.begins_line,
    )
    return value.whole() if is_secret else None


def _authorization(name: Name, at: int) -> Value | None:
    """The credentials of an Authorization header, RFC 9110; the scheme stays."""
    scheme = _SCHEME.match(name.text, at)
    start = scheme.end() if scheme else at
    whole_line = scheme is not None and scheme["whole"] is not None
    match = (_HEADER_LINE if whole_line else _HEADER_VALUE).match(name.text, start)
    if match is None or is_stand_in(match[0]) or is_ordinary(match[0]):
        return None
    if scheme is None and (not is_mixed(match[0], 8) or "_" in match[0]):
        return None
    return Value(name.text, start, match.end(), match.end()).whole()


def _cookie(name: Name, at: int) -> Value | None:
    line = _COOKIE_LINE.match(name.text, at) if _COOKIE.match(name.text, at) else None
    if line is None or "(" in line[0] or is_stand_in(line[0].partition("=")[2]):
        return None
    end = at + len(line[0].rstrip())
    return Value(name.text, at, end, end)


def _said(name: Name, at: int) -> Value | None:
    """`my password is hunter2`: prose, so the word must look like nothing else."""
    if name.kind not in (Kind.PASSWORD, Kind.SECRET, Kind.WORD):
        return None
    value = quoted_value(name.text, at) or _bare(name, at)
    if value is None or is_stand_in(str(value)) or set(" \n").intersection(str(value)):
        return None
    return value if is_mixed(str(value), 4 if name.kind is Kind.PASSWORD else 12) else None


def _is_tag(name: Name) -> bool:
    """`<password>`, and the tool calls of models: `<parameter=password>`."""
    return name.before(24).endswith(("<", "<parameter=", '<parameter name="', '<arg name="'))


def _element(name: Name, at: int) -> Value | None:
    value = element_value(name.text, at)
    if value is None or is_stand_in(str(value)) or is_ordinary(str(value)):
        return None
    if "\n" in str(value):
        return None
    surely = name.kind not in (Kind.WORD, Kind.CLUE)
    return value if surely or is_mixed(str(value), 6) else None


def _argument(name: Name, at: int) -> Value | None:
    """`set("X-Api-Key", "…")` and `setPassword("…")`, where the call ends after the value."""
    if name.text[at - 1] == "(" and not _SETTER.search(str(name)):
        return None
    value = quoted_value(name.text, at)
    if value is None or not value.is_closed or not name.text.startswith(")", value.after):
        return None
    content, kind = str(value), name.kind
    if kind is None or name_kind(content) or not is_quoted_secret(kind, content, key_quoted=False):
        return None
    return value if kind is Kind.AUTHORIZATION or is_mixed(content, 6) else None


def _listed(name: Name, at: int) -> Iterator[Value]:
    """`"api_keys": ["…", "…"]`"""
    while item := _ITEM.match(name.text, at):
        value = quoted_value(name.text, item.end())
        if value is None or not value.is_closed:
            return
        at = value.after
        if not is_stand_in(str(value)):
            yield value


def _spaced(name: Name, at: int, creates_secret: bool) -> Value | None:
    """`SECRET '…'` of SQL, `--password …` of a command, `password …` of a .netrc file."""
    bare = bare_value(name.text, at)
    if name.is_flag:
        is_last = bare and (bare.precedes(END_OF_LINE) or name.text.startswith(" -", bare.after))
        return _quoted(name, at) or _bare(name, at, tight=bool(is_last))
    if bare is None:
        return _sql_literal(name, at, creates_secret)
    if "\n" in name.text[name.end : at]:
        return None
    if name.is_of_netrc:
        return _bare(name, at, tight=True)
    if name.kind is Kind.PASSWORD and not bare.precedes(END_OF_LINE):
        word = bare.without_punctuation()
        return word if is_password_in_sentence(str(word)) and not bare.precedes(CALL) else None
    compound = not str(name).isalpha() or name.kind is Kind.PASSWORD
    return _bare(name, at) if compound and is_mixed(str(bare), 6) else None


def _sql_literal(name: Name, at: int, creates_secret: bool) -> Value | None:
    value, written = quoted_value(name.text, at), str(name)
    if value is None or not (value.is_closed or creates_secret):
        return None
    words = name.words_before()[-2:]
    if _NAMING_WORDS.intersection(words[-1:]):
        return None  # CREATE SECRET "name"
    if creates_secret or (written.isupper() and " " not in str(value)):
        return _quoted(name, at, key_quoted=True)
    if name.text[value.start - 1] != "'":
        return None  # kubectl's: secret "aws" not found
    of_user = "user" in words or "role" in words or words[-1:] in (["with"], ["encrypted"])
    if "_" in written or of_user or name.before().rstrip()[-1:] in ("(", ","):
        return _quoted(name, at, key_quoted=True)
    return _quoted(name, at) if name.kind is Kind.PASSWORD and is_mixed(str(value), 4) else None


def _begins_pair(name: Name) -> bool:
    """Whether it is a `key` on its own, with a value."""
    is_key = name.end - name.start == 3 and str(name).lower() == "key"
    return is_key and _SIBLING_KEY.match(name.text, name.end) is not None


def _key_of_pair(name: Name) -> Value | None:
    """`key="…", secret="…"` of s3fs and R, and `?key=…` of map services."""
    separator = _SIBLING_KEY.match(name.text, name.end)
    if separator is None:
        return None
    if separator["quote"]:
        value = quoted_value(name.text, separator.end())
        paired = value and _SIBLING_SECRET.match(name.text, value.after)
        return value if paired and not is_stand_in(str(value)) else None
    bare = bare_value(name.text, separator.end()) if name.is_parameter else None
    content = str(bare)
    is_key = is_mixed(content, 16) and not content.islower() and not content.isupper()
    return bare.whole() if bare and is_key else None


def _paired(name: Name, at: int) -> Value | None:
    return _quoted(name, at, key_quoted=True) or _bare(name, at, may_stand_alone=True)


# By the group of what follows a name.
_READ_AFTER: dict[str, Callable[[Name, int], Value | None]] = {
    "typed": _quoted,
    "said": _said,
    "marked_up": _element,
    "paired": _paired,
    "called": _argument,
}
