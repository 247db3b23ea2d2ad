"""The log as web pages beside the demo: `open-llm-proxy logs view`, in a process of its own.

This is the only place that starts it, so that reading the log can take nothing from the proxy.
"""

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tornado.testing import bind_unused_port

PROGRAM = "open_llm_proxy.server.commands.cli"
COMMAND = "open_llm_proxy.archive.commands.view_command"
END_SECONDS = 5.0


@contextlib.contextmanager
def log_page(folder: Path) -> Iterator[str | None]:
    """The URL of the pages over the log in `folder`, while the block runs; None if there are none.

    There are none where the program was installed without what they need.
    """
    if importlib.util.find_spec(COMMAND) is None or importlib.util.find_spec("duckdb") is None:
        yield None
        return
    listening, port = bind_unused_port()
    listening.close()
    command = [sys.executable, "-m", PROGRAM, "logs", "view", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
