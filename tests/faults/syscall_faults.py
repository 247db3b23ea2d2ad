"""System calls that fail, hang or kill on demand, by strace's injection. Needs root.

An injection reads as in strace(1): ``fdatasync:error=EIO:when=5+`` fails every fdatasync of a
thread from its fifth on. Each thread counts for itself.
"""

import asyncio
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

ATTACH_SECONDS = 20.0


class TracingUnavailable(Exception):
    """This machine cannot trace processes; the message is the reason to skip a test."""


def from_start(*injections: str, path: Path | None = None) -> tuple[str, ...]:
    """The prefix of a command that meets the injections from its first instruction on.

    With `path` they hit only calls on that file.
    """
    only = () if path is None else ("-P", str(path))
    # seccomp-bpf stops the process at the traced calls only.
    return ("strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", *only, *_options(injections))


@asynccontextmanager
async def attached(pid: int, *injections: str, log: Path) -> AsyncIterator[None]:
    """The injections hit the running process `pid`, with all its threads, inside the block.

    Counting begins anew. `log` is a file that shows afterwards what was injected.
    """
    command = ("strace", "-f", "-o", str(log), *_options(injections), "-p", str(pid))
    strace = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert strace.stderr is not None
    try:
        said = await asyncio.wait_for(strace.stderr.readline(), ATTACH_SECONDS)
        if b"not permitted" in said:
            raise TracingUnavailable(said.decode().strip())
        assert re.search(rb"Process \d+ attached", said), said.decode()
        yield
    finally:
        if strace.returncode is None:
            strace.send_signal(signal.SIGINT)
        await strace.communicate()


def require_strace() -> None:
    """Raise `TracingUnavailable` where strace cannot run a process."""
    try:
        command = ("strace", "-f", "-qq", "-o", "/dev/null", "true")
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except FileNotFoundError:
        raise TracingUnavailable("the program strace is not installed") from None
    except subprocess.CalledProcessError as error:
        raise TracingUnavailable(error.stderr.strip()) from None


def _options(injections: tuple[str, ...]) -> tuple[str, ...]:
    calls = ",".join(injection.partition(":")[0] for injection in injections)
    inject = (option for text in injections for option in ("-e", f"inject={text}"))
    return ("-e", f"trace={calls}", *inject)
