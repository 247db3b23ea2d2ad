"""The client side of the oracle: sends numbered calls and knows which were fully answered.

Calls go through the openai SDK and through plain HTTP in turn, half of each streamed, with the
system prompt of a real application. A call counts as answered at the first moment at which a
client may take its answer for complete: an unstreamed body in full length, a stream at
`data: [DONE]`, where the SDK stops listening. From then on its response entry must be durable.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai

import known_content
from waiting import Changes

# The clients never hang up on an idle connection; only the server does.
KEEP_ALIVE_SECONDS = 3600.0
GEO_AGENT_PROMPT = Path(__file__).with_name("data") / "geo-agent-system-prompt.md"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got for a call, in the form in which it must be logged."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[tuple[str, str, str], ...] = ()  # (id, name, arguments)
    finish_reason: str | None = None
    # The answer's X-Proxy-Request-Id, None where there was no proxy.
    request_id: str | None = None


@dataclass(slots=True)
class CallRecord:
    """What became of each call; tests read it while calls are still under way."""

    sent: set[int] = field(default_factory=set)
    answered: dict[int, Answer] = field(default_factory=dict)  # the set A
    refused: dict[int, int] = field(default_factory=dict)  # status of an error answer
    failed: dict[int, str] = field(default_factory=dict)  # broken off, or not begun
    wrong: dict[int, str] = field(default_factory=dict)  # ended well, with wrong content
    stopped: bool = False
    changes: Changes = field(default_factory=Changes)

    def stop(self) -> None:
        """Send no further calls; those under way go on."""
        self.stopped = True

    async def answered_at_least(self, count: int, timeout_seconds: float = 30.0) -> None:
        """Return once `count` calls are fully answered."""
        await self.changes.until(
            lambda: len(self.answered) >= count, f"{count} calls answered", timeout_seconds
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """How calls are sent: to `url` (without /v1), with the proxy's key, for `model`.

    `behaviour` and `options` go into each user message, see provider_behaviours.py; of the
    behaviours only those that answer in full can make a call count as answered.
    """

    url: str
    key: str
    model: str = "kimi"
    behaviour: str = "ok"
    options: Mapping[str, object] = field(default_factory=dict)
    system_prompt: str = field(default_factory=GEO_AGENT_PROMPT.read_text)
    call_timeout_seconds: float = 30.0

    def body(self, number: int, stream: bool) -> dict[str, Any]:
        """The request of call `number`."""
        question = known_content.question(number, self.behaviour, **self.options)
        messages = [
            {"role": "system", "content": self.system_prompt},
            {"role": "user", "content": question},
        ]
        return {"model": self.model, "messages": messages, "stream": stream}

    async def send_all(
        self,
        numbers: Iterable[int],
        record: CallRecord,
        *,
        concurrency: int = 32,
        timeout_seconds: float = 60.0,
        pause: Callable[[], Awaitable[None]] | None = None,
        keep_alive: bool = True,
    ) -> None:
        """Send each call once, at most `concurrency` at a time, and note its fate in `record`.

        Calls that are not over after `timeout_seconds` are cut off and count as failed. After
        each call its sender awaits `pause()`. With `keep_alive` connections are kept for the next
        call, else each call has one of its own.
        """
        waiting = iter(numbers)
        limits = httpx.Limits(
            max_connections=concurrency,
            max_keepalive_connections=None if keep_alive else 0,
            keepalive_expiry=KEEP_ALIVE_SECONDS,
        )
        async with (
            openai.AsyncOpenAI(
                api_key=self.key,
                base_url=f"{self.url}/v1",
                max_retries=0,
                timeout=self.call_timeout_seconds,
                # The SDK's own client follows redirects, and a call must be sent once.
                http_client=openai.DefaultAsyncHttpxClient(
                    trust_env=False, follow_redirects=False, limits=limits
                ),
            ) as sdk,
            httpx.AsyncClient(
                base_url=self.url,
                headers={"Authorization": f"Bearer {self.key}"},
                timeout=self.call_timeout_seconds,
                trust_env=False,
                limits=limits,
            ) as http,
        ):

            async def work() -> None:
                for number in waiting:
                    if record.stopped:
                        return
                    await self._send(number, record, sdk, http)
                    if pause is not None:
                        await pause()

            workers = [asyncio.create_task(work()) for _ in range(concurrency)]
            try:
                await asyncio.wait(workers, timeout=timeout_seconds)
            finally:
                # Also when this coroutine is cancelled: the clients close right after it.
                for worker in workers:
                    worker.cancel()
                results = await asyncio.gather(*workers, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result

    async def _send(
        self, number: int, record: CallRecord, sdk: openai.AsyncOpenAI, http: httpx.AsyncClient
    ) -> None:
        body = self.body(number, stream=number % 2 == 0)
        record.sent.add(number)
        try:
            if number // 2 % 2 == 0:
                answer = await _through_sdk(sdk, body)
            else:
                answer = await _through_http(http, body)
        except _Refused as refusal:
            record.refused[number] = refusal.status
        except openai.APIStatusError as refusal:
            record.refused[number] = refusal.status_code
        except (openai.OpenAIError, httpx.HTTPError, _BrokenOff) as error:
            record.failed[number] = f"{datetime.now(UTC):%H:%M:%S.%f} {_with_causes(error)}"
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            record.wrong[number] = f"call {number} got no answer in OpenAI's shape: {error!r}"
        except asyncio.CancelledError:
            record.failed[number] = "cut off by the time limit"
            raise
        else:
            self._judge(number, answer, record)
        finally:
            record.changes.notify()

    def _judge(self, number: int, answer: Answer, record: CallRecord) -> None:
        expected = expected_answer(number, self.behaviour)
        got = (answer.content, answer.reasoning_content, answer.tool_calls, answer.finish_reason)
        known = (
            expected.content,
            expected.reasoning_content,
            expected.tool_calls,
            expected.finish_reason,
        )
        record.answered[number] = answer
        if got != known:
            record.wrong[number] = f"call {number} should get {known!r} and got {got!r}"


def expected_answer(number: int, behaviour: str = "ok") -> Answer:
    """The answer that a client must get for call `number` under a behaviour that answers."""
    if behaviour == "tool_call":
        calls = known_content.answer_tool_calls(number)
        logged = tuple((call["id"], call["name"], call["arguments"]) for call in calls)
        return Answer(tool_calls=logged, finish_reason="tool_calls")
    thought = known_content.answer_reasoning(number) if behaviour == "reasoning" else None
    return Answer(known_content.answer_content(number), thought, finish_reason="stop")


class _Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class _BrokenOff(Exception):
    """A stream broke or ended before `[DONE]`."""


def _with_causes(error: BaseException | None) -> str:
    """An error and those that led to it; the system's own, such as a refusal, is the last."""
    told = []
    while error is not None:
        told.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return ", because of ".join(told)


