"""The log as web pages beside the demo: `open-llm-proxy logs view`, in a process of its own.

This is the only place that starts it. Reading the log so takes nothing from the proxy.
"""

import asyncio
import contextlib
import re
import sys
from pathlib import Path

PROGRAM = "open_llm_proxy.server.commands.cli"
START_SECONDS = 20.0
END_SECONDS = 5.0
_URL = re.compile(r"http://\S+")


class LogPage:
    """`start` it once there is a log to read; `close` in any case."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, folder: Path) -> str | None:
        """Where the pages are; None where they cannot be shown, such as for want of a library."""
        command = (sys.executable, "-m", PROGRAM, "logs", "view", str(folder), "--port", "0")
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *command, stdin=nothing, stdout=pipe, stderr=nothing
        )
        self._process = process
        assert process.stdout is not None, "it is a pipe"
        try:
            async with asyncio.timeout(START_SECONDS):
                said = await process.stdout.readline()
        except TimeoutError:
            return None
        found = _URL.search(said.decode(errors="replace"))
        return None if found is None else found[0]

    async def close(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
