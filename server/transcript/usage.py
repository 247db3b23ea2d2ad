"""Token counts and cost out of a provider's usage object, under the names in use.

The chat API says ``prompt_tokens`` and ``completion_tokens``, the responses API ``input_tokens``
and ``output_tokens``; cached and reasoning tokens stand in details objects or, with some
providers, beside the others. A count that is no whole number is None, never an error. The cost is
the one that the provider reports; none is computed here.
"""

import math
import re
from dataclasses import dataclass

_WHOLE_NUMBER = re.compile(r"\d{1,18}(?:\.0*)?")
MAX_COUNT = 2**63 - 1  # what a BIGINT column holds


@dataclass(slots=True, frozen=True)
class Usage:
    """The counts of one answer, and its cost; None where the provider said nothing usable."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None


def read_usage(usage: object) -> Usage:
    """Read a decoded usage object, of whatever type it is."""
    if not isinstance(usage, dict):
        return Usage()
    prompt_details = _object(usage, "prompt_tokens_details", "input_tokens_details")
    completion_details = _object(usage, "completion_tokens_details", "output_tokens_details")
    cached = _count(prompt_details, "cached_tokens")
    if cached is None:
        cached = _count(
            usage, "cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens"
        )
    reasoning = _count(completion_details, "reasoning_tokens")
    if reasoning is None:
        reasoning = _count(usage, "reasoning_tokens")
    return Usage(
        prompt_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        completion_tokens=_count(usage, "completion_tokens", "output_tokens"),
        total_tokens=_count(usage, "total_tokens"),
        cached_tokens=cached,
        reasoning_tokens=reasoning,
        cost_usd=cost_of(usage.get("cost")),
    )


def cost_of(value: object) -> float | None:
    """Read a cost from a number or a string of one; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        cost = float(value)
    except (ValueError, OverflowError):
        return None
    return cost if math.isfinite(cost) and cost >= 0 else None


def _object(usage: dict[str, object], *names: str) -> dict[str, object]:
    for name in names:
        value = usage.get(name)
        if isinstance(value, dict):
            return value
    return {}


def _count(usage: dict[str, object], *names: str) -> int | None:
    """Return the first usable count among these names."""
    for name in names:
        count = whole_number(usage.get(name))
        if count is not None:
            return count
    return None


def whole_number(value: object) -> int | None:
    """Read a count from an int, an integral float or a string of digits; None for all else."""
    if isinstance(value, str):
        text = value.strip()
        value = int(text.partition(".")[0]) if _WHOLE_NUMBER.fullmatch(text) else None
    elif isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_COUNT else None
