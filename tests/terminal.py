"""A command on a terminal of its own: what a person would see there, and keys to press."""

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

CTRL_C = b"\x03"
ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
DEADLINE_SECONDS = 60.0


class Terminal:
    """Runs `command` on a pseudo-terminal of `columns`; `close` ends it whatever it does.

    The terminal is the command's controlling one, so `press(CTRL_C)` is a real SIGINT. `text` is
    all that was shown so far, without the sequences that move the cursor or set colours.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], columns: int = 120) -> None:
        self.text = ""
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={"TERM": "xterm-256color", "PATH": os.environ["PATH"], **env},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def until(self, pattern: str) -> str:
        """Wait until the regular expression `pattern` was shown; returns what matched."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (found := re.search(pattern, self.text)):
            assert self._read(deadline), f"{pattern!r} was never shown: {self.text[-2000:]}"
        return found.group()

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def ended(self) -> int:
        """Wait for the end; returns the exit code."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self._read(deadline):
            pass
        return self._process.wait(max(0.1, deadline - time.monotonic()))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self, deadline: float) -> bool:
        """Take what is shown next; False at the end."""
        left_seconds = max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([self._master], [], [], left_seconds)
        assert readable and left_seconds, f"the deadline has passed: {self.text[-2000:]}"
        try:
            shown = os.read(self._master, 65_536)
        except OSError:  # EIO: the command has closed its side
            return False
        self.text += ESCAPE_SEQUENCE.sub("", shown.decode(errors="replace")).replace("\r\n", "\n")
        return bool(shown)
