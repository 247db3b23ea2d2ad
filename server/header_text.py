"""What a header's value says, where somebody is to read it."""

from typing import overload


@overload
def header_text(value: str) -> str: ...
@overload
def header_text(value: None) -> None: ...
def header_text(value: str | None) -> str | None:
    """The value as UTF-8 where it is that, else as Latin-1, as `Headers` has all."""
    if value is None or value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
