"""Finds a session in the log, with the reading functions of the proxy's archive.

It needs what `pip install ".[agent,archive]"` installs: DuckDB, and boto3 for a bucket.
"""

from typing import Any

from .recording import NoRecording, Recording, make_recording
from .settings import InputError

Row = dict[str, Any]


def read_recording(session_id: str, place: str) -> Recording:
    """The session from a folder, a file or s3://bucket/prefix. Raises InputError."""
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
        return make_recording(session_id, rows, texts)
    except (LogSourceError, NoRecording) as error:
        raise InputError(f"--from-session: {error}.") from error


def _found(source: Any, session_id: str) -> tuple[list[Row], dict[str, str]]:
    """The rows of a session in the order of time, and the texts that they name."""
    from open_llm_proxy.archive.tables.connection import open_tables
    from open_llm_proxy.archive.tables.filters import literal

    is_wanted = f"session_id = {literal(session_id)} OR type = 'text'"
    with open_tables(source, only=is_wanted) as tables:
        found = tables.rows(
            "SELECT * FROM entries WHERE type IN ('request', 'response') ORDER BY timestamp, seq"
        )
        texts = tables.rows("SELECT DISTINCT text_sha256, content FROM entries WHERE type = 'text'")
    if not found:
        raise NoRecording(f"{source.name} has no session {session_id}")
    rows = [{name: value for name, value in row.items() if value is not None} for row in found]
    return rows, {row["text_sha256"]: row["content"] for row in texts}


def _s3_client() -> Any:
    import boto3

    return boto3.client("s3")
