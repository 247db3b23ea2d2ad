"""What one stored object says wrongly by itself: its key, its lines, their fields.

The key must be true of the bytes and of the rows' own timestamps; every line must be a whole row
that DuckDB reads.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import log_contract

_KEY = re.compile(
    r"(\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d)-([0-9a-f]{16})-(\d+)-(\d+)-([0-9a-f]{12})\.jsonl"
)
# A lone surrogate, or NUL in the spelling of json.dumps.
_UNSAFE = re.compile(r"[\ud800-\udfff]|(?<!\\)(?:\\\\)*\\u0000")
_ID = re.compile(r"[0-9a-f]{16}")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule: `lost`, `double`, `gap`, `unpaired`, `content`, `schema`, `key`,
    `damaged` or `unknown`, and a sentence."""

    kind: str
    sentence: str


def read_object(
    key: str, data: bytes, prefix: str, window_seconds: int
) -> tuple[list[Row], list[Violation]]:
    """The rows of one object, and everything that its key says wrongly about them."""
    broken: list[Violation] = []
    rows: list[Row] = []
    if not data.endswith(b"\n"):
        broken.append(Violation("schema", f"{key} is empty or does not end with a line end"))
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except ValueError as error:
            broken.append(Violation("schema", f"{key}, line {number}: {error}"))
            continue
        if number == 1:
            if error := _head_error(key.removeprefix(prefix), row):
                broken.append(Violation("key", f"{key}: {error}"))
            continue
        if error := _field_error(row):
            broken.append(Violation("schema", f"{key}, line {number}: {error}"))
        if len(line) >= log_contract.MAX_LINE_BYTES:
            broken.append(Violation("schema", f"{key}, line {number} has {len(line)} bytes"))
        if b"\\u" in line and _UNSAFE.search(json.dumps(row, ensure_ascii=False)):
            broken.append(Violation("schema", f"{key}, line {number} holds what DuckDB refuses"))
        if isinstance(row, dict):
            rows.append(row)
    errors = _key_errors(key, data, rows, prefix, window_seconds)
    broken.extend(Violation("key", f"{key}: {error}") for error in errors)
    return rows, broken


def _head_error(key: str, row: object) -> str | None:
    """What is wrong with an object's first line: its queue and its window are those of its key."""
    if not isinstance(row, dict) or row.get("type") != "schema":
        return "its first line is no head"
    if (match := _KEY.fullmatch(key)) is None:
        return None  # said of the key
    day, _, time = match[1].partition("/")
    start = f"{day}T{time.replace('-', ':')}.000Z"
    if list(row.items()) != list(log_contract.head(match[2], start).items()):
        return "its head is not that of its queue and window"
    return None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a field is there twice")
    return row


def _field_error(row: object) -> str | None:
    if not isinstance(row, dict):
        return "this is no JSON object"
    return log_contract.broken_shape(row)


def _key_errors(
    key: str, data: bytes, rows: list[Row], prefix: str, window_seconds: int
) -> Iterator[str]:
    match = _KEY.fullmatch(key.removeprefix(prefix))
    if match is None or not key.startswith(prefix):
        yield "this is no key of ours"
        return
    moment, queue_id, first, last, md5 = match.groups()
    try:
        start = datetime.strptime(moment, "%Y-%m-%d/%H-%M-%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        yield f"{moment} is no time"
        return
    if start % window_seconds:
        yield f"{moment} is no start of a window of {window_seconds} s"
    if len(first) != len(last) or len(first) < 8:
        yield "first and last are not zero-padded to one width"
    if hashlib.md5(data).hexdigest()[:12] != md5:
        yield "the MD5 in the key is not that of the bytes"
    if {row.get("queue_id") for row in rows} != {queue_id}:
        yield "it holds rows of another queue"
    in_order = [row.get("seq") for row in rows] == list(range(int(first), int(first) + len(rows)))
    if not in_order or int(last) != int(first) + len(rows) - 1:
        yield "its rows are not first to last in their order"
    for row in rows:
        stamp = str(row.get("timestamp"))
        inside = _TIMESTAMP.fullmatch(stamp) and (
            start <= datetime.fromisoformat(stamp).timestamp() < start + window_seconds
        )
        if not inside and row.get("type") != "damaged":
            yield f"row {row.get('seq')} of {stamp} lies outside its window"


def row_violations(row: Row) -> Iterator[Violation]:
    """What is wrong with a row by itself."""
    name, kind = f"row {row.get('queue_id')}/{row.get('seq')}", row.get("type")
    if kind not in log_contract.TYPES:
        yield Violation("schema", f"{name} has the type {kind!r}")
        return
    if not _ID.fullmatch(str(row.get("queue_id"))) or type(row.get("seq")) is not int:
        yield Violation("schema", f"{name} has no proper queue_id and seq")
    of_call = log_contract.IN_EVERY_CALL if kind in ("request", "response") else ()
    if absent := [field for field in (*log_contract.IN_EVERY_ROW, *of_call) if field not in row]:
        yield Violation("schema", f"{name}: the fields {absent} are missing")
    if not of_call:
        return
    if not _ID.fullmatch(str(row.get("request_id"))):
        yield Violation("schema", f"{name} has the request_id {row.get('request_id')!r}")
    foreign = log_contract.RESPONSE_FIELDS if kind == "request" else log_contract.REQUEST_FIELDS
    if filled := [field for field in foreign if row.get(field) is not None]:
        yield Violation("schema", f"{name} is a {kind} row and fills {filled}")
    if kind == "response" and row.get("outcome") not in log_contract.OUTCOMES:
        yield Violation("schema", f"{name} has the outcome {row.get('outcome')!r}")
