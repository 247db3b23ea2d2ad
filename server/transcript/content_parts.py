"""Message content as people read it: a string, or the parts of a multimodal list as text.

Text parts keep their text. An image, a sound or a file is replaced by a description such as
``[image/png 123456 bytes]``: its base64 would be most of the log and no use in it. The same
shapes occur in questions and in answers.
"""

from open_llm_proxy.archive.text import joined, split_mark
from open_llm_proxy.server.transcript.reasoning import reasoning_text

_MAX_LABEL_CHARACTERS = 200
_TEXT_TYPES = ("text", "input_text", "output_text", "refusal")
_THOUGHT_TYPES = (
    "thinking",
    "redacted_thinking",
    "reasoning",
    "reasoning_text",
    "reasoning.text",
    "reasoning.summary",
    "summary_text",
)


def content_text(content: object) -> str | None:
    """Return the text of a message's ``content``: a string, a list of parts, or one part.

    None if there is none. Parts of a model's thinking are left out; see `thought_text`.
    """
    return _joined(content, thoughts=False)


def thought_text(content: object) -> str | None:
    """Return the text of the parts in which a model thinks, None if there are none."""
    return _joined(content, thoughts=True)


def _joined(content: object, *, thoughts: bool) -> str | None:
    if isinstance(content, str):
        return None if thoughts else content
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if _is_thought(part) != thoughts:
            continue
        text = reasoning_text(part) if thoughts else _part_text(part)
        if text:
            texts.append(text)
    return joined(texts, "\n") or None


def _is_thought(part: object) -> bool:
    """Whether a part is what a model thinks; Gemini marks such a part with ``thought: true``."""
    return isinstance(part, dict) and (
        part.get("type") in _THOUGHT_TYPES or part.get("thought") is True
    )


def _part_text(part: object) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return None
    for name in ("text", "refusal", "thinking", "reasoning"):
        if isinstance(part.get(name), str):
            return str(part[name])
        if name in part and part[name] is None and part.get("type") in _TEXT_TYPES:
            return None
    inner = part.get("thinking")
    if isinstance(inner, list):
        return joined((text for item in inner if (text := _plain_text(item))), "")
    return describe_part(part)


def _plain_text(item: object) -> str | None:
    text = item.get("text") if isinstance(item, dict) else item
    return text if isinstance(text, str) else None


def describe_part(part: dict[str, object]) -> str:
    """Describe a part that is no text in one bracketed phrase, without its data."""
    kind = part.get("type")
    label = _short(kind) if isinstance(kind, str) else "part"
    for name in ("image_url", "input_audio", "audio", "file", "source", "video_url"):
        inner = part.get(name)
        if isinstance(inner, str):
            inner = {"url": inner}
        if isinstance(inner, dict):
            return _describe_data(label, inner)
    return _describe_data(label, part)


def _describe_data(label: str, holder: dict[str, object]) -> str:
    """Describe what an object carries under the names in use for data, links and file names."""
    filename = holder.get("filename")
    words = [_short(filename)] if isinstance(filename, str) else []
    for name in ("url", "data", "file_data", "file_url", "result"):
        data = holder.get(name)
        if not isinstance(data, str) or not data:
            continue
        if data.startswith(("http://", "https://")):
            return f"[{' '.join([label, *words, _short(data)])}]"
        media_type = _media_type(data) or _declared_type(label, holder) or label
        return f"[{' '.join([*words, media_type])} {_base64_bytes(data)} bytes]"
    return f"[{' '.join([label, *words])}]"


def _media_type(data: str) -> str | None:
    """Return the media type of a ``data:`` URL (RFC 2397)."""
    if not data.startswith("data:"):
        return None
    return _short(data[5:_MAX_LABEL_CHARACTERS].partition(",")[0].partition(";")[0]) or None


def _declared_type(label: str, holder: dict[str, object]) -> str | None:
    for name in ("media_type", "mime_type", "format"):
        declared = holder.get(name)
        if isinstance(declared, str):
            if "/" in declared or name != "format":
                return _short(declared)
            return f"{label.removeprefix('input_')}/{_short(declared)}"
    return None


def _base64_bytes(data: str) -> int:
    """Compute how many bytes a base64 text stands for, without decoding it."""
    start = data.find(",", 0, _MAX_LABEL_CHARACTERS) + 1 if data.startswith("data:") else 0
    padding = 2 if data.endswith("==") else 1 if data.endswith("=") else 0
    _, _, length = split_mark(data)
    return max(0, (length - start) * 3 // 4 - padding)


def _short(text: str) -> str:
    if len(text) <= _MAX_LABEL_CHARACTERS:
        return text
    return text[:_MAX_LABEL_CHARACTERS] + f"…[cut: {len(text)} characters in all]"
