"""Which members of a JSON object carry a credential, by their key and what stands beside it.

`{"name": "API_KEY", "value": "…"}` and `{"key": "…", "secret": "…"}` are credentials too, all
that is in the data of a Kubernetes Secret, and in `{"token": "the", "logprob": -1}` there is none.
"""

from functools import lru_cache
from typing import Any

from open_llm_proxy.server.redaction.credentials import Kind, name_kind

# Keys of an object that stands under a credential's key: "password": {"value": "…"}.
_VALUE_KEYS = frozenset(
    ("value", "values", "default", "const", "current", "plaintext", "new", "old")
)
# Keys whose value is a name, for the "value" beside it.
_NAME_KEYS = frozenset(("name", "key", "header", "field", "variable", "parameter"))
_COOKIE_ATTRIBUTES = frozenset(("name", "domain", "path", "expires", "samesite", "priority"))
# An object with one of these describes a value, as JSON Schema does, and holds none.
_SCHEMA_KEYS = frozenset(("type", "$ref", "properties", "description"))
# What stands beside a token of text.
_TEXT_TOKEN_KEYS = frozenset(
    ("logprob", "logprobs", "bytes", "score", "lemma", "pos", "offset", "offsets")
)


def _member_kind(key: str, inherited: Kind | None, named: Kind | None) -> Kind | None:
    """What credential the value of `key` is, or None.

    `inherited` is the kind of the object that the member is in, `named` the kind that another
    member announces for its "value".
    """
    lower = key.lower()
    if inherited is Kind.MANIFEST:
        return inherited
    if lower == "value" and named:
        return named
    is_cookie = inherited is Kind.COOKIE and lower not in _COOKIE_ATTRIBUTES
    if lower not in _SCHEMA_KEYS and (is_cookie or lower in _VALUE_KEYS) and inherited:
        return inherited
    return _own_kind(key)


@lru_cache(maxsize=4096)  # objects of an array have the same keys
def _own_kind(key: str) -> Kind | None:
    kind = None if key.lower() in _SCHEMA_KEYS else name_kind(key)
    return None if kind is Kind.SIGNATURE else kind


def container_kind(key: str, kind: Kind | None) -> Kind | None:
    """What an object or array inherits as the value of `key`, which is of this kind.

    A kind that came down itself goes no further: to the cookies of a jar, not to their parts.
    """
    return kind if kind is Kind.MANIFEST or name_kind(key) else None


def object_kinds(members: dict[Any, Any], inherited: Kind | None) -> dict[str, Kind]:
    """The kinds of those members of a decoded object that are credentials, by key."""
    if inherited is Kind.COOKIE and not _SCHEMA_KEYS.isdisjoint(members):
        inherited = None
    named = None
    for key in _NAME_KEYS.intersection(members):
        if isinstance(name := members[key], str):
            named = named or name_kind(name)
    kinds: dict[str, Kind] = {}
    is_plain = inherited is named is None
    for key in members:
        if isinstance(key, str) and (
            kind := _own_kind(key) if is_plain else _member_kind(key, inherited, named)
        ):
            kinds[key] = kind
    if "token" in kinds and not _TEXT_TOKEN_KEYS.isdisjoint(members):
        del kinds["token"]
    if "secret" in kinds and isinstance(members.get("key"), str):
        kinds["key"] = Kind.SECRET
    if members.get("kind") == "Secret":
        kinds |= dict.fromkeys(_MANIFEST_KEYS.intersection(members), Kind.MANIFEST)
    return kinds


# Of a Kubernetes Secret, where each value is one, whatever its key.
_MANIFEST_KEYS = frozenset(("data", "stringData"))
