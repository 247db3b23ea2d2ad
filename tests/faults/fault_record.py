"""The figures of a run, one JSON line each, for the table in docs/durability.md.

Every verdict of the oracle adds a line, and so does every test when it is over. Nothing is
written unless the environment variable FAULT_RECORD names a file.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import oracle

VARIABLE = "FAULT_RECORD"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one verdict adds to the table.

    `acknowledged` counts the rows that somebody outside relied upon: the request row of every
    call that the provider saw, and the response row of every call that was answered in full.
    """

    test: str
    variant: str
    repetitions: int
    calls: int
    acknowledged: int
    stored: int
    lost: int
    doubled: int
    other: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended: `passed`, `failed` or `skipped`, and for how long it ran."""

    test: str
    outcome: str
    seconds: float


class FaultRecord:
    """Appends to `path`; None writes nothing."""

    def __init__(self, path: Path | None, test: str = "") -> None:
        self._path = path
        self._test = test

    @classmethod
    def from_environment(cls, test: str) -> "FaultRecord":
        path = os.environ.get(VARIABLE)
        return cls(Path(path) if path else None, test)

    def add(self, verdict: oracle.Verdict, repetitions: int, variant: str) -> None:
        lost = sum(verdict.count(kind) for kind in ("lost", "gap", "unpaired"))
        doubled = verdict.count("double")
        self._append(
            Figures(
                test=self._test,
                variant=variant,
                repetitions=repetitions,
                calls=verdict.answered,
                acknowledged=verdict.seen + verdict.answered,
                stored=verdict.rows,
                lost=lost,
                doubled=doubled,
                other=len(verdict.violations) - lost - doubled,
            )
        )

    def end(self, outcome: str, seconds: float) -> None:
        self._append(Outcome(self._test, outcome, seconds))

    def _append(self, figures: Figures | Outcome) -> None:
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(figures)) + "\n")
