"""A queue below LOG_QUEUE_DIR that nobody uploads, for /health, the metrics and the start's block.

Rows that nobody uploads must not look like rows that do not exist. Who finds them is
orphans/left_queues.py.
"""

import time
from dataclasses import dataclass
from datetime import datetime

from open_llm_proxy.queue.messages import counted


@dataclass(frozen=True, slots=True)
class LeftQueue:
    """`reason` is a sentence that says what helps. `rows` is None where they cannot be counted.

    `since` is the time of its oldest row, or that at which it was moved to the quarantine.
    """

    path: str
    reason: str
    rows: int | None
    since: str | None
    is_quarantined: bool = False

    def age_seconds(self) -> float:
        """Since `since`; 0 where that is not known."""
        if self.since is None:
            return 0.0
        return max(0.0, time.time() - datetime.fromisoformat(self.since).timestamp())

    def __str__(self) -> str:
        since = f" since {self.since}" if self.since is not None else ""
        rows = counted(self.rows, "row") if self.rows is not None else "an unknown number of rows"
        return f"not uploaded{since}: {rows} in {self.path}: {self.reason}"
