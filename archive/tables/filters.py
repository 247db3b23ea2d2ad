"""The filters of every reader: which calls, as one value that becomes a SQL condition.

`Filters` is made from a command's options or from a page's query. It restricts `turns`; the other
views follow from that (see views.py).
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

FAILED = "failed"
"""An outcome to filter by: every call that ended in another way than `ok`."""

_AGO = re.compile(r"(\d+)\s*(m|min|h|d|w)")
_UNITS = {"m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_TEXTS = (
    "user_question",
    "user_message_this_turn",
    "tool_results_this_turn::VARCHAR",
    "reasoning_content",
    "content",
    "tool_calls::VARCHAR",
    "error",
)


class FilterError(ValueError):
    """A filter's value cannot be understood; one sentence that says which ones can."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which calls: all that are given must hold. Times are UTC; `until` itself is not included.

    `app`, `model`, `key` and `outcome` are compared as a whole, or with ``*`` for any characters.
    """

    since: datetime | None = None
    until: datetime | None = None
    app: str | None = None
    model: str | None = None
    key: str | None = None
    session: str | None = None
    outcome: str | None = None
    grep: str | None = None
    limit: int | None = None

    @classmethod
    def parsed(
        cls, *, since: str | None, until: str | None, now: datetime | None = None, **others: Any
    ) -> "Filters":
        """Filters of the words of options; raises `FilterError`.

        ``2h``, ``30m``, ``7d`` are so long ago; a date is its whole day; a time is UTC unless it
        says otherwise.
        """
        now = now or datetime.now(UTC).replace(tzinfo=None)
        begin = _moment(since, now, is_end=False)
        end = _moment(until, now, is_end=True)
        if begin and end and begin >= end:
            raise FilterError(f"--since {since} is not before --until {until}")
        return cls(since=begin, until=end, **others)

    @property
    def first_day(self) -> str | None:
        """The first day that can have such calls; None where there is no first."""
        return None if self.since is None else self.since.date().isoformat()

    @property
    def last_day(self) -> str | None:
        """The last day that can have such calls; None where there is no last."""
        if self.until is None:
            return None
        return (self.until - timedelta(microseconds=1)).date().isoformat()

    @property
    def only_time(self) -> "Filters":
        """The filters that rows of any type have."""
        return Filters(since=self.since, until=self.until)

    @property
    def chooses_calls(self) -> bool:
        """Whether anything but the time is restricted."""
        return replace(self, since=None, until=None, limit=None) != Filters()

    @property
    def needs_texts(self) -> bool:
        """Whether the condition reads what was said."""
        return self.grep is not None

    def where(self, time: str = "started") -> tuple[str, dict[str, Any]]:
        """A condition over `turns` and its named parameters; `time` is the column of the time."""
        terms: list[str] = []
        values: dict[str, Any] = {}
        if self.since is not None:
            terms.append(f"{time} >= $since")
            values["since"] = self.since
        if self.until is not None:
            terms.append(f"{time} < $until")
            values["until"] = self.until
        if self.app is not None:
            columns = ("app", "origin", "client")
            terms.append("(" + " OR ".join(_like(name, "app", self.app) for name in columns) + ")")
            values["app"] = _pattern(self.app)
        for name, column, value in (("model", "model", self.model), ("key", "key_name", self.key)):
            if value is not None:
                terms.append(_like(column, name, value))
                values[name] = _pattern(value)
        if self.session is not None:
            terms.append("$session IN (session_key, session_id, request_id)")
            values["session"] = self.session
        if self.outcome == FAILED:
            terms.append("outcome NOT IN ('ok', 'open')")
        elif self.outcome is not None:
            terms.append(_like("outcome", "outcome", self.outcome))
            values["outcome"] = _pattern(self.outcome)
        if self.grep is not None:
            found = (f"contains(lower({text}), lower($grep))" for text in _TEXTS)
            terms.append(f"({' OR '.join(found)})")
            values["grep"] = self.grep
        return " AND ".join(terms) or "true", values

    def literal_where(self, time: str = "started") -> str:
        """The same condition with its values written into it, for the text of a view."""
        condition, values = self.where(time)
        return re.sub(r"\$(\w+)", lambda found: literal(values[found[1]]), condition)


def literal(value: Any) -> str:
    """A value as a SQL literal."""
    if isinstance(value, datetime):
        return f"TIMESTAMP '{value.isoformat(sep=' ')}'"
    text = str(value)
    if "\0" in text:
        raise FilterError("a filter's text cannot hold the character NUL")
    return "'" + text.replace("'", "''") + "'"


def _like(column: str, name: str, value: str) -> str:
    return f"{column} LIKE ${name} ESCAPE '\\'" if "*" in value else f"{column} = ${name}"


def _pattern(value: str) -> str:
    if "*" not in value:
        return value
    return re.sub(r"([\\%_])", r"\\\1", value).replace("*", "%")


def _moment(text: str | None, now: datetime, *, is_end: bool) -> datetime | None:
    if text is None:
        return None
    if ago := _AGO.fullmatch(text.strip()):
        try:
            return now - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
        except OverflowError:
            return datetime.min
    try:
        if len(text) == len("2026-04-07"):
            day = date.fromisoformat(text) + timedelta(days=1 if is_end else 0)
            return datetime(day.year, day.month, day.day)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise FilterError(
            f"{text!r} is no time: write 2h, 3d, 2026-04-07 or 2026-04-07T15:00"
        ) from None
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return moment
