"""A pytest plugin that runs inside openai-python's suite: one JSON line per test that ended.

It is imported by another environment than ours, so it imports nothing of ours. `OUTCOMES` names
the file; a line has the test's id and its outcome and, where an exception ended it, what that says
and the error code of the API that it holds.
"""

import json
import os
from typing import Any


class _Outcomes:
    def __init__(self) -> None:
        self._found: dict[str, dict[str, Any]] = {}

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        if call.when != "call" and call.excinfo is None:
            return
        ended: dict[str, Any] = {"test": item.nodeid, "passed": call.excinfo is None}
        if call.excinfo is not None:
            error = call.excinfo.value
            ended |= {"code": getattr(error, "code", None), "reason": call.excinfo.exconly()}
        self._found[item.nodeid] = ended

    def pytest_sessionfinish(self) -> None:
        with open(os.environ["OUTCOMES"], "w") as file:
            file.writelines(f"{json.dumps(ended, default=str)}\n" for ended in self._found.values())


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(_Outcomes(), "outcomes")
