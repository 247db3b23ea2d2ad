"""What a check found: one line of the report of ``open-llm-proxy check``, or of a start's log."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. `check` fails from PROBLEM on; `serve` refuses to start from MISTAKE on."""

    OK = "ok"
    NOTE = "note"  # perhaps on purpose, such as an optional provider without a key
    WARNING = "warning"  # works, but perhaps not as intended
    PROBLEM = "problem"  # a part of the service does not work
    MISTAKE = "mistake"  # settings or config.json that cannot be right
    UNUSABLE = "unusable"  # the environment cannot work


REFUSED = (Level.MISTAKE, Level.UNUSABLE)
FAILED = (Level.PROBLEM, *REFUSED)


@dataclass(frozen=True, slots=True)
class Finding:
    """`area` is what was checked, such as ``config`` or ``provider nrp``; no text has a secret."""

    area: str
    level: Level
    text: str


class PreflightFailed(Exception):
    """The server must not start; a sentence for each mistake."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = [finding for finding in findings if finding.level in REFUSED]
        super().__init__("\n".join(finding.text for finding in self.findings))

    @property
    def is_mistake(self) -> bool:
        """Whether settings or config.json must be corrected, not (only) the environment."""
        return any(finding.level is Level.MISTAKE for finding in self.findings)
