"""The judge outside the process: is every log row there, once, and true?

It knows three things that the proxy had no part in: A, the calls that clients got answered in
full; P, the calls that the provider saw; and the objects in the store after the drain. A row is
tied to its numbered call by the user message of the request row, the response row by its
request_id. Every broken rule becomes a sentence, and all of them are reported, not the first.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import known_content
import log_contract
from calls import Answer, CallRecord
from known_content import Script
from stored_objects import Row, Violation, read_object, row_violations


@dataclass(slots=True)
class Verdict:
    """What the oracle counted and what it found broken."""

    objects: int = 0
    rows: int = 0
    queues: int = 0
    calls: int = 0  # numbered calls with a request row
    answered: int = 0
    seen: int = 0
    violations: list[Violation] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return sum(violation.kind == kind for violation in self.violations)

    def __str__(self) -> str:
        shown = [f"{v.kind}: {v.sentence}" for v in self.violations[:40]]
        if len(self.violations) > len(shown):
            shown.append(f"and {len(self.violations) - len(shown)} more")
        counts = (
            f"{len(self.violations)} violations in {self.rows} rows, {self.objects} objects, "
            f"{self.queues} queues; {self.answered} calls answered, {self.seen} seen"
        )
        return "\n".join((counts, *shown))


def judge(
    objects: Iterable[tuple[str, bytes]],
    *,
    answered: Mapping[int, Answer],
    seen: Collection[int],
    window_seconds: int,
    sent: Collection[int] | None = None,
    prefix: str = "",
    damaged_allowed: bool = False,
) -> Verdict:
    """Check the objects of a drained store against A (`answered`) and P (`seen`).

    `sent`, where given, holds all numbers that were ever sent: no other may appear. `prefix` is
    LOG_PREFIX, `window_seconds` FLUSH_INTERVAL_SECONDS. With `damaged_allowed`, for tests that
    damage a file themselves, each `damaged` row may stand for one missing row.
    """
    verdict = Verdict(answered=len(answered), seen=len(seen))
    rows: list[Row] = []
    for key, data in objects:
        verdict.objects += 1
        found, broken = read_object(key, data, prefix, window_seconds)
        rows.extend(found)
        verdict.violations.extend(broken)
    verdict.rows = len(rows)
    verdict.queues = len({row.get("queue_id") for row in rows})
    for row in rows:
        verdict.violations.extend(row_violations(row))
    verdict.violations.extend(_sequence_violations(rows))
    calls = _Calls(rows)
    verdict.calls = len(calls.by_number)
    absent = [*calls.pair_violations(), *calls.number_violations(answered, seen)]
    damaged = sum(row.get("type") == "damaged" for row in rows)
    if not damaged_allowed and damaged:
        sentence = f"{damaged} rows are damaged, and the test damaged nothing"
        verdict.violations.append(Violation("damaged", sentence))
    if not damaged_allowed or calls.rows_missing(seen) > damaged:
        verdict.violations.extend(absent)
    else:
        verdict.violations.extend(v for v in absent if v.kind not in ("lost", "unpaired"))
    verdict.violations.extend(calls.content_violations(answered))
    if sent is not None:
        for number in sorted(calls.by_number.keys() - set(sent)):
            sentence = f"call {number} has a request row and was never sent"
            verdict.violations.append(Violation("unknown", sentence))
    return verdict


def assert_nothing_lost(
    objects: Iterable[tuple[str, bytes]],
    record: CallRecord,
    seen: Collection[int],
    *,
    window_seconds: int,
    prefix: str = "",
    damaged_allowed: bool = False,
) -> Verdict:
    """`judge` for calls made by calls.py; raises AssertionError with all sentences."""
    verdict = judge(
        objects,
        answered=record.answered,
        seen=seen,
        sent=record.sent,
        window_seconds=window_seconds,
        prefix=prefix,
        damaged_allowed=damaged_allowed,
    )
    assert not record.wrong, f"wrong answers: {list(record.wrong.values())[:5]}"
    assert not verdict.violations, str(verdict)
    return verdict


def _seq(row: Row) -> int:
    seq = row.get("seq")
    return seq if isinstance(seq, int) else 0  # a schema violation, reported as such


def _sequence_violations(rows: Iterable[Row]) -> Iterator[Violation]:
    """Doubles, and gaps from 1 to the last row of each queue."""
    numbers: dict[Any, Counter[int]] = defaultdict(Counter)
    for row in rows:
        numbers[row.get("queue_id")][_seq(row)] += 1
    for queue_id, counter in numbers.items():
        for seq in sorted(seq for seq, count in counter.items() if count > 1):
            yield Violation("double", f"row {queue_id}/{seq} is there {counter[seq]} times")
        for before, after in itertools.pairwise((0, *sorted(counter))):
            if after > before + 1:
                yield Violation("gap", f"rows {queue_id}/{before + 1} to {after - 1} are missing")


class _Calls:
    """The rows as calls: pairs by request_id, and numbered calls among them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.requests: dict[Any, list[Row]] = defaultdict(list)
        self.responses: dict[Any, list[Row]] = defaultdict(list)
        self.by_number: dict[int, list[Row]] = defaultdict(list)
        self.scripts: dict[int, Script] = {}
        for row in rows:
            if row.get("type") == "response":
                self.responses[row.get("request_id")].append(row)
            if row.get("type") == "request":
                self.requests[row.get("request_id")].append(row)
                script = known_content.script_of(str(row.get("user_question")))
                if script is not None:
                    self.by_number[script.number].append(row)
                    self.scripts[script.number] = script

    def pair_violations(self) -> Iterator[Violation]:
        """Every request row has exactly one response row, later in the same queue."""
        for request_id, requests in self.requests.items():
            responses = self.responses.get(request_id, [])
            if len(requests) > 1:
                yield Violation("double", f"{request_id} has {len(requests)} request rows")
            if not responses:
                yield Violation("unpaired", f"request {request_id} has no response row")
            if len(responses) > 1:
                yield Violation(
                    "double", f"request {request_id} has {len(responses)} response rows"
                )
            for response in responses[:1]:
                yield from self._disagreements(requests[0], response)
        for request_id in self.responses.keys() - self.requests.keys():
            yield Violation("unpaired", f"response {request_id} has no request row")

    def number_violations(
        self, answered: Mapping[int, Answer], seen: Collection[int]
    ) -> Iterator[Violation]:
        """Every call of P has its request row; every call of A has both, and ended well."""
        for number, requests in self.by_number.items():
            if len(requests) > 1:
                yield Violation("double", f"call {number} has {len(requests)} request rows")
        for number in sorted(set(seen) - self.by_number.keys()):
            yield Violation("lost", f"call {number} reached the provider and has no request row")
        for number, answer in sorted(answered.items()):
            response = self._response(number)
            if response is None:
                yield Violation("lost", f"call {number} was answered and has no response row")
            elif response.get("outcome") != "ok":
                text = f"call {number} was answered and logged as {response.get('outcome')!r}"
                yield Violation("content", text)
            elif answer.request_id not in (None, response.get("request_id")):
                text = f"call {number} was answered under {answer.request_id}, logged under another"
                yield Violation("content", text)

    def content_violations(self, answered: Mapping[int, Answer]) -> Iterator[Violation]:
        """Rows say what was said: questions and answers whole, broken answers a beginning."""
        for number, script in self.scripts.items():
            asked = known_content.question(number, script.behaviour, **script.options)
            if self.by_number[number][0].get("user_question") != asked:
                yield Violation("content", f"the question of call {number} was changed")
            response = self._response(number)
            if response is None or script.behaviour == "big":
                continue
            if number in answered:
                yield from _answer_violations(number, answered[number], response)
            elif not known_content.answer_content(number).startswith(response.get("content") or ""):
                yield Violation("content", f"call {number} is logged with foreign content")

    def rows_missing(self, seen: Collection[int]) -> int:
        """How many request and response rows are missing at least."""
        orphans = len(self.responses.keys() - self.requests.keys())
        unanswered = len(self.requests.keys() - self.responses.keys())
        return max(orphans, len(set(seen) - self.by_number.keys())) + unanswered

    def _response(self, number: int) -> Row | None:
        requests = self.by_number.get(number, [])
        responses = self.responses.get(requests[0].get("request_id")) if requests else None
        return responses[0] if responses else None

    def _disagreements(self, request: Row, response: Row) -> Iterator[Violation]:
        name = f"the rows of {request.get('request_id')}"
        if request.get("queue_id") != response.get("queue_id"):
            yield Violation("unpaired", f"{name} stand in two queues")
        elif not _seq(request) < _seq(response):
            yield Violation("unpaired", f"{name} are in the wrong order")
        if different := [
            f for f in log_contract.IDENTITY_FIELDS if request.get(f) != response.get(f)
        ]:
            yield Violation("content", f"{name} differ in {different}")


def _answer_violations(number: int, answer: Answer, response: Row) -> Iterator[Violation]:
    logged_calls = response.get("tool_calls") or ()
    calls = [(call.get("id"), call.get("name"), call.get("arguments")) for call in logged_calls]
    for name, got, logged in (
        ("content", answer.content or "", response.get("content") or ""),
        ("reasoning", answer.reasoning_content or "", response.get("reasoning_content") or ""),
        ("tool calls", list(answer.tool_calls), calls),
        ("finish_reason", answer.finish_reason, response.get("finish_reason")),
    ):
        if got != logged:
            yield Violation("content", f"the {name} of call {number} was {got!r}, not {logged!r}")
