"""Whatever a provider does: one truthful entry, and a truthful answer, over http and https."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import openai
import pytest

import wire
from known_content import answer_content
from memory_log import MemoryLog
from proxy_process import PROVIDER_KEY
from raw_client import Answer
from relay_calls import Relay, chat_fields, events
from scripted_provider import ScriptedProvider

pytest_plugins = ("relay_fixtures",)

# How an answer ends: whole (it may be an error of ours or the provider's), with an error event
# and a broken connection, or with a broken connection alone.
End = Literal["whole", "event", "cut"]
IDLE = {"idle_seconds": 0.4}
TOTAL = {"total_seconds": 0.5}


@pytest.fixture(params=["http", "https"])
def upstream(
    request: pytest.FixtureRequest, provider: ScriptedProvider, tls_provider: ScriptedProvider
) -> ScriptedProvider:
    return provider if request.param == "http" else tls_provider


@dataclass(frozen=True)
class Fault:
    """What the provider does, and what has to come of it.

    `status` and `code` are those of the answer; where it ends with an event the code is the
    event's. `error` must stand in the row's error.
    """

    behaviour: str
    outcome: str
    status: int
    end: End = "whole"
    code: str | None = None
    error: str | None = None
    deadline: str | None = None
    stream: bool = False
    has_content: bool = False
    settings: dict[str, float] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        return " ".join([self.behaviour, *options, *self.settings, "stream" * self.stream]).strip()


def unreachable(behaviour: str, error: str, **changes: Any) -> Fault:
    code = "upstream_unreachable"
    return Fault(behaviour, code, 502, code=code, error=error, **changes)


def timed_out(behaviour: str, deadline: str, settings: dict[str, float], **changes: Any) -> Fault:
    code = "upstream_timeout"
    values = {"status": 504, "code": code, "error": f"({deadline} time-out)"} | changes
    return Fault(behaviour, code, deadline=deadline, settings=settings, **values)


def broken(behaviour: str, error: str, **changes: Any) -> Fault:
    values: dict[str, Any] = {"status": 200, "end": "event", "stream": True} | changes
    return Fault(behaviour, "upstream_error", code="upstream_error", error=error, **values)


def passed(behaviour: str, status: int, error: str | None, /, **options: object) -> Fault:
    return Fault(behaviour, "upstream_error", status, error=error, options=options)


MID_STREAM: dict[str, Any] = {"stream": True, "status": 200, "end": "event", "has_content": True}
FAULTS = [
    unreachable("reset_before_headers", "before any answer"),
    unreachable("reset_before_headers", "before any answer", stream=True),
    unreachable("close_before_headers", "before any answer"),
    unreachable("huge_headers", "head exceeds"),
    timed_out("silent", "total", TOTAL | {"idle_seconds": 0.1}),
    timed_out("silent", "total", TOTAL | {"idle_seconds": 0.1}, stream=True),
    timed_out("stall_after_headers", "idle", IDLE, stream=True, status=200, end="event"),
    timed_out("stall_mid_stream", "idle", IDLE, **MID_STREAM),
    timed_out("slow", "total", TOTAL, options={"pace": 0.05}, **MID_STREAM),
    broken("reset_after_headers", "broke after 0 bytes"),
    broken("reset_mid_chunk", "broke after", has_content=True),
    broken("bad_chunking", "is not valid HTTP", has_content=True),
    broken(
        "short_body", "before its end", status=502, end="whole", stream=False, has_content=True
    ),
    passed("error", 400, "scripted error 000001", status=400),
    passed("error", 500, "scripted error 000001", status=500),
    passed("error", 502, "<h1>502 from a balancer</h1>", status=502, body="html"),
    passed("error", 503, None, status=503, body="empty"),
    passed("rate_limited", 429, "slow down"),
    Fault("redirect", "upstream_error", 502, code="upstream_redirect", error="redirect (307)"),
    Fault(
        "error_event", "upstream_error", 200, error="scripted error", stream=True, has_content=True
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "relay_settings"), [(fault, fault.settings) for fault in FAULTS], ids=str
)
async def test_a_fault_of_the_provider_ends_in_one_true_entry_and_a_true_answer(
    relay: Relay, log: MemoryLog, fault: Fault, relay_settings: dict[str, float]
) -> None:
    begun = asyncio.get_running_loop().time()
    answer = await relay.ask(1, fault.behaviour, stream=fault.stream, **fault.options)
    seconds = asyncio.get_running_loop().time() - begun
    _, response = log.the_call()
    check_answer(answer, fault)
    assert (response["outcome"], response["status"]) == (fault.outcome, fault.status)
    assert response["deadline"] == fault.deadline
    assert (fault.error or "") in (response["error"] or "")
    assert bool(fault.error) == bool(response["error"])
    assert (response["content"] is not None) == fault.has_content
    assert answer_content(1).startswith(response["content"] or "") or fault.behaviour == "slow"
    least = max(fault.settings.values(), default=0.0)
    assert least * 1000 <= response["latency_ms"] <= seconds * 1000 + 1
    assert PROVIDER_KEY not in str(log.rows)


def check_answer(answer: Answer, fault: Fault) -> None:
    assert answer.status == fault.status
    assert answer.is_complete == (fault.end == "whole")
    data = events(answer.body)
    assert "[DONE]" not in data
    if fault.end == "event":
        error = json.loads(data[-1])["error"]
        assert error["code"] == fault.code and "nrp" in error["message"]
    elif fault.code is not None:
        assert answer.error["code"] == fault.code and "nrp" in answer.error["message"]


async def test_an_answer_in_parts_that_breaks_off_is_cut(relay: Relay, log: MemoryLog) -> None:
    relay.provider.shapes["it"] = [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n",
        b'{"choices":[{"index":0,"message":',
        0.05,
        b'{"content":"half of ',
        0.05,
    ]
    answer = await relay.ask(1, "shape", name="it", close=1)
    assert answer.body == b'{"choices":[{"index":0,"message":' and not answer.is_complete
    _, response = log.the_call()
    assert (response["outcome"], response["status"]) == ("upstream_error", 200)
    assert response["content"] == "half of " and "of 99 bytes" in response["error"]


async def test_the_headers_of_a_rate_limit_reach_the_client_and_the_log(
    relay: Relay, log: MemoryLog
) -> None:
    answer = await relay.ask(1, "rate_limited")
    _, response = log.the_call()
    logged = json.loads(response["upstream_headers_json"])
    for name, value in logged.items():
        assert answer.header(name) == value
    assert logged["retry-after"] == "7" and logged["x-ratelimit-remaining-tokens"] == "149984"
    assert response["upstream_request_id"] == "upstream-000001"
    assert json.loads(response["error"])["error"]["type"] == "rate_limit_error"


async def test_of_a_long_error_the_first_4_kilobytes_are_logged(
    relay: Relay, log: MemoryLog
) -> None:
    page = "<html>" + "Bad gateway. " * 5000
    kind = ("Content-Type", "text/html")
    head = wire.head(502, (kind, ("Content-Length", str(len(page)))))
    relay.provider.shapes["it"] = [head + page[:1000].encode(), 0.02, page[1000:].encode()]
    assert (await relay.ask(1, "shape", name="it")).body == page.encode()
    assert (log.the_call()[1]["error"] or "").startswith(page[:4000])


async def test_an_error_in_an_answer_that_says_200_is_called_an_error(
    relay: Relay, log: MemoryLog
) -> None:
    body = b'{"error": {"message": "no capacity", "code": 502}}'
    relay.provider.shapes["it"] = [wire.head(200, (("Content-Length", str(len(body))),)) + body]
    assert (await relay.ask(1, "shape", name="it")).body == body
    _, response = log.the_call()
    assert (response["outcome"], response["status"]) == ("upstream_error", 200)
    assert "no capacity" in response["error"]


@pytest.mark.parametrize("relay_settings", [{"total_seconds": 2.0}])
async def test_a_total_time_out_says_when_the_client_was_the_slow_one(
    relay: Relay, log: MemoryLog
) -> None:
    async with relay.asking(1, "big", stream=True, megabytes=100) as client:
        client.stop_reading()
        response = await log.closed()
    assert (response["outcome"], response["deadline"]) == ("upstream_timeout", "total")
    assert "while the client was slow" in response["error"]


@pytest.mark.parametrize("relay_settings", [IDLE])
async def test_the_sdk_raises_the_error_of_a_stream_that_breaks_off(relay: Relay) -> None:
    async with relay.sdk() as sdk:
        stream = await sdk.chat.completions.create(
            **chat_fields(1, "stall_mid_stream", stream=True)
        )
        received = []
        with pytest.raises(openai.APIError, match="idle time-out") as caught:
            async for chunk in stream:
                received.append(chunk.choices[0].delta.content)
    assert received and caught.value.code == "upstream_timeout"
