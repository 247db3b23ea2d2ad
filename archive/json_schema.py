"""What the documentation and the readers of the log get from the definition of an entry.

The JSON Schema of a line, the field table of LOGGING.md and the column types of its DuckDB view
all come from entry.py, so that none of them can say something else than the rows do.
"""

import json
from typing import Any

import msgspec

from open_llm_proxy.archive.entry import (
    FORMAT,
    PARTS,
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
    InMetadata,
    LoggedToolCall,
    ToolResult,
    described_fields,
    head_body,
    in_metadata,
)

_QUEUE_FIELDS = (
    ("queue_id", str, "queue that stored the row: 16 hex digits"),
    ("seq", int, "1, 2, 3 … without a gap in each queue"),
)
_JSON_NAMES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list[ToolResult]: "list of {tool_call_id, content}",
    list[LoggedToolCall]: "list of {id, name, arguments}",
}
_COLUMN_TYPES = {
    str: "VARCHAR",
    int: "BIGINT",
    float: "DOUBLE",
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
        "})\n"
        "WHERE type <> 'schema';\n"
        "```"
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one line, as it is stored and printed."""
    _, components = msgspec.json.schema_components(PARTS, ref_template="#/$defs/{name}")
    fields: dict[str, Any] = {}
    for part in PARTS:
        parts_own = components.pop(part.__name__)["properties"]
        fields |= {name: _without_null(schema) for name, schema in parts_own.items()}
    fields["timestamp"]["pattern"] = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"
    fields["type"]["enum"].remove("schema")
    fields["request_id"]["pattern"] = "^[0-9a-f]{16}$"
    for name in fields:
        if name.endswith("_sha256"):
            fields[name]["pattern"] = "^[0-9a-f]{64}$"
    # A damaged row lacks them where the queue's own description is damaged, too.
    made_by = ["proxy_version", "config_sha256", "instance"]
    of_call = ["request_id", "key_name", "endpoint", *made_by]
    components["Row"] = {
        "description": "An entry. It has the fields that have a value, in this order.",
        "type": "object",
        "properties": _queue_properties() | fields,
        "required": ["timestamp", "type"],
        "additionalProperties": False,
        "allOf": [
            _rows_of("request", of_call, RESPONSE_FIELDS),
            _rows_of("response", [*of_call, "outcome"], REQUEST_FIELDS),
            _rows_of("text", ["text_sha256", "content", *made_by], REQUEST_FIELDS),
            _rows_of("damaged", ["error"], REQUEST_FIELDS),
        ],
    }
    components["Head"] = _head_schema(fields["timestamp"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Log entry of open-llm-proxy",
        "description": "One line of a log object: its head, which is the first, or an entry.",
        "if": {"properties": {"type": {"const": "schema"}}},
        "then": {"$ref": "#/$defs/Head"},
        "else": {"$ref": "#/$defs/Row"},
        "$defs": components,
    }


def schema_text() -> str:
    """The schema as the file docs/log-entry.schema.json."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _head_schema(timestamp: dict[str, Any]) -> dict[str, Any]:
    columns = {name: {"const": value} for name, value in json.loads(head_body()).items()}
    properties = {
        **_queue_properties(),
        "seq": {"type": "null"},
        "timestamp": timestamp | {"description": "start of the object's window"},
        **columns,
    }
    return {
        "description": f"The head of an object of format {FORMAT}: every field, none of a call.",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _queue_properties() -> dict[str, Any]:
    (queue_id, _, queue_text), (seq, _, seq_text) = _QUEUE_FIELDS
    note = "; absent on the stdout of a process without a queue"
    return {
        queue_id: {"type": "string", "pattern": "^[0-9a-f]{16}$", "description": queue_text + note},
        seq: {"type": "integer", "minimum": 1, "description": seq_text + note},
    }


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A field's schema as it is where it has a value, within what a BIGINT column holds."""
    schema = {name: said for name, said in schema.items() if name != "default"}
    kinds = [kind for kind in schema.pop("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        schema |= kinds[0]
    if "enum" in schema:
        schema["enum"] = [value for value in schema["enum"] if value is not None]
    if schema.get("type") in ("integer", "number"):
        schema["minimum"] = 0
    if schema.get("type") == "integer":
        schema["maximum"] = _MAX_INTEGER
    return schema


def _rows_of(kind: str, required: list[str], absent: tuple[str, ...]) -> dict[str, Any]:
    return {
        "if": {"properties": {"type": {"const": kind}}},
        "then": {"required": required, "properties": dict.fromkeys(absent, False)},
    }
