"""Marks before strings that DuckDB would type, and how a reader takes them off."""

import re

# What DuckDB takes for a UUID, a date, a timestamp or a time, and a little more: the words of the
# text with one space between them, as it passes over any number.
_LOOKS_TYPED = re.compile(
    r"""[{(]?-*[0-9a-f](?:-*[0-9a-f]){31}[)}]?
      | (?:[-+]?\d{1,9}[-/]\d{1,2}[-/]\d{1,9}
            (?:[ T]\d{1,2}:[\d:.]*\ ?(?:[ap]m)?\ ?(?:z|utc|[-+][\d:]*)?)?
        | \d{1,9}:\d{1,2}(?::[\d.]*)?\ ?(?:[ap]m)?\ ?(?:z|utc|[-+][\d:]*)?
        | epoch | [-+]?infinity
        )(?:\ ?\(bc\))?""",
    re.VERBOSE | re.IGNORECASE,
)
_MAX_TYPED_CHARACTERS = 128
_MAX_MARKED_CHARACTERS = 1024
_MAX_TYPED_WORDS = 5
_FEW_SHORT_WORDS = re.compile(
    rf"\s*+(?:\S{{1,{_MAX_MARKED_CHARACTERS}}}+\s*+){{0,{_MAX_TYPED_WORDS}}}"
)
_MARKS = re.compile("(?:id:|text:)*")


def unmarked(text: str) -> str:
    """A text or an id as it was before `encode` marked it."""
    if text.startswith(("id:", "text:")) and needs_mark(text):
        return text[text.index(":") + 1 :]
    return text


def needs_mark(text: str) -> bool:
    """Whether a text looks typed. One that was marked does too, whoever marked it: it is marked
    once more, so that `unmarked` is exact."""
    if _FEW_SHORT_WORDS.match(text).end() < len(text):  # type: ignore[union-attr]
        return False  # Seen without a copy, which a text of megabytes would feel.
    core = " ".join(text.split())
    if len(core) > _MAX_MARKED_CHARACTERS:
        return False
    if core.startswith(("id:", "text:")):
        core = _MARKS.sub("", core, 1).lstrip()
    return len(core) <= _MAX_TYPED_CHARACTERS and _LOOKS_TYPED.fullmatch(core) is not None
