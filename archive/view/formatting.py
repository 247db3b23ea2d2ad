"""How values look on a page. Templates escape what these return, but for what is HTML."""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import JsonLexer, SqlLexer

UNKNOWN = "—"
MAX_CODE_CHARACTERS = 20_000
MAX_TEXT_CHARACTERS = 200_000
_SQL_NAMES = ("sql", "query", "sql_query", "statement")
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]"
)
_FORMATTER = HtmlFormatter(nowrap=True)
# HTML in a text stays text, links of dangerous kinds stay text too, and nothing is fetched.
_MARKDOWN = MarkdownIt("js-default", {"html": False, "linkify": False}).disable("image")


def visible(text: object) -> str:
    """A text in which control and direction characters are seen and do nothing."""
    return _CONTROLS.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", str(text).replace("\r\n", "\n"))


def body(text: str | None) -> str:
    """A text of the log for a page, cut where it would make the page slow."""
    if text is None:
        return ""
    if len(text) > MAX_TEXT_CHARACTERS:
        left = len(text) - MAX_TEXT_CHARACTERS
        text = f"{text[:MAX_TEXT_CHARACTERS]}\n… {left:,} further characters are in the raw rows"
    return visible(text)


def markdown(text: str | None) -> str:
    """HTML: what a model answered, as it was meant to look; a long text as it is."""
    text = body(text)
    if len(text) > MAX_CODE_CHARACTERS:
        return f'<div class="text" dir="auto">{escaped(text)}</div>'
    html: str = _MARKDOWN.render(text)
    return f'<div class="rich" dir="auto">{html}</div>'


def escaped(text: str) -> str:
    """A text as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def line(text: str | None, characters: int = 120) -> str:
    """The beginning of a text, as one line."""
    if not text:
        return UNKNOWN
    words = " ".join(text[: 4 * characters].split())
    short = words if len(words) <= characters else words[: characters - 1] + "…"
    return visible(short)


def time(moment: datetime | None) -> str:
    return UNKNOWN if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def number(value: float | None) -> str:
    """A count; what nobody reported is unknown, not 0."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def cost(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def milliseconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1000:,.1f} s"


def around(text: str, wanted: str, characters: int = 90) -> tuple[str, str, str] | None:
    """The first place of a text in another one: what stands before it, itself, what follows."""
    at = text.lower().find(wanted.lower())
    if at < 0:
        return None
    begin, end = max(0, at - characters), at + len(wanted)
    before = ("…" if begin else "") + text[begin:at]
    after = text[end : end + characters] + ("…" if end + characters < len(text) else "")
    return visible(before), visible(text[at:end]), visible(after)


def arguments(text: str | None) -> Iterator[tuple[str | None, str]]:
    """A tool call's arguments as named pieces of highlighted HTML; SQL apart from the JSON."""
    try:
        given: Any = json.loads(text or "{}")
    except (ValueError, RecursionError):
        yield None, highlighted(text or "", "text")
        return
    if isinstance(given, dict):
        for name, value in list(given.items()):
            if isinstance(value, str) and name.lower() in _SQL_NAMES:
                yield name, highlighted(value, "sql")
                del given[name]
    if given:
        yield None, highlighted(json.dumps(given, indent=2, ensure_ascii=False), "json")


def pretty(value: Any) -> str:
    """A row as highlighted JSON, empty fields left out."""
    row = {name: field for name, field in value.items() if field is not None}
    return highlighted(json.dumps(row, indent=2, ensure_ascii=False, default=str), "json")


def highlighted(text: str, language: str) -> str:
    """HTML: a text in colours, or a text alone where it is long or of no language."""
    text = body(text)
    if language == "text" or len(text) > MAX_CODE_CHARACTERS:
        return escaped(text)
    lexer = SqlLexer() if language == "sql" else JsonLexer()
    html: str = highlight(text, lexer, _FORMATTER)
    return html


def highlight_css() -> str:
    """The colours of `highlighted`, for light and for dark pages."""
    light, dark = (
        HtmlFormatter(style=style, nobackground=True).get_style_defs("code")  # type: ignore[no-untyped-call]
        for style in ("default", "github-dark")
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
