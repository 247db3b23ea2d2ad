"""What an MCP tool returned, as the text that a model reads.

A chat-completions `tool` message carries text only. Text parts and text resources go in as
they are; an image, a recording or a binary resource leaves a line that says what it was.
Structured content (MCP specification 2025-06-18, "Structured Content") is added only where
the text parts do not already say the same.
"""

import json
from typing import Any

from mcp.types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
)

from .settings import valid_text


def result_text(result: CallToolResult) -> str:
    """All parts of a result as one text, never empty."""
    parts = [part_text(part) for part in result.content]
    structured = result.structured_content
    if structured is not None and not says_the_same(result, structured):
        parts.append(json.dumps(structured, ensure_ascii=False))
    text = "\n".join(part for part in parts if part)
    return valid_text(text) or "[the tool returned nothing]"


def part_text(part: object) -> str:
    """One content part. A kind that this version does not know is named, not dropped."""
    if isinstance(part, TextContent):
        return part.text
    if isinstance(part, ImageContent | AudioContent):
        return f"[{part.type} {part.mime_type}, {decoded_size(part.data)} bytes, not shown]"
    if isinstance(part, EmbeddedResource):
        resource = part.resource
        kind = resource.mime_type or "unknown type"
        if isinstance(resource, BlobResourceContents):
            return (
                f"[resource {resource.uri} {kind}, {decoded_size(resource.blob)} bytes, not shown]"
            )
        return f"[resource {resource.uri} {kind}]\n{resource.text}"
    if isinstance(part, ResourceLink):
        about = [part.title or part.name, str(part.uri), part.mime_type, part.description]
        return f"[link to a resource: {', '.join(item for item in about if item)}]"
    return f"[content of the unknown kind {getattr(part, 'type', type(part).__name__)}, not shown]"


def says_the_same(result: CallToolResult, structured: Any) -> bool:
    """Whether the text parts are the structured content, whole or wrapped as ``{"result": …}``."""
    texts = [part.text for part in result.content if isinstance(part, TextContent)]
    candidates = [structured]
    if isinstance(structured, dict) and list(structured) == ["result"]:
        candidates.append(structured["result"])
    if "\n".join(texts) in candidates:
        return True
    try:
        values = [json.loads(text) for text in texts]
    except ValueError:
        return texts in candidates
    return values in candidates or (len(values) == 1 and values[0] in candidates)


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
