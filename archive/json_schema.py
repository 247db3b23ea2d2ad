"""What the documentation and the readers of the log get from the definition of an entry.

The JSON Schema of a line, the field table of LOGGING.md and the column types of its DuckDB view
all come from `LogEntry`, so that none of them can say something else than the rows do.
"""

import json
from typing import Any

import msgspec

from open_llm_proxy.archive.entry import (
    ANSWER_FIELDS,
    QUESTION_FIELDS,
    InMetadata,
    LogEntry,
    LoggedToolCall,
    ToolResult,
    described_fields,
    in_metadata,
)

_QUEUE_FIELDS = (
    ("queue_id", str, "queue that stored the row: 16 hex digits"),
    ("seq", int, "1, 2, 3 … without a gap in each queue"),
)
_JSON_NAMES = {
    str: "string",
    int: "integer",
    bool: "boolean",
    list[ToolResult]: "list of {tool_call_id, content}",
    list[LoggedToolCall]: "list of {id, name, arguments}",
}
_COLUMN_TYPES = {
    str: "VARCHAR",
    int: "BIGINT",
    bool: "BOOLEAN",
    list[ToolResult]: "STRUCT(tool_call_id VARCHAR, content VARCHAR)[]",
    list[LoggedToolCall]: "STRUCT(id VARCHAR, name VARCHAR, arguments VARCHAR)[]",
}
_IN_METADATA: dict[InMetadata, str] = {
    "kept": "yes",
    "name": "a plain name only",
    "site": "scheme and host",
    "hash": "a hash",
    "null": "",
}
_MAX_INTEGER = 2**63 - 1


def field_table() -> str:
    """The fields in their order as a Markdown table, for LOGGING.md."""
    rows = [("field", "type", "meaning", "in `metadata`"), ("---",) * 4]
    rows += [(f"`{name}`", _JSON_NAMES[kind], text, "yes") for name, kind, text in _QUEUE_FIELDS]
    rows += [
        (f"`{name}`", _JSON_NAMES[kind], str(meta.description), _IN_METADATA[in_metadata(meta)])
        for name, kind, meta in described_fields()
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def duckdb_columns() -> dict[str, str]:
    """Every field's DuckDB type, in order."""
    columns = {name: _COLUMN_TYPES[kind] for name, kind, _ in _QUEUE_FIELDS}
    columns |= {name: _COLUMN_TYPES[kind] for name, kind, _ in described_fields()}
    return columns | {"timestamp": "TIMESTAMP"}


def duckdb_view() -> str:
    """The statement that makes the typed view `log` over a day, for LOGGING.md."""
    columns = ",\n".join(f"    {name}: '{kind}'" for name, kind in duckdb_columns().items())
    return (
        "```sql\n"
        "CREATE OR REPLACE VIEW log AS\n"
        "SELECT * FROM read_ndjson('s3://logs-<ns>/2026-04-07/*.jsonl', columns = {\n"
        f"{columns}\n"
        "});\n"
        "```"
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one line, as it is stored and printed."""
    _, components = msgspec.json.schema_components([LogEntry], ref_template="#/$defs/{name}")
    fields = {
        name: _compact(schema) for name, schema in components.pop("LogEntry")["properties"].items()
    }
    fields["timestamp"]["pattern"] = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"
    fields["request_id"]["pattern"] = "^[0-9a-f]{16}$"
    for name in ("config_sha256", "system_sha256"):
        fields[name]["pattern"] = "^[0-9a-f]{64}$"
    properties = {**_queue_properties(), **fields}
    nothing: dict[str, Any] = {"type": "null"}
    question = dict.fromkeys(QUESTION_FIELDS, nothing)
    answer = dict.fromkeys(ANSWER_FIELDS, nothing)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Log entry of open-llm-proxy",
        "description": "One line of a log object. Every row has every field, in this order.",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        "allOf": [
            _rows_of("request", answer),
            _rows_of("response", question | {"outcome": {"type": "string"}}),
        ],
        "$defs": components,
    }


def schema_text() -> str:
    """The schema as the file docs/log-entry.schema.json."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _queue_properties() -> dict[str, Any]:
    (queue_id, _, queue_text), (seq, _, seq_text) = _QUEUE_FIELDS
    note = "; null on the stdout of a process without a queue"
    return {
        queue_id: {
            "type": ["string", "null"],
            "pattern": "^[0-9a-f]{16}$",
            "description": queue_text + note,
        },
        seq: {"type": ["integer", "null"], "minimum": 1, "description": seq_text + note},
    }


def _compact(schema: dict[str, Any]) -> dict[str, Any]:
    """A field's schema without what says nothing here, and with what a BIGINT column holds."""
    schema = {name: said for name, said in schema.items() if name not in ("default", "in_metadata")}
    kinds = schema.get("anyOf", [])
    if all(set(kind) == {"type"} for kind in kinds) and kinds:
        del schema["anyOf"]
        schema["type"] = [kind["type"] for kind in kinds]
    if {"type": "integer"} in kinds:
        schema |= {"minimum": 0, "maximum": _MAX_INTEGER}
    return schema


def _rows_of(kind: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "if": {"properties": {"type": {"const": kind}}},
        "then": {"properties": properties},
    }
