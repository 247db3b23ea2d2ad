"""Usage by group, as SQL over `turns`. Tokens and cost that nobody reported stay unknown."""

from collections.abc import Sequence

GROUPS = {
    "app": "app",
    "model": "model",
    "key": "key_name",
    "day": "day",
    "hour": "strftime(started, '%Y-%m-%d %H:00')",
    "outcome": "outcome",
    "provider": "provider",
    "endpoint": "endpoint",
    "client": "client",
}
"""What calls can be grouped by, and its expression over `turns`."""

LOADED = (
    "client", "provider", "endpoint", "status", "ttft_ms", "prompt_tokens", "completion_tokens",
    "total_tokens", "cached_tokens", "cost_usd",
)  # fmt: skip
"""What has to be loaded of raw objects for it."""


def usage_sql(by: Sequence[str], limit: int | None = None) -> str:
    """The statement that counts the calls of each group, those with most calls first.

    `errors` are calls that ended in another way than `ok`; `open` ones have not ended.
    `calls_without_tokens` ended without a count of tokens, so the sums leave them out.
    """
    names = "".join(f"{GROUPS[name]} AS {name}, " for name in by)
    end = "GROUP BY ALL ORDER BY calls DESC, " + ", ".join(by) if by else ""
    if {"day", "hour"} & set(by):
        end = f"GROUP BY ALL ORDER BY {', '.join(by)}"
    return f"""
SELECT {names}count(*) AS calls,
       count(*) FILTER (outcome NOT IN ('ok', 'open')) AS errors,
       count(*) FILTER (outcome = 'open') AS open,
       quantile_disc(latency_ms, 0.5) AS latency_ms_p50,
       quantile_disc(latency_ms, 0.95) AS latency_ms_p95,
       quantile_disc(ttft_ms, 0.5) AS ttft_ms_p50,
       sum(prompt_tokens)::BIGINT AS prompt_tokens,
       sum(cached_tokens)::BIGINT AS cached_tokens,
       sum(completion_tokens)::BIGINT AS completion_tokens,
       sum(total_tokens)::BIGINT AS total_tokens,
       count(*) FILTER (total_tokens IS NULL AND outcome <> 'open') AS calls_without_tokens,
       sum(cost_usd) AS cost_usd
FROM turns {end} {"" if limit is None else f"LIMIT {limit}"}"""