async def _through_sdk(sdk: openai.AsyncOpenAI, body: Mapping[str, Any]) -> Answer:
    if not body["stream"]:
        raw = await sdk.chat.completions.with_raw_response.create(**body)
        completion = raw.parse().model_dump()
        return _whole(completion, raw.headers.get("X-Proxy-Request-Id"))
    stream = await sdk.chat.completions.create(**body)
    assembled = _Assembled()
    try:
        async for chunk in stream:
            assembled.add(chunk.model_dump())
    except ValueError as error:
        raise _BrokenOff(f"an event holds no JSON: {error}") from error
    if assembled.finish_reason is None:
        raise _BrokenOff("the stream ended before its finish_reason")
    return assembled.answer(stream.response.headers.get("X-Proxy-Request-Id"))


async def _through_http(http: httpx.AsyncClient, body: Mapping[str, Any]) -> Answer:
    if not body["stream"]:
        response = await http.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            raise _Refused(response.status_code)
        return _whole(response.json(), response.headers.get("X-Proxy-Request-Id"))
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise _Refused(response.status_code)
        request_id = response.headers.get("X-Proxy-Request-Id")
        assembled = _Assembled()
        async for data in _events(response):
            if data == "[DONE]":
                return assembled.answer(request_id)
            try:
                assembled.add(json.loads(data))
            except ValueError as error:
                raise _BrokenOff(f"an event holds no JSON: {error}") from error
    raise _BrokenOff("the stream ended without [DONE]")


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    """The data of each event; lines are split at LF alone, for contents hold other line ends."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].decode().strip()


def _whole(completion: Mapping[str, Any], request_id: str | None) -> Answer:
    choice = completion["choices"][0]
    message = choice["message"]
    functions = ((call["id"], call["function"]) for call in message.get("tool_calls") or ())
    return Answer(
        content=message.get("content"),
        reasoning_content=message.get("reasoning_content") or message.get("reasoning"),
        tool_calls=tuple((i, f["name"], f["arguments"]) for i, f in functions),
        finish_reason=choice["finish_reason"],
        request_id=request_id,
    )


class _Assembled:
    """A streamed answer, put together from its deltas."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[str]] = {}

    def add(self, chunk: Mapping[str, Any]) -> None:
        if "error" in chunk:
            raise _BrokenOff(f"an error event: {chunk['error']}")
        for choice in chunk.get("choices") or ():
            delta = choice["delta"]
            self._content.append(delta.get("content") or "")
            self._reasoning.append(delta.get("reasoning_content") or delta.get("reasoning") or "")
            for call in delta.get("tool_calls") or ():
                known = self._calls.setdefault(call["index"], ["", "", ""])
                known[0] += call.get("id") or ""
                known[1] += call["function"].get("name") or ""
                known[2] += call["function"].get("arguments") or ""
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def answer(self, request_id: str | None) -> Answer:
        calls = (tuple(self._calls[index]) for index in sorted(self._calls))
        return Answer(
            content="".join(self._content) or None,
            reasoning_content="".join(self._reasoning) or None,
            tool_calls=tuple((i, name, arguments) for i, name, arguments in calls),
            finish_reason=self.finish_reason,
            request_id=request_id,
        )
