"""What the pages ask: one SQL text each, which the page also shows.

The texts stand for themselves: ``open-llm-proxy logs sql`` takes them as they are.
"""

from dataclasses import dataclass

from open_llm_proxy.archive.tables.filters import Filters, literal

PAGE_ROWS = 50
MATCHES = 100
GROUPS = {
    "app": "app",
    "model": "model",
    "key": "key_name",
    "provider": "provider",
    "outcome": "outcome",
    "day": "strftime(started, '%Y-%m-%d')",
    "hour": "strftime(started, '%Y-%m-%d %H:00')",
}
"""What usage can be counted by, and the SQL of it."""

MEASURES = {
    "calls": "count(*)",
    "tokens": "sum(total_tokens)",
    "cost": "sum(cost_usd)",
    "latency": "quantile_cont(latency_ms, 0.95)",
    "errors": "count(*) FILTER (outcome NOT IN ('ok', 'open'))",
}
"""What is drawn over time, and the SQL of it."""


@dataclass(frozen=True, slots=True)
class Question:
    """`sql` finds everything; `shown` is the part of it that a page has room for."""

    sql: str
    limit: int | None = None
    offset: int = 0

    @property
    def shown(self) -> str:
        if self.limit is None:
            return self.sql
        return f"{self.sql}\nLIMIT {self.limit} OFFSET {self.offset}"


def sessions(filters: Filters, page: int) -> Question:
    """Sessions with a turn that is chosen, newest first; one more than a page has."""
    condition = filters.literal_where()
    where = (
        ""
        if condition == "true"
        else f"\nWHERE session_key IN (SELECT session_key FROM turns WHERE {condition})"
    )
    return Question(
        "SELECT started, app, key_name, models, turns, tool_calls, tokens, cost_usd, outcome,\n"
        f"       failed_turns, first_question, session_key\nFROM sessions{where}\n"
        "ORDER BY started DESC, session_key",
        PAGE_ROWS + 1,
        PAGE_ROWS * page,
    )


def turns_of(session_key: str) -> Question:
    """The turns of a session in their order."""
    return Question(
        f"SELECT * FROM turns\nWHERE session_key = {literal(session_key)}\n"
        "ORDER BY started, queue_id, request_seq"
    )


def session(session_key: str) -> Question:
    """A session's totals."""
    return Question(f"SELECT * FROM sessions\nWHERE session_key = {literal(session_key)}")


def session_of(request_id: str) -> Question:
    """The session that a call belongs to."""
    return Question(f"SELECT session_key FROM turns WHERE request_id = {literal(request_id)}")


def texts(names: list[str]) -> Question:
    """System prompts by their SHA-256."""
    values = ", ".join(literal(name) for name in names)
    return Question(f"SELECT text_sha256, content FROM texts WHERE text_sha256 IN ({values})")


def rows_of(request_id: str) -> Question:
    """Every row of a call, as the objects hold them."""
    return Question(
        f"SELECT * FROM entries\nWHERE request_id = {literal(request_id)}\nORDER BY seq"
    )


def matches(filters: Filters) -> Question:
    """Calls in which a text stands, newest first."""
    return Question(
        "SELECT started, app, model, outcome, session_key, request_id, user_message_this_turn,\n"
        "       content, reasoning_content, error, tool_calls::VARCHAR AS tool_calls,\n"
        "       tool_results_this_turn::VARCHAR AS tool_results\n"
        f"FROM turns\nWHERE {filters.literal_where()}\nORDER BY started DESC",
        MATCHES + 1,
    )


def integrity() -> Question:
    """What was found per day and queue; ``logs verify`` tells the same."""
    return Question("SELECT * FROM integrity ORDER BY day DESC, queue_id")


def usage(filters: Filters, by: str) -> Question:
    """Calls, errors, tokens, cost and latency by one of `GROUPS`."""
    order = "1" if by in ("day", "hour") else "calls DESC, 1"
    return Question(
        f'SELECT {GROUPS[by]} AS "{by}", count(*) AS calls,\n'
        "       count(*) FILTER (outcome NOT IN ('ok', 'open')) AS errors,\n"
        "       quantile_cont(latency_ms, 0.5)::BIGINT AS p50_ms,\n"
        "       quantile_cont(latency_ms, 0.95)::BIGINT AS p95_ms,\n"
        "       quantile_cont(ttft_ms, 0.5)::BIGINT AS ttft_p50_ms,\n"
        "       sum(prompt_tokens)::BIGINT AS prompt_tokens,\n"
        "       sum(completion_tokens)::BIGINT AS completion_tokens,\n"
        "       count(*) FILTER (total_tokens IS NULL) AS calls_without_tokens,\n"
        "       sum(cost_usd) AS cost_usd\n"
        f"FROM turns\nWHERE {filters.literal_where()}\nGROUP BY 1\nORDER BY {order}"
    )


def series(filters: Filters, by: str, measure: str, unit: str) -> Question:
    """A measure over days or hours, by one of `GROUPS`."""
    group = "'all'" if by in ("day", "hour") else f"coalesce({GROUPS[by]}, 'unknown')"
    return Question(
        f"SELECT date_trunc('{unit}', started) AS moment, {group} AS name,\n"
        f"       {MEASURES[measure]}::DOUBLE AS value\n"
        f"FROM turns\nWHERE {filters.literal_where()}\nGROUP BY 1, 2\nORDER BY 1, 2"
    )
