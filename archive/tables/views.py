"""The SQL of the views: `entries`, `turns`, `session_rollup` and `sessions`.

- `entries`: every row but heads, typed, with its `day` and the `object` that it lies in.
- `turns`: one row a call, its request and its response side by side; `outcome` is `open` where
  there is no response yet. A call belongs to its request's day.
- `session_rollup`: one row a turn in the order of its session.
- `sessions`: one row a session; a call without a session id is a session of its own.

Tokens and cost that nobody reported are null, never 0.
"""

from open_llm_proxy.archive.entry import (
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
    IdentityFields,
)
from open_llm_proxy.archive.json_schema import duckdb_columns

COLUMNS = duckdb_columns()
"""The columns of a row and their types, in order."""
IDENTITY = IdentityFields.__struct_fields__

_APP = (
    "coalesce(nullif(regexp_extract(origin, '^[A-Za-z][A-Za-z0-9+.-]*://([^/?#]+)', 1), ''), "
    "origin, client)"
)


def turns_sql(rows: str, days: str = "true") -> str:
    """Calls out of the relation `rows`; `days` restricts their day."""
    identity = ", ".join(f"coalesce(q.{name}, r.{name}) AS {name}" for name in IDENTITY)
    request = ", ".join(f"q.{name}" for name in REQUEST_FIELDS)
    response = ", ".join(
        f"r.{name}" for name in RESPONSE_FIELDS if name not in ("outcome", "total_tokens")
    )
    return f"""
SELECT * FROM (SELECT * REPLACE (
    coalesce(session_id, request_id) AS session_key, {_APP} AS app, started::DATE AS day
) FROM (
    SELECT NULL::VARCHAR AS session_key,
           coalesce(q.timestamp, r.timestamp - to_milliseconds(coalesce(r.latency_ms, 0)))
               AS started,
           r.timestamp AS ended, NULL::VARCHAR AS app,
           {identity},
           coalesce(q.queue_id, r.queue_id) AS queue_id,
           q.seq AS request_seq, r.seq AS response_seq,
           {request},
           coalesce(r.outcome, CASE WHEN r.timestamp IS NULL THEN 'open' END) AS outcome,
           {response},
           coalesce(r.total_tokens, r.prompt_tokens + r.completion_tokens) AS total_tokens,
           len(r.tool_calls) AS tool_calls_count,
           NULL::DATE AS day
    FROM (SELECT * FROM {rows} WHERE type = 'request') q
    FULL JOIN (SELECT * FROM {rows} WHERE type = 'response') r ON q.request_id = r.request_id
))
WHERE {days}"""


ROLLUP = """
SELECT session_key,
       row_number() OVER (PARTITION BY session_key ORDER BY started, queue_id, request_seq)
           AS turn_idx,
       request_id, started, ended, app, key_name, provider, model,
       user_message_this_turn AS question, len(tool_results_this_turn) AS tool_results,
       tool_calls_count AS tool_calls, prompt_tokens, completion_tokens, total_tokens AS tokens,
       cost_usd, status, outcome, latency_ms, ttft_ms, finish_reason, error, day
FROM {turns}"""

SESSIONS = """
SELECT session_key, any_value(session_id) AS session_id,
       min(started) AS started, max(coalesce(ended, started)) AS ended,
       arg_min(app, started) AS app, arg_min(key_name, started) AS key_name,
       string_agg(DISTINCT model, ', ' ORDER BY model) AS models,
       count(*) AS turns, sum(tool_calls_count)::BIGINT AS tool_calls,
       sum(prompt_tokens)::BIGINT AS prompt_tokens,
       sum(completion_tokens)::BIGINT AS completion_tokens,
       sum(total_tokens)::BIGINT AS tokens,
       count(*) FILTER (total_tokens IS NULL) AS turns_without_tokens,
       sum(cost_usd) AS cost_usd,
       count(*) FILTER (outcome NOT IN ('ok', 'open')) AS failed_turns,
       arg_max(outcome, started) AS outcome,
       arg_min(coalesce(user_question, user_message_this_turn), started) AS first_question,
       min(day) AS day
FROM {turns} GROUP BY session_key"""
