"""Usage by app and model out of any number of rows, in bounded memory.

Latencies are counted in buckets that are 4 % wide, so a quantile is right to 2 %, whatever the
number of calls; apps and models beyond a thousand pairs are counted together.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from open_llm_proxy.archive.rows import LogRow

MAX_GROUPS = 1000
_GROWTH = 1.04
_LOG_GROWTH = math.log(_GROWTH)


class Quantiles:
    """Quantiles of positive numbers, by counting them in buckets of a constant ratio."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = 0

    def add(self, value: float) -> None:
        self.count += 1
        self._counts[round(math.log(max(value, 1.0)) / _LOG_GROWTH)] += 1

    def quantile(self, share: float) -> int | None:
        """The value below which `share` of all lie, 0 to 1; None where there are none."""
        if not self.count:
            return None
        rank = max(1, math.ceil(share * self.count))
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return round(math.exp(bucket * _LOG_GROWTH))
        raise AssertionError("the ranks end with the last bucket")


@dataclass(slots=True)
class Group:
    """The calls of one app with one model."""

    origin: str
    model: str
    calls: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    latency: Quantiles = field(default_factory=Quantiles)
    ttft: Quantiles = field(default_factory=Quantiles)

    def add(self, row: LogRow) -> None:
        """Count a request or a response row."""
        if row.type == "request":
            self.requests += 1
            return
        self.calls += 1
        self.outcomes[row.outcome or "unknown"] += 1
        prompt, completion = row.prompt_tokens or 0, row.completion_tokens or 0
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.total_tokens += prompt + completion if row.total_tokens is None else row.total_tokens
        if row.latency_ms is not None:
            self.latency.add(row.latency_ms)
        if row.ttft_ms is not None:
            self.ttft.add(row.ttft_ms)

    @property
    def errors(self) -> dict[str, int]:
        """How many calls ended in each way but well."""
        return {name: count for name, count in self.outcomes.most_common() if name != "ok"}

    def as_fields(self) -> dict[str, Any]:
        """The group as one object of JSON."""
        return {
            "origin": self.origin,
            "model": self.model,
            "calls": self.calls,
            "ok": self.outcomes["ok"],
            "errors": self.errors,
            "unanswered": max(0, self.requests - self.calls),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "latency_ms_median": self.latency.quantile(0.5),
            "latency_ms_p95": self.latency.quantile(0.95),
            "ttft_ms_median": self.ttft.quantile(0.5),
        }


class UsageStats:
    """Counts rows, group by group."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], Group] = {}

    def add(self, row: LogRow) -> None:
        """Count one row; those that are no part of a call count nothing."""
        if row.type not in ("request", "response"):
            return
        key = (row.origin or "-", row.model or "-")
        if key not in self._groups and len(self._groups) >= MAX_GROUPS:
            key = ("(others)", "(others)")
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
        group.add(row)

    def groups(self) -> list[Group]:
        """The groups, those with most calls first."""
        return sorted(self._groups.values(), key=lambda g: (-g.calls, g.origin, g.model))
