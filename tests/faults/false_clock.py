"""A clock that a test sets, for the processes that are started with its settings (libfaketime).

The monotonic clock goes on as it does. Where the program libfaketime is missing, the clock is
`ClockUnavailable`, whose message is the reason to skip a test.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")


class ClockUnavailable(Exception):
    """This machine has no libfaketime."""


class FalseClock:
    """Begins true; `jump` moves it, also under running processes."""

    def __init__(self, folder: Path) -> None:
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
        if library is None:
            raise ClockUnavailable("libfaketime is not installed")
        self._library = library
        self._path = folder / "clock"
        self.jump(0)

    @property
    def settings(self) -> dict[str, str]:
        """The environment of a process that lives by this clock."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Else waits on the monotonic clock, CPython's lock among them, end too early.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            "NO_FAKE_STAT": "1",
        }

    def jump(self, offset_seconds: float) -> None:
        """Be `offset_seconds` ahead of the true time from now on."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{offset_seconds:+.3f}")
        os.replace(new, self._path)

    def jump_to(self, moment: datetime) -> None:
        self.jump((moment - datetime.now(UTC)).total_seconds())

    def clear(self) -> None:
        """Remove what killed processes left in shared memory.

        It is named by the process id, and libfaketime refuses to start where the name is taken.
        """
        for path in _SHARED_MEMORY.glob("faketime_shm_*"):
            number = path.name.rpartition("_")[2]
            if not Path(f"/proc/{number}").exists():
                path.unlink(missing_ok=True)
                (_SHARED_MEMORY / f"sem.faketime_sem_{number}").unlink(missing_ok=True)
