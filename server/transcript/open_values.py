"""What is open at a place in a JSON document that is read piece by piece, see reduced_json.py."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class OpenContainer:
    """An array or an object that is open in the reduced document."""

    is_object: bool
    is_fact: bool
    name: bytes
    is_empty: bool = True
    expects: str = "value"  # an object: key, colon, value, comma; an array: value, comma
    key: bytes = b""


@dataclass(slots=True)
class OpenString:
    """A string under way. ``room`` is what may be kept of it."""

    is_key: bool
    room: int
    is_data: bool = False
    kept: bytearray = field(default_factory=bytearray)
    characters: int = 0
    length: int = 0
    end: bytes = b""
