"""What an MCP tool returned, as the text that a model reads.

A chat-completions `tool` message carries text only. Text parts and text resources go in as
they are; an image, a recording or a binary resource leaves a line that says what it was.
Structured content (MCP specification 2025-06-18, "Structured Content") is added only where
the text parts do not already say the same.

The result is read as the plain JSON that came, so that one odd part costs nothing but itself.
"""

import json
from typing import Any

from .settings import valid_text

Json = dict[str, Any]


def result_text(result: Json) -> str:
    """All parts of a result as one text, never empty."""
    given = result.get("content")
    content = given if isinstance(given, list) else [] if given is None else [given]
    parts = [part_text(part) for part in content]
    structured = result.get("structuredContent")
    if structured is not None and not says_the_same(content, structured):
        parts.append(json.dumps(structured, ensure_ascii=False))
    text = valid_text("\n".join(part for part in parts if part))
    if text:
        return text
    failed = result.get("isError") is True
    return f"[the tool {'reported an error without a text' if failed else 'returned nothing'}]"


def part_text(part: object) -> str:
    """One content part. What is not known is named, not dropped."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return f"[content that is no object: {json.dumps(part)[:200]}]"
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image" | "audio" as kind, "data": str(data)}:
            return f"[{kind} {word(part, 'mimeType')}, {decoded_size(data)} bytes, not shown]"
        case {"type": "resource", "resource": dict(resource)}:
            return resource_text(resource)
        case {"type": "resource_link"}:
            about = [part.get("title") or part.get("name"), part.get("uri")]
            about += [part.get("mimeType"), part.get("description")]
            words = ", ".join(item for item in about if isinstance(item, str) and item)
            return f"[link to a resource: {words}]"
    return f"[content of the unknown kind {word(part, 'type')}, not shown]"


def resource_text(resource: Json) -> str:
    what = f"resource {word(resource, 'uri')} {word(resource, 'mimeType')}"
    match resource:
        case {"text": str(text)}:
            return f"[{what}]\n{text}"
        case {"blob": str(blob)}:
            return f"[{what}, {decoded_size(blob)} bytes, not shown]"
    return f"[{what}, empty]"


def word(holder: Json, name: str) -> str:
    """A short text of a part, for a line about it."""
    value = holder.get(name)
    return value[:200] if isinstance(value, str) and value else "unknown type"


def says_the_same(content: list[Any], structured: Any) -> bool:
    """Whether the text parts are the structured content, whole or wrapped as ``{"result": …}``."""
    texts = [part["text"] for part in content if isinstance(part, dict) and is_text(part)]
    candidates = [structured]
    if isinstance(structured, dict) and list(structured) == ["result"]:
        candidates.append(structured["result"])
    if "\n".join(texts) in candidates:
        return True
    try:
        values = [json.loads(text) for text in texts]
    except (ValueError, RecursionError):
        return texts in candidates
    return values in candidates or (len(values) == 1 and values[0] in candidates)


def is_text(part: Json) -> bool:
    return part.get("type") == "text" and isinstance(part.get("text"), str)


def capped(text: str, max_chars: int) -> str:
    """At most `max_chars` of `text` (0: all of it), with a mark that says what is gone."""
    if not max_chars or len(text) <= max_chars:
        return text
    return (
        f"{text[:max_chars]}\n[cut: the first {max_chars:,} of {len(text):,} characters are shown; "
        "ask for less at once to see the rest]"
    )


def decoded_size(base64_text: str) -> int:
    """The bytes that a Base64 text stands for (RFC 4648)."""
    text = base64_text.rstrip("=")
    return len(text) * 3 // 4
