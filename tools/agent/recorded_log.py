"""Finds a session in the log, with the reading functions of the proxy's archive.

It needs what `pip install ".[agent]"` installs: the archive, and boto3 for a bucket.
"""

import json
from collections.abc import Iterator
from typing import Any

from .recording import NoRecording, Recording, make_recording
from .settings import InputError

Row = dict[str, Any]


def read_recording(session_id: str, place: str) -> Recording:
    """The session from a folder, a file or s3://bucket/prefix. Raises InputError."""
    try:
        from open_llm_proxy.archive.sources import Environment, LogSourceError, open_source
    except ImportError as error:
        raise InputError(
            f'--from-session needs the proxy\'s package ({error}): pip install ".[agent]"'
        ) from error
    try:
        source = open_source(place, Environment(None, _s3_client))
        if source is None:
            raise InputError("--log must be a folder, a file or s3://bucket/prefix.")
        rows, texts = _found(source, session_id)
        return make_recording(session_id, rows, texts)
    except (LogSourceError, NoRecording) as error:
        raise InputError(f"--from-session: {error}.") from error


def _found(source: Any, session_id: str) -> tuple[list[Row], dict[str, str]]:
    """The rows of a session in the order of time, and the texts of the days that have some.

    The newest days are read first. A session may go on over midnight: reading ends with the first
    day that has nothing of it.
    """
    wanted = json.dumps(session_id, ensure_ascii=False)[1:-1].encode("utf-8", "replace")
    rows: list[Row] = []
    texts: dict[str, str] = {}
    for day in reversed(source.days()):
        found = [r for r in _rows(source, day, wanted) if r.get("session_id") == session_id]
        if rows and not found:
            break
        rows += found
        if found:
            texts |= {r["text_sha256"]: r["content"] for r in _rows(source, day, b"text_sha256")}
    if not rows:
        raise NoRecording(f"{source.name} has no session {session_id}")
    return sorted(rows, key=lambda row: str(row.get("timestamp"))), texts


def _rows(source: Any, day: str, wanted: bytes) -> Iterator[Row]:
    """The rows of a day whose line has `wanted`; for texts only those."""
    kinds = ("text",) if wanted == b"text_sha256" else ("request", "response")
    for item in source.objects(day):
        for line in source.lines(item):
            if wanted not in line:
                continue
            try:
                row = json.loads(line)
            except ValueError:
                continue  # a line of another program in a capture of stdout
            if isinstance(row, dict) and row.get("type") in kinds:
                yield row


def _s3_client() -> Any:
    import boto3

    return boto3.client("s3")
