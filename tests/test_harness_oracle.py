"""The oracle must find every planted fault: a judge who sees nothing lets everything pass."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import known_content
import log_contract
import oracle
from calls import Answer, expected_answer

Rows = list[dict[str, Any]]
QUEUE = "0123456789abcdef"
MADE_BY = {
    "key_name": "default",
    "endpoint": "/v1/chat/completions",
    "proxy_version": "1",
    "config_sha256": "0" * 64,
    "instance": "test",
}
HEAD = json.dumps(log_contract.head(QUEUE, "2026-04-07T02:00:05.000Z")) + "\n"
DAMAGED = {"timestamp": "2026-04-07T02:00:05.250Z", "type": "damaged", **MADE_BY}


def log_of(numbers: Iterable[int]) -> Rows:
    """The rows that a faultless proxy logs for these calls, one after the other."""
    rows: Rows = []
    for number in numbers:
        common = dict.fromkeys(log_contract.FIELDS) | MADE_BY
        common |= {"queue_id": QUEUE, "timestamp": "2026-04-07T02:00:05.250Z", "model": "kimi"}
        common |= {"request_id": f"{number:016x}"}
        question = {"type": "request", "user_question": known_content.question(number)}
        content = known_content.answer_content(number)
        answer = {"type": "response", "outcome": "ok", "content": content, "finish_reason": "stop"}
        for own in (question, answer):
            rows.append({**common, "seq": len(rows) + 1, **own})
    return rows


def as_objects(rows: Rows, size: int = 4) -> list[tuple[str, bytes]]:
    """`rows` as objects of `size` rows under a head, named as the drain names them."""
    objects = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        sparse = [{name: value for name, value in row.items() if value is not None} for row in part]
        data = (HEAD + "".join(json.dumps(row) + "\n" for row in sparse)).encode()
        span = f"{int(part[0]['seq']):010d}-{int(part[-1]['seq']):010d}"
        md5 = hashlib.md5(data).hexdigest()[:12]
        objects.append((f"2026-04-07/02-00-05-{QUEUE}-{span}-{md5}.jsonl", data))
    return objects


def judged(objects: list[tuple[str, bytes]], calls: int = 10, **options: Any) -> oracle.Verdict:
    answered = {number: expected_answer(number) for number in range(1, calls + 1)}
    return oracle.judge(objects, answered=answered, seen=set(answered), window_seconds=1, **options)


def kinds(verdict: oracle.Verdict) -> set[str]:
    return {violation.kind for violation in verdict.violations}


def test_the_oracle_finds_nothing_in_a_faultless_log() -> None:
    verdict = judged(as_objects(log_of(range(1, 11))))
    assert not verdict.violations, str(verdict)
    assert (verdict.rows, verdict.objects, verdict.queues, verdict.calls) == (20, 5, 1, 10)


def test_the_oracle_finds_a_lost_object() -> None:
    objects = as_objects(log_of(range(1, 11)))
    del objects[2]
    verdict = judged(objects)
    assert verdict.count("lost") == 4  # two calls of P, the same two of A
    assert "rows 0123456789abcdef/9 to 12 are missing" in str(verdict)


def test_the_oracle_finds_lost_rows_even_at_the_end_where_no_gap_shows() -> None:
    verdict = judged(as_objects(log_of(range(1, 10))))
    assert kinds(verdict) == {"lost"}


def test_the_oracle_finds_an_object_stored_again_under_another_range() -> None:
    rows = log_of(range(1, 11))
    verdict = judged([*as_objects(rows), *as_objects(rows[4:6], size=2)])
    assert kinds(verdict) == {"double"} and f"row {QUEUE}/5 is there 2 times" in str(verdict)


def doubled_in_another_queue(rows: Rows) -> None:
    """A copied queue file, finished by two owners."""
    other = [{**row, "queue_id": "f" * 16, "seq": row["seq"] - 2} for row in rows[2:4]]
    rows.extend(other)


def unanswered(rows: Rows) -> None:
    del rows[-1]


def unasked(rows: Rows) -> None:
    rows[-2] |= {"type": "text", "user_question": None}


def answered_twice(rows: Rows) -> None:
    rows.append({**rows[3], "seq": 21})


def asked_again(rows: Rows) -> None:
    """The same call accepted twice, under two request_ids."""
    rows.extend({**row, "seq": row["seq"] + 18, "request_id": "e" * 16} for row in rows[2:4])


def answered_before_it_was_asked(rows: Rows) -> None:
    rows[2], rows[3] = {**rows[3], "seq": 3}, {**rows[2], "seq": 4}


def logged_in_two_queues(rows: Rows) -> None:
    rows[-1] |= {"queue_id": "f" * 16, "seq": 1}


def answered_but_logged_as_interrupted(rows: Rows) -> None:
    rows[7] |= {"outcome": "interrupted", "content": None, "finish_reason": None}


def question_changed(rows: Rows) -> None:
    rows[4]["user_question"] += "."


def content_changed(rows: Rows) -> None:
    rows[5]["content"] += "."


def model_changed(rows: Rows) -> None:
    rows[5]["model"] = "qwen3"


def field_missing(rows: Rows) -> None:
    del rows[0]["endpoint"], rows[1]["endpoint"]


def field_too_many(rows: Rows) -> None:
    rows[1]["surprise"] = 1


def fields_in_another_order(rows: Rows) -> None:
    rows[2] = dict(reversed(rows[2].items()))


def answer_in_the_request_row(rows: Rows) -> None:
    rows[2]["content"] = "early"


def type_unknown(rows: Rows) -> None:
    rows.append({**rows[3], "seq": 21, "type": "retry"})


def outcome_unknown(rows: Rows) -> None:
    rows[3]["outcome"] = "fine"


def request_id_too_short(rows: Rows) -> None:
    rows[2]["request_id"] = rows[3]["request_id"] = "3"


def seq_is_no_number(rows: Rows) -> None:
    rows[2]["seq"] = "3"


def line_too_long(rows: Rows) -> None:
    rows[3]["error"] = "x" * log_contract.MAX_LINE_BYTES


@pytest.mark.parametrize(
    "plant, sentence",
    [
        (doubled_in_another_queue, "0000000000000002 has 2 request rows"),
        (doubled_in_another_queue, "0000000000000002 has 2 response rows"),
        (unanswered, "request 000000000000000a has no response row"),
        (unanswered, "call 10 was answered and has no response row"),
        (unasked, "response 000000000000000a has no request row"),
        (unasked, "call 10 reached the provider and has no request row"),
        (answered_twice, "0000000000000002 has 2 response rows"),
        (asked_again, "call 2 has 2 request rows"),
        (answered_before_it_was_asked, "0000000000000002 are in the wrong order"),
        (logged_in_two_queues, "000000000000000a stand in two queues"),
        (answered_but_logged_as_interrupted, "call 4 was answered and logged as 'interrupted'"),
        (question_changed, "the question of call 3 was changed"),
        (content_changed, "the content of call 3 was"),
        (model_changed, "0000000000000003 differ in ['model']"),
        (field_missing, "the fields ['endpoint'] are missing"),
        (field_too_many, "line 3: the fields ['surprise'] belong to no row"),
        (fields_in_another_order, "line 4: the fields are in another order"),
        (answer_in_the_request_row, "is a request row and fills ['content']"),
        (type_unknown, "has the type 'retry'"),
        (outcome_unknown, "has the outcome 'fine'"),
        (request_id_too_short, "has the request_id '3'"),
        (seq_is_no_number, "has no proper queue_id and seq"),
        (line_too_long, "line 5 has 8389"),
    ],
)
def test_the_oracle_finds_a_planted_fault(plant: Callable[[Rows], None], sentence: str) -> None:
    rows = log_of(range(1, 11))
    plant(rows)
    verdict = judged(as_objects(rows))
    assert any(sentence in v.sentence for v in verdict.violations), str(verdict)


def test_the_oracle_finds_an_answer_logged_under_another_request_id() -> None:
    answer = dataclasses.replace(expected_answer(1), request_id="f" * 16)
    objects = as_objects(log_of([1]))
    verdict = oracle.judge(objects, answered={1: answer}, seen={1}, window_seconds=1)
    assert "answered under ffffffffffffffff" in str(verdict)


def test_the_oracle_lets_a_broken_answer_be_a_beginning_and_nothing_else() -> None:
    rows = log_of([1])
    rows[1] |= {"outcome": "interrupted", "content": rows[1]["content"][:10]}
    no_one: dict[int, Answer] = {}
    allowed = oracle.judge(as_objects(rows), answered=no_one, seen={1}, window_seconds=1)
    assert not allowed.violations
    rows[1]["content"] = known_content.answer_content(2)
    refused = oracle.judge(as_objects(rows), answered=no_one, seen={1}, window_seconds=1)
    assert kinds(refused) == {"content"}


def test_the_oracle_finds_text_that_duckdb_refuses() -> None:
    rows = log_of(range(1, 11))
    rows[0]["session_id"] = rows[1]["session_id"] = "a lone surrogate \ud800"
    rows[2]["session_id"] = rows[3]["session_id"] = "NUL \0"
    rows[4]["session_id"] = rows[5]["session_id"] = "six characters \\ud800 \\u0000"
    assert judged(as_objects(rows)).count("schema") == 4


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "does not end with a line end"),
        (b"{}", "does not end with a line end"),
        (b"{\n", "line 1: Expecting"),
        (b'{"seq": 1, "seq": 1}\n', "line 1: a field is there twice"),
        (b"[1]\n", "its first line is no head"),
        (HEAD.encode() + b"[1]\n", "line 2: this is no JSON object"),
        (HEAD.replace("null", "0", 1).encode(), "its head is not that of its queue and window"),
        (HEAD.replace("05.000", "06.000").encode(), "its head is not that of its queue and window"),
        (b'{"seq": "\xff"}\n', "line 1: 'utf-8' codec"),
    ],
)
def test_the_oracle_finds_an_object_that_is_no_jsonl(data: bytes, sentence: str) -> None:
    name = f"2026-04-07/02-00-05-{QUEUE}-0000000001-0000000001-{'0' * 12}.jsonl"
    assert sentence in str(judged([(name, data)]))


@pytest.mark.parametrize(
    "old, new, sentence",
    [
        ("02-00-05", "02-00-04", "outside its window"),
        ("2026-04-07", "2026-13-07", "no time"),
        ("-0000000001-", "-1-", "zero-padded"),
        ("0000000004", "0000000005", "not first to last"),
        (QUEUE, "f" * 16, "another queue"),
        (".jsonl", ".json", "no key of ours"),
        ("2026", "logs/2026", "no key of ours"),
    ],
)
def test_the_oracle_finds_a_key_that_is_not_true(old: str, new: str, sentence: str) -> None:
    (key, data), *others = as_objects(log_of(range(1, 11)))
    verdict = judged([(key.replace(old, new), data), *others])
    assert kinds(verdict) == {"key"} and sentence in str(verdict)


def test_the_oracle_finds_bytes_that_are_not_those_of_the_key() -> None:
    (key, data), *others = as_objects(log_of(range(1, 11)))
    verdict = judged([(key, data.replace(b"kimi", b"Kimi")), *others])
    assert "MD5" in str(verdict)


def test_the_oracle_knows_the_prefix_and_the_window() -> None:
    objects = [(f"logs/{key}", data) for key, data in as_objects(log_of(range(1, 11)))]
    assert not judged(objects, prefix="logs/").violations
    answered: dict[int, Answer] = {}
    off = oracle.judge(objects, answered=answered, seen=(), window_seconds=60, prefix="logs/")
    assert "no start of a window of 60 s" in str(off)


def test_a_damaged_row_stands_for_one_missing_row_where_the_test_damaged_the_file() -> None:
    rows = log_of(range(1, 11))
    rows[3] = {"queue_id": QUEUE, "seq": 4, **DAMAGED}
    objects = as_objects(rows)
    assert not judged(objects, damaged_allowed=True).violations
    assert {"damaged", "lost", "unpaired"} <= kinds(judged(objects))
    rows[5]["content"] = "changed"
    assert kinds(judged(as_objects(rows), damaged_allowed=True)) == {"content"}
    del rows[-2:]
    assert "lost" in kinds(judged(as_objects(rows), damaged_allowed=True))


def test_a_damaged_row_excuses_no_double() -> None:
    rows = log_of(range(1, 11))
    rows[3] = {"queue_id": QUEUE, "seq": 4, **DAMAGED}
    rows.append({**rows[1], "seq": 21})
    assert kinds(judged(as_objects(rows), damaged_allowed=True)) == {"double"}


def test_the_oracle_finds_a_call_that_nobody_sent() -> None:
    verdict = judged(as_objects(log_of(range(1, 11))), sent=range(1, 10))
    assert kinds(verdict) == {"unknown"}
