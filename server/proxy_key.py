"""One proxy key with its bounds: which models, until when, how many requests a minute.

    {"key": "…", "models": ["kimi", "anthropic/"], "expires": "2026-12-31",
     "requests_per_minute": 60}

Only what needs no memory beyond the last minute is bounded here. What a key has spent is in the
log, under its name.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

# What an HTTP header can carry behind `Bearer `.
SENDABLE = re.compile(r"[!-~]+")
KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FIELDS = ("key", "models", "expires", "requests_per_minute")
MAX_REQUESTS_PER_MINUTE = 1_000_000


class KeyEntryError(ValueError):
    """An entry cannot be used; the message completes ``keys.json: app: …`` and has no key in it."""


@dataclass(frozen=True, slots=True)
class ProxyKey:
    """`models` are ids, and prefixes that end in ``/`` or ``*``; empty: all models."""

    key: str = field(repr=False)
    models: tuple[str, ...] = ()
    expires_at: datetime | None = None
    requests_per_minute: int | None = None

    def allows(self, model: str) -> bool:
        """Whether calls of `model` are allowed."""
        return not self.models or any(_covers(entry, model) for entry in self.models)

    def is_expired(self, now: datetime | None = None) -> bool:
        return self.expires_at is not None and (now or datetime.now(UTC)) >= self.expires_at

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "ProxyKey":
        """The key of an entry of keys.json; raises `KeyEntryError`."""
        for name in entry:
            if name not in FIELDS and not name.startswith("_"):
                near = difflib.get_close_matches(name, FIELDS, 1)
                advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(FIELDS)}"
                raise KeyEntryError(f"{name!r} is not a known field; {advice}")
        key, models = entry.get("key"), entry.get("models", [])
        if not isinstance(key, str) or not SENDABLE.fullmatch(key):
            raise KeyEntryError("key must be a text of visible ASCII characters without blanks")
        if not isinstance(models, list) or not all(isinstance(m, str) and m for m in models):
            raise KeyEntryError("models must be a list of model ids and prefixes")
        if "models" in entry and not models:
            raise KeyEntryError("models is empty; leave it out to allow all models")
        return cls(
            key,
            tuple(models),
            expiry(entry["expires"]) if "expires" in entry else None,
            _per_minute(entry["requests_per_minute"]) if "requests_per_minute" in entry else None,
        )


def expiry(text: object) -> datetime:
    """The moment that an entry's `expires` names; a date ends with its last moment, in UTC."""
    try:
        moment = datetime.fromisoformat(str(text))
        is_date = len(str(text)) <= len("2026-12-31")
    except ValueError:
        raise KeyEntryError(
            "expires must be a date or a time, such as 2026-12-31 or 2026-12-31T18:00:00Z"
        ) from None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return moment + timedelta(days=1) if is_date else moment


def _per_minute(value: object) -> int:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, int) or not is_count or not 1 <= value <= MAX_REQUESTS_PER_MINUTE:
        raise KeyEntryError(
            f"requests_per_minute must be a whole number from 1 to {MAX_REQUESTS_PER_MINUTE}"
        )
    return value


def _covers(entry: str, model: str) -> bool:
    if entry.endswith(("/", "*")):
        return model.startswith(entry.removesuffix("*"))
    return model == entry
