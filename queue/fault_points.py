"""Named places at which a test may end the process, to prove that no step may be torn.

`reach("acked")` costs one dictionary look-up and does nothing, unless the environment variable
`OPEN_LLM_PROXY_FAULT_POINT=acked:3` was set when the process started: then the third time it
gets there the process is ended with SIGKILL, as a power cut or the OOM killer would.
The names follow a queue's life: birth, seal, put, ack, vacuum, removal, adoption.
"""

import os
import signal

VARIABLE = "OPEN_LLM_PROXY_FAULT_POINT"


def _armed() -> dict[str, int]:
    name, _, count = os.environ.get(VARIABLE, "").partition(":")
    return {name: int(count or 1)} if name else {}


_countdown = _armed()


def reach(name: str) -> None:
    """Pass the point `name`; ends the process if the environment asked for it."""
    left = _countdown.get(name)
    if left is None:
        return
    _countdown[name] = left - 1
    if left == 1:
        os.kill(os.getpid(), signal.SIGKILL)
