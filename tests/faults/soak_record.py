"""The figures of a soak, in one JSON file that is written anew after each of its rounds."""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import oracle
from fault_mix import FaultMix
from trial import Trial, losses

FINDINGS_MAX = 200


@dataclass(slots=True)
class SoakFigures:
    """What a soak has come to so far; see fault_record.py for what counts as acknowledged."""

    seed: int
    seconds: float = 0.0
    rounds: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    queues: int = 0
    sent: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    acknowledged: int = 0
    stored: int = 0
    objects: int = 0
    lost: int = 0
    doubled: int = 0
    other: int = 0
    peak_memory_bytes: int = 0
    findings: list[str] = field(default_factory=list)


class SoakRecord:
    """Adds rounds up and writes the sum to `path`; None writes nothing."""

    def __init__(self, path: Path | None, seed: int) -> None:
        self.figures = SoakFigures(seed)
        self._path = path

    def add(self, trial: Trial, verdict: oracle.Verdict, mix: FaultMix, seconds: float) -> None:
        figures = self.figures
        figures.seconds += seconds
        figures.rounds += 1
        figures.faults = dict(sorted(Counter(mix.made).items()))
        figures.starts = mix.starts
        figures.peak_memory_bytes = mix.peak_memory_bytes
        figures.queues += verdict.queues
        figures.sent += len(trial.record.sent)
        figures.answered += verdict.answered
        figures.refused += len(trial.record.refused)
        figures.failed += len(trial.record.failed)
        figures.acknowledged += verdict.seen + verdict.answered
        figures.stored += verdict.rows
        figures.objects += verdict.objects
        lost, doubled = losses(verdict), verdict.count("double")
        figures.lost += lost
        figures.doubled += doubled
        figures.other += len(verdict.violations) - lost - doubled + len(trial.record.wrong)
        figures.findings.extend(
            f"{v.kind}: {v.sentence}" for v in verdict.violations[:FINDINGS_MAX]
        )
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self.figures), indent=1) + "\n")
        os.replace(new, self._path)
