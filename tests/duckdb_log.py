"""DuckDB as a reader of the log uses it, and what LOGGING.md documents: statements, scripts."""

import re
from pathlib import Path
from typing import Any

import duckdb
from duckdb_extensions import import_extension

from stores import S3Server

LOGGING = Path(__file__).resolve().parent.parent / "LOGGING.md"
_BLOCK = re.compile(r"^```(sql|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def connect(extensions: Path) -> duckdb.DuckDBPyConnection:
    """A connection with httpfs, which is kept in the folder `extensions`."""
    connection = duckdb.connect(config={"extension_directory": str(extensions)})
    import_extension("httpfs", con=connection)
    connection.execute("LOAD httpfs")
    return connection


def statements() -> list[str]:
    """Every SQL block of LOGGING.md, in order."""
    return [text for kind, text in _BLOCK.findall(LOGGING.read_text()) if kind == "sql"]


def script(words: str) -> str:
    """The one Python block of LOGGING.md that has these words."""
    blocks = [text for kind, text in _BLOCK.findall(LOGGING.read_text()) if kind == "python"]
    (found,) = (text for text in blocks if words in text)
    return found


def secret(server: S3Server) -> str:
    """The statement that lets DuckDB into a store, in the form of the README."""
    host = server.endpoint.partition("://")[2]
    ssl = "TRUE" if server.endpoint.startswith("https") else "FALSE"
    return (
        f"CREATE OR REPLACE SECRET (TYPE S3, ENDPOINT '{host}', USE_SSL '{ssl}', "
        f"URL_STYLE 'path', KEY_ID '{server.access_key}', SECRET '{server.secret_key}');"
    )


def aimed(statement: str, folder: str) -> str:
    """A statement of LOGGING.md with another folder in place of its example."""
    return statement.replace("s3://logs-<ns>/2026-04-07/", folder)


def records(connection: duckdb.DuckDBPyConnection, statement: str) -> list[dict[str, Any]]:
    """What a statement gives, as rows with names."""
    result = connection.execute(statement)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
