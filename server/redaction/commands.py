"""Passwords on command lines, whose flags say nothing by themselves: `-p` is a port elsewhere."""

import re

from open_llm_proxy.server.redaction.credentials import is_ordinary, is_stand_in

_REACH = 2000
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
_COMMAND = re.compile(rf"(?:(?<![\w.])|(?<=\\[nrt]))(?:{_NAMES})(?![\w-])|(?P<end>&&)")
_FLAG_OF = {f"flag_{number}": re.compile(flag) for number, flag in enumerate(_FLAGS.values())}
_ANY_FLAG = re.compile(rb" --?(?=[a-z])")
_WORDS = ("to", "that", "flag", "and", "if", "when")  # of a sentence about the flag


def command_values(text: str, lower: bytes, most: int) -> tuple[list[tuple[int, int]], int]:
    """The spans of the values, and how far the text was read: up to `most` flags.

    A flag belongs to a command up to `_REACH` characters before it, in the same line or up to
    `&&`. A backslash before its end continues a line.
    """
    found: list[tuple[int, int]] = []
    lower = lower.replace(b"\\\n-", b"\\ -").replace(b"\t-", b" -")
    commands: dict[str | None, int] = {}  # of this line: where the last one of each kind ends
    read = 0
    for number, flag in enumerate(_ANY_FLAG.finditer(lower)):
        hit = flag.start()
        if number == most:
            return found, hit
        read = max(read, hit - _REACH)
        line = lower.rfind(b"\n", read, hit)
        while lower.endswith(b"\\", read, max(read, line)):
            line = lower.rfind(b"\n", read, line)
        if line >= 0:
            commands.clear()
            read = line + 1
        for command in _COMMAND.finditer(text, read, hit):
            if command.lastgroup == "end":
                commands.clear()
            else:
                commands[command.lastgroup] = command.end()
        read = hit
        for kind, after in commands.items():
            value = _FLAG_OF[kind or ""].match(text, hit + 1) if after >= hit - _REACH else None
            if value and _is_password(value[group := value.lastgroup or "password"]):
                found.append(value.span(group))
    return found, len(text)


def _is_password(value: str) -> bool:
    bare = value.rstrip(").,")
    is_word = (is_ordinary(bare) and not bare.isdigit()) or bare in _WORDS
    return not is_word and not is_stand_in(bare)
