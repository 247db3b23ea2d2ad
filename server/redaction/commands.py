"""Passwords on command lines, whose flags say nothing by themselves: `-p` is a port elsewhere."""

import re
from collections.abc import Iterator

from open_llm_proxy.server.redaction.credentials import is_ordinary, is_stand_in

_LONGEST = 1000
# The value of a flag, which may be quoted, and what may part it from the flag.
_VALUE = r"""\\?["']?(?P<password>[^\s"'`\\;|&-][^\s"'`\\;|&]*)"""
_APART = r"[ =]\s{0,8}"
# Which flag of which command has a password; a cookie may hold spaces.
_FLAGS = {
    r"curl|wget|xh|aria2c": (
        r"""(?:(?:-[uU]|--(?:proxy-)?user)[ =]{0,2}\\?["']?[^\s"':]{0,64}:"""
        r"""(?P<password>[^\s"'\\]+)|-b[ ]?["'](?P<cookie>[^\s"'=]{1,64}=[^"'\r\n\\]+))"""
    ),
    r"(?:mysql|mariadb)(?:-?\w{1,10})?|7z[ar]?|(?:un)?rar": rf"-p{_VALUE}",
    r"(?:docker|podman|nerdctl|registry|buildah|skopeo|az|oc|auth) login|sshpass|cqlsh|plink|pscp"
    r"|mongo(?:sh|dump|restore|import|export)?|clickhouse-client": rf"(?:-p|-pw){_APART}{_VALUE}",
    r"(?:redis|valkey|keydb)-cli|snmp\w{1,8}": rf"-[aA]{_APART}{_VALUE}",
    r"(?:un)?zip|zipcloak|sqlcmd|bcp|ipmitool|isql": rf"-P[ =]{{0,2}}{_VALUE}",
    r"lftp|ncftp\w{0,4}": rf"""-u{_APART}\\?["']?[^\s"',]{{1,64}},{_VALUE}""",
    r"smbclient|rpcclient|smbmap": rf"""-U{_APART}\\?["']?[^\s"'%]{{1,64}}%{_VALUE}""",
    r"ldap(?:search|modify|add|delete|passwd|whoami)": rf"-w{_APART}{_VALUE}",
    r"openssl": rf"""(?:-pass(?:in|out)?{_APART}["']?pass:|-k{_APART}){_VALUE}""",
    r"htpasswd": rf"-[a-zA-Z]{{0,4}}b[a-zA-Z]{{0,4}} (?:[^\s-]\S{{0,200}} )?\S{{1,64}} {_VALUE}",
    r"create secret": rf"""--from-literal{_APART}["']?[\w.-]{{1,253}}={_VALUE}""",
}
_NAMES = "|".join(f"(?P<flag_{number}>{names})" for number, names in enumerate(_FLAGS))
_COMMAND = re.compile(rf"(?:(?<![\w.])|(?<=\\[nrt]))(?:{_NAMES})(?![\w-])")
_FLAG_OF = {
    f"flag_{number}": re.compile(rf"(?<=\s){flag}") for number, flag in enumerate(_FLAGS.values())
}
_END_OF_LINE = re.compile(rb"(?<!\\)\n")
_ANY_FLAG = re.compile(rb" --?(?=[a-z])")
_WORDS = ("to", "that", "flag", "and", "if", "when")  # of a sentence about the flag


def command_values(text: str, lower: bytes, most: int) -> tuple[list[tuple[int, int]], int]:
    """The spans of the values, and how far the text was read: up to `most` flags.

    Each line is read once, in parts of at most `_LONGEST` characters. A backslash before its
    end continues it.
    """
    found: list[tuple[int, int]] = []
    done = 0
    for number, flag in enumerate(_ANY_FLAG.finditer(lower)):
        hit = flag.start()
        if number == most:
            return found, hit
        if hit >= done:
            start = max(done, hit - _LONGEST)
            while end := _END_OF_LINE.search(lower, start, hit):
                start = end.end()
            last = _END_OF_LINE.search(lower, hit, start + _LONGEST)
            done = last.start() if last else min(len(lower), start + _LONGEST)
            found += _values(text, start, done)
    return found, len(text)


def _values(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    seen: set[str | None] = set()
    for command in _COMMAND.finditer(text, start, end):
        if command.lastgroup not in seen:
            seen.add(command.lastgroup)
            following = text.find("&&", command.end(), end)
            stop = following if following >= 0 else end
            for match in _FLAG_OF[command.lastgroup or ""].finditer(text, command.end(), stop):
                group = match.lastgroup or "password"
                if _is_password(match[group]):
                    yield match.span(group)


def _is_password(value: str) -> bool:
    bare = value.rstrip(").,")
    is_word = (is_ordinary(bare) and not bare.isdigit()) or bare in _WORDS
    return not is_word and not is_stand_in(bare)
