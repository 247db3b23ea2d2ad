"""Which files answer a question: per day the compacted tables, and the objects they do not hold."""

from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from open_llm_proxy.archive.sources.source import (
    NO_DAY,
    LogObject,
    LogSource,
    LogSourceError,
    Progress,
)
from open_llm_proxy.archive.tables.compacted import input_name, recorded_inputs
from open_llm_proxy.archive.tables.filters import Filters

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FOLLOWING_UNTIL = "02-00-00"
"""Responses to a day's calls are looked for in the next day's windows before this one."""


@dataclass(slots=True)
class Plan:
    """`objects` are to be loaded; Parquet files, by day and table, are read where they are.

    `listed` are all objects of the days, loaded or compacted. `following` is the day after the last
    one, which is not shown.
    """

    days: list[str]
    following: str | None
    objects: list[LogObject] = field(default_factory=list)
    entries: dict[str, list[Path]] = field(default_factory=dict)
    turns: dict[str, list[Path]] = field(default_factory=dict)
    listed: set[LogObject] = field(default_factory=set)

    @property
    def joined_entries(self) -> list[Path]:
        """Compacted entries that calls have to be joined of, as the turns of their day, or of the
        day before, are not compacted."""
        return [
            path
            for day, paths in self.entries.items()
            if day not in self.turns or (day_after(day, -1) in self.days_to_join)
            for path in paths
        ]

    @property
    def days_to_join(self) -> set[str]:
        """The days whose turns are not compacted."""
        return set(self.days) - set(self.turns)

    def shown_days(self, column: str) -> str:
        """A condition that leaves out the following day."""
        return "true" if self.following is None else f"{column} < DATE '{self.following}'"


def planned(
    connection: "DuckDBPyConnection",
    source: LogSource,
    tables: LogSource,
    filters: Filters,
    progress: Progress | None,
) -> Plan:
    """The files for the filters' days. Raises `LogSourceError` where there are no days at all."""
    known = source.days()
    compacted = known if tables is source else tables.days()
    days = sorted({*known, *compacted})
    if not days:
        raise LogSourceError(f"{source.name} holds no log objects")
    chosen = [day for day in days if day == NO_DAY or _is_within(day, filters)]
    following = day_after(filters.last_day) if filters.last_day else None
    plan = Plan([day for day in chosen if day], following)
    for day in chosen:
        _plan_day(connection, plan, source, tables, day, progress)
    if following in days:
        _plan_following(connection, plan, source, tables, following, progress)
    return plan


def _plan_day(
    connection: "DuckDBPyConnection",
    plan: Plan,
    source: LogSource,
    tables: LogSource,
    day: str,
    progress: Progress | None,
) -> None:
    objects = source.objects(day)
    plan.listed.update(objects)
    entries = [path for _, path in tables.local(tables.parquet("entries", day), progress)]
    held = recorded_inputs(connection, entries)
    if entries:
        plan.entries[day] = entries
    plan.objects += [item for item in objects if input_name(item) not in held]
    turns = [path for _, path in tables.local(tables.parquet("turns", day), progress)]
    # Calls are joined anew if the entries know an object that the turns do not, listed or deleted.
    needed = held | {input_name(item) for item in objects}
    if turns and recorded_inputs(connection, turns) >= needed:
        plan.turns[day] = turns


def following_objects(source: LogSource, day: str) -> list[LogObject]:
    """Objects of the day after, in which responses to a day's calls may lie."""
    return [item for item in source.objects(day_after(day)) if item.window < FOLLOWING_UNTIL]


def _plan_following(
    connection: "DuckDBPyConnection",
    plan: Plan,
    source: LogSource,
    tables: LogSource,
    day: str,
    progress: Progress | None,
) -> None:
    """The day after the last one: only what may hold responses to its calls."""
    if not plan.days or plan.days[-1] in plan.turns:
        return
    entries = [path for _, path in tables.local(tables.parquet("entries", day), progress)]
    held = recorded_inputs(connection, entries)
    objects = following_objects(source, day_after(day, -1))
    plan.objects += [item for item in objects if input_name(item) not in held]
    if entries:
        plan.entries[day] = entries


def _is_within(day: str, filters: Filters) -> bool:
    first, last = filters.first_day, filters.last_day
    return (first is None or day >= first) and (last is None or day <= last)


def is_following(input_name: str) -> bool:
    """Whether it is one of the objects that `following_objects` lists for the day before."""
    return input_name.partition("/")[2][: len(FOLLOWING_UNTIL)] < FOLLOWING_UNTIL


def day_after(day: str, days: int = 1) -> str:
    """The day so many days later."""
    return (date.fromisoformat(day) + timedelta(days=days)).isoformat()
