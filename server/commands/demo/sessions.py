"""What the sessions of the demo's history are about: applications, their questions, their faults.

Pure functions of a `random.Random`: the same seed gives the same sessions. The applications are of
one kind, maps that answer questions by SQL, since that is what the log is read for: questions, tool
calls with SQL, results, answers, and what went wrong. Numbers in results are made up.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

Json = dict[str, Any]
Fault = Literal[
    "rate_limited", "overloaded", "unreachable", "silent", "client_left", "cut", "empty", "killed"
]


@dataclass(frozen=True, slots=True)
class Subject:
    """A table and what people ask of it; `{area}` and `{unit}` are filled in."""

    table: str
    measure: str
    questions: tuple[str, ...]
    follow_ups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class App:
    """Who calls: `weight` is its share of the sessions, `models` those that its users choose."""

    origin: str | None
    client: str
    key_name: str
    weight: int
    models: tuple[str, ...]
    subject: Subject
    thinks: bool = False
    streams: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One call: what is sent, and what the model answers."""

    messages: list[Json]
    reply: Json


PROTECTED = Subject(
    "protected_areas",
    "hectares",
    (
        "Which {area}s protect the most land?",
        "How much land in {area} is GAP 1 or 2?",
        "Rank counties of {area} by the fraction that is protected",
        "Show the parks of {area} on the map",
    ),
    ("And per person?", "Only those over 1,000 hectares, please", "Map the first three"),
)
WETLANDS = Subject(
    "wetlands",
    "carbon_tonnes",
    (
        "How much carbon do the wetlands of {area} store?",
        "Which watersheds of {area} lost wetlands since 2000?",
        "What share of {area} is peatland?",
    ),
    ("How sure is that number?", "Compare with the state next to it"),
)
HIGH_SEAS = Subject(
    "marine_areas",
    "square_km",
    (
        "How many marine protected areas have IUCN category II?",
        "Which of them are near {area}?",
        "How large is the area that is closed to fishing around {area}?",
    ),
    ("List the five largest", "When were they founded?"),
)
AREAS = ("California", "Alaska", "Nevada", "Oregon", "Hawaii", "Utah", "Maine", "Florida", "Idaho")

NEW_MODEL = "glm-5"
OLD_MODEL = "glm-4.7"  # that NEW_MODEL replaces in the middle of the history
PROVIDERS = {
    "kimi": "nrp",
    "qwen3": "nrp",
    OLD_MODEL: "nrp",
    NEW_MODEL: "nrp",
    "anthropic/claude-sonnet-4-5": "openrouter",
    "nemotron": "nimbus",
}
# Dollars for a million tokens of the prompt and of the answer, where the provider reports a cost.
PRICES = {"anthropic/claude-sonnet-4-5": (3.0, 15.0)}
# Tokens a second, and seconds to the first one.
PACES = {"kimi": (55, 0.9), "qwen3": (70, 0.6), "nemotron": (40, 1.4), NEW_MODEL: (80, 0.7)}

APPS = (
    App(
        "https://parks.example", "geo-agent/v3.13.1", "default", 10,
        ("kimi", "kimi", OLD_MODEL, "anthropic/claude-sonnet-4-5"), PROTECTED, streams=True,
    ),
    App("https://wetlands.example", "geo-agent/v3.14.0", "default", 6, ("qwen3", OLD_MODEL),
        WETLANDS, thinks=True),
    App("https://high-seas.example", "geo-agent/v3.13.1", "default", 5, ("kimi", "nemotron"),
        HIGH_SEAS, streams=True),
    App(None, "agent-runner/0.1.0", "evaluation", 3,
        ("kimi", "qwen3", OLD_MODEL, "nemotron", "anthropic/claude-sonnet-4-5"), PROTECTED),
)  # fmt: skip
WORKSHOP = App(
    "https://parks.example", "geo-agent/v3.13.1", "workshop", 0, ("kimi", "qwen3"), PROTECTED,
    streams=True,
)  # fmt: skip

TOOLS: list[Json] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string"}},
                "required": [argument],
            },
        },
    }
    for name, description, argument in (
        ("query", "Run SQL in DuckDB and return the rows as a table", "sql"),
        ("get_schema", "Columns of a dataset, with examples", "dataset"),
        ("show_on_map", "Draw features on the user's map", "filter"),
    )
]


def system_prompt(app: App) -> str:
    """The system message of an application: long, and the same in each of its calls."""
    subject = app.subject
    rules = (
        f"You answer questions about {subject.table} for people who look at a map.",
        f"The table {subject.table} has the columns name, state, {subject.measure} and geometry.",
        "Ask get_schema before the first query. Use query for every number; never guess one.",
        "If a query fails, read the error, correct the SQL and try once more.",
        "Answer in two sentences. Say which table a number comes from.",
    )
    return "\n".join(f"{number}. {rule}" for number, rule in enumerate(rules * 4, 1))


