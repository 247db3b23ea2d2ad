"""A model's reasoning under every name in use, as one text.

Several names often come together with the same text (vLLM sends ``reasoning`` and
``reasoning_content``, OpenRouter ``reasoning`` and ``reasoning_details``), so the first that holds
a text is taken, piece by piece. Encrypted reasoning is no text.
"""

from collections.abc import Mapping

from open_llm_proxy.archive.text import joined

_NAMES = (
    "reasoning_content",
    "reasoning",
    "reasoning_text",
    "thinking",
    "reasoning_details",
    "thinking_blocks",
    "thought",
    "thoughts",
)
_TEXTS = ("text", "summary", "thinking", "reasoning", "content")


def reasoning_of(message: Mapping[str, object]) -> str | None:
    """Return the reasoning in a decoded message or delta, None if it has none."""
    for name in _NAMES:
        text = reasoning_text(message.get(name))
        if text:
            return text
    return None


def reasoning_text(value: object, depth: int = 0) -> str:
    """Return the text of one such member: a string, a block, or a list of blocks."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and depth < 4:
        texts = [text for block in value if (text := reasoning_text(block, depth + 1))]
        return joined(texts, "" if depth else "\n")
    if isinstance(value, dict) and depth < 4:
        for name in _TEXTS:
            text = reasoning_text(value.get(name), depth + 1)
            if text:
                return text
    return ""
