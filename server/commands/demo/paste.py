"""Commands that work as they are pasted into the shell from which the demo was started."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

NAME = "open-llm-proxy"


def program() -> str:
    """This program: by its name if the shell finds it, else by its path."""
    return _shortest(Path(sys.argv[0]).with_name(NAME)) or f"{_python()} -m {_MODULE}"


def has_duckdb() -> bool:
    """Whether `duckdb` below, and the program's commands that read the log, have what they need."""
    return importlib.util.find_spec("duckdb") is not None


def duckdb(query: str) -> str:
    """A command that shows the result of a query; the query has no double quotes."""
    code = f'import duckdb; print(duckdb.sql(\\"{query}\\"))'
    return f'{_python()} -c "{code}"'


_MODULE = "open_llm_proxy.server.commands.cli"


def _python() -> str:
    return _shortest(Path(sys.executable)) or sys.executable


def _shortest(path: Path) -> str | None:
    """How to call the file at `path` from here; None where there is none."""
    path = path.absolute()
    if not os.access(path, os.X_OK):
        return None
    if shutil.which(path.name) == str(path):
        return path.name
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