def pick_model(rng: random.Random, app: App, day_share: float) -> str:
    """One of the application's models; `day_share` goes from 0 to 1 over the history."""
    model = rng.choice(app.models)
    return NEW_MODEL if model == OLD_MODEL and day_share >= 0.5 else model


def pick_fault(rng: random.Random, model: str, day: date, hour: int) -> Fault | None:
    """What goes wrong with a call, if anything does."""
    if PROVIDERS[model] == "nimbus" and day.day % 10 == 4 and 14 <= hour < 17:
        return "unreachable"
    share = rng.random()
    is_busy = 15 <= hour < 19
    if share < (0.03 if is_busy else 0.006):
        return "rate_limited"
    for fault, limit in (
        ("overloaded", 0.038),
        ("client_left", 0.05),
        ("silent", 0.053),
        ("cut", 0.056),
        ("empty", 0.058),
    ):
        if 0.03 <= share < limit:
            return fault  # type: ignore[return-value]
    return None


def conversation(rng: random.Random, app: App, seed: str) -> Iterator[Turn]:
    """The calls of one session, in order; every list of messages is the one before and more."""
    messages: list[Json] = [{"role": "system", "content": system_prompt(app)}]
    subject, area = app.subject, rng.choice(AREAS)
    knows_schema = False
    for question in _questions(rng, subject, area):
        messages.append({"role": "user", "content": question})
        for number, (name, arguments, result) in enumerate(
            _steps(rng, subject, area, knows_schema)
        ):
            call_id = f"call_{seed}_{len(messages)}_{number}"
            function = {"name": name, "arguments": json.dumps(arguments)}
            call = {"id": call_id, "type": "function", "function": function}
            reply: Json = {"role": "assistant", "content": None, "tool_calls": [call]}
            yield Turn(list(messages), _with_thoughts(app, reply, f"I need {name} for that."))
            messages.append(reply)
            messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
        knows_schema = True
        reply = {"role": "assistant", "content": _answer(rng, subject, area)}
        yield Turn(list(messages), _with_thoughts(app, reply, "The rows answer the question."))
        messages.append(reply)


def _questions(rng: random.Random, subject: Subject, area: str) -> list[str]:
    opening = rng.choice(subject.questions).format(area=area)
    count = rng.choice((0, 0, 0, 1, 1, 2))
    return [opening, *rng.sample(subject.follow_ups, min(count, len(subject.follow_ups)))]


def _steps(
    rng: random.Random, subject: Subject, area: str, knows_schema: bool
) -> Iterator[tuple[str, Json, str]]:
    """Tool calls with their results; one query in seven fails first."""
    table, measure = subject.table, subject.measure
    if not knows_schema:
        yield (
            "get_schema", {"dataset": table},
            f"| column | type |\n| name | VARCHAR |\n| state | VARCHAR |\n| {measure} | DOUBLE |",
        )  # fmt: skip
    sql = f"SELECT name, sum({measure}) AS total FROM {table} WHERE state = '{area}' GROUP BY name"
    if rng.random() < 0.14:
        wrong = sql.replace(measure, "area_total", 1)
        error = f'Binder Error: Referenced column "area_total" not found in {table}'
        yield "query", {"sql": wrong}, error
    rows = "\n".join(
        f"| {area} {kind} | {rng.randrange(1_000, 900_000):,} |"
        for kind in rng.sample(("north", "south", "coast", "valley", "ridge", "lakes"), 3)
    )
    yield "query", {"sql": f"{sql} ORDER BY total DESC LIMIT 3"}, f"| name | total |\n{rows}"
    if rng.random() < 0.3:
        shown = "Error: no layer of that name" if rng.random() < 0.25 else "3 features shown"
        yield "show_on_map", {"filter": f"state = '{area}'"}, shown


def _answer(rng: random.Random, subject: Subject, area: str) -> str:
    total = rng.randrange(10_000, 4_000_000)
    kind = subject.measure.replace("_", " ")
    return (
        f"**{area}** comes to {total:,} {kind}, by the table `{subject.table}`. "
        f"The largest part is {rng.choice(('the coast', 'the north', 'the valley'))}, with "
        f"{rng.randrange(20, 80)} % of it."
    )


def _with_thoughts(app: App, reply: Json, thought: str) -> Json:
    return reply | {"reasoning_content": thought} if app.thinks else reply
