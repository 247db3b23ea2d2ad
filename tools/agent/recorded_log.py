"""Finds a session in the log, with the reading functions of the proxy's archive.

It needs what `pip install ".[agent,archive]"` installs: the archive with DuckDB, and boto3 for a
bucket.
"""

import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from .recording import COLUMNS, NoRecording, Recording, make_recording, text_names
from .settings import InputError, shown

Row = dict[str, Any]


def read_recording(session_id: str, place: str) -> Recording:
    """The session from a folder, a file or s3://bucket/prefix. Raises InputError.

    What could not be read of the log is said on standard error.
    """
    try:
        from open_llm_proxy.archive.sources.opening import open_source
        from open_llm_proxy.archive.sources.source import Environment, LogSourceError
    except ImportError as error:
        raise InputError(
            f'--from-session needs the proxy\'s package ({error}): pip install ".[agent,archive]"'
        ) from error
    try:
        with open_source(place, Environment(None, _s3_client)) as source:
            rows, texts = _found(source, session_id)
            for sentence in source.problems.sentences():
                print(f"agent_runner: --log: {shown(sentence)}", file=sys.stderr)
        return make_recording(session_id, rows, texts)
    except (LogSourceError, NoRecording) as error:
        raise InputError(f"--from-session: {error}.") from error


def _found(source: Any, session_id: str) -> tuple[list[Row], dict[str, str]]:
    """The rows of a session in the order of time, and the texts that they name.

    The newest days are read first. A session may go on over midnight: reading ends with the first
    day that has nothing of it.
    """
    rows: list[Row] = []
    texts: dict[str, str] = {}
    for day in reversed(source.days()):
        found = [*_rows(source, day, "session_id", [session_id])]
        if rows and not found:
            break
        rows += found
        names = sorted(text_names(found))
        for row in _rows(source, day, "text_sha256", names) if names else ():
            texts[row["text_sha256"]] = row["content"]
    if not rows:
        raise NoRecording(f"{source.name} has no session {session_id}")
    return sorted(rows, key=lambda row: str(row["timestamp"])), texts


def _rows(source: Any, day: str, column: str, values: list[str]) -> Iterator[Row]:
    """The rows of a day with one of these values in a column."""
    from open_llm_proxy.archive.tables.connection import open_tables
    from open_llm_proxy.archive.tables.filters import Filters, literal

    start = datetime.fromisoformat(day) if day else None
    whole_day = Filters(since=start, until=start and start + timedelta(days=1))
    only = f"{column} IN ({', '.join(map(literal, values))})"
    with open_tables(source, whole_day, columns=COLUMNS, only=only) as tables:
        names = ", ".join(COLUMNS)
        yield from tables.rows(f"SELECT {names} FROM all_entries WHERE {only}")


def _s3_client() -> Any:
    import boto3

    return boto3.client("s3")
