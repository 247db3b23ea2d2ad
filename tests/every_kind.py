"""A log in which every kind of row occurs, made by the real server, hostile values first.

DuckDB types a column by the first files that it samples, 32 at most, so the first forty objects
hold nothing but strings that look like something else, and the ordinary ones come after them.
"""

import asyncio
import re
import uuid
from contextlib import suppress
from pathlib import Path

import httpx

from given_answers import Asker, Fields, GivenAnswers, completion, events, raw, tool_call
from proxy_process import ProxyProcess, one_provider
from queue_fixtures import alter
from stores import Store
from waiting import wait_until

TYPED = ("2024-01-02", "10:30", "2024-01-02T10:30:00Z", "550e8400-e29b-41d4-a716-446655440000")
TYPED_CALLS = 40
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SESSION = "my-session"
PROMPT = "You answer questions about protected areas. " * 20
HANGING = "is this call ever answered?"


async def fill(store: Store, folder: Path, dead_url: str) -> None:
    """Make every kind of row and leave all of them in the store.

    `dead_url` is a provider that nobody listens at. Two rows or three make an object.
    """
    async with GivenAnswers() as provider:
        config = one_provider(provider.url)
        dead = {"endpoint": f"{dead_url}/v1/chat/completions", "api_key_env": "NRP_API_KEY"}
        config["providers"]["dead"] = dead | {"models": ["unreachable"]}
        keyless = {**dead, "api_key_env": "NOT_SET", "models": ["keyless"]}
        config["providers"]["keyless"] = keyless
        settings = {
            **store.env(),
            "LOG_CAPTURE": "full",
            "LOG_OBJECT_MAX_BYTES": "3500",
            "FLUSH_INTERVAL_SECONDS": "86400",
            "UPSTREAM_TIMEOUT_SECONDS": "2",
            "UPSTREAM_CONNECT_TIMEOUT_SECONDS": "0.5",
        }
        async with ProxyProcess(folder, config, settings) as proxy:
            async with Asker(proxy) as asker:
                await _looks_typed(asker)
                late = asyncio.ensure_future(asker.ask("how long?", {"hang": True}))
                await _ordinary(asker)
                await _converse(asker)
                await _leave_early(proxy)
                assert (await late).status_code == 504
            proxy.usr1()
            await proxy.drained()
            await _die(proxy)
            await proxy.start()
            await proxy.drained()
            assert await proxy.stop() == 0


async def _looks_typed(asker: Asker) -> None:
    """Calls whose every string looks like a UUID, a date or a time."""
    for number in range(TYPED_CALLS):
        text, call_id = TYPED[number % len(TYPED)], str(uuid.uuid4())
        asked = [
            {"role": "user", "content": text},
            {"role": "assistant", "tool_calls": [tool_call(call_id, text, text)]},
            {"role": "tool", "tool_call_id": call_id, "content": text},
        ]
        calls = [tool_call(call_id, text, text)]
        answer = completion(text, tool_calls=calls, reasoning_content=text, finish_reason=text)
        given = {"body": answer, "headers": {"x-request-id": str(uuid.uuid4())}}
        headers = {"X-Session-Id": str(uuid.uuid4()), "X-Client": text, "Origin": text}
        response = await asker.ask(asked, given, headers=headers, model=text)
        assert response.status_code == 200


async def _ordinary(asker: Asker) -> None:
    """Answers, errors and refusals of all kinds, with strings that look like numbers and JSON."""
    headers = {"Origin": "https://app.example", "X-Client": "tests", "X-Session-Id": "1234567890"}
    for text in ("1234567890123456", "12345678e1234567", "true", '{"a": 1}', "[1, 2]", "null"):
        await asker.ask(text, {"body": completion(text)}, headers=headers)
    delta = {"choices": [{"index": 0, "delta": {"content": "streamed"}, "finish_reason": "stop"}]}
    await asker.ask("stream it", events(delta), stream=True, headers=headers)
    limited = {"status": 429, "headers": {"Retry-After": "7", "x-ratelimit-limit": "60"}}
    await asker.ask("too much", {**limited, "body": {"error": {"message": "slow down"}}})
    await asker.ask("anyone there?", model="unreachable")
    await asker.ask("with which key?", model="keyless")
    await asker.ask("an odd tool", {"body": completion(None, tool_calls=[{"id": "x"}])})
    await asker.ask("no JSON", raw(b"<html>no JSON</html>"))
    await asker.ask("\ud800 and \0", {"body": completion("lone \udc00, NUL \0")})
    await asker.ask("what time?", {"body": completion("at ten")}, headers={"X-Session-Id": "s"})
    await asker.send(b"no JSON at all")


def conversation() -> list[tuple[list[Fields], Fields]]:
    """A session with a system prompt and two tools: the messages of each call and its answer."""
    calls = [tool_call("call_1", "query", '{"sql": "SELECT 1"}'), tool_call("call_2", "map", "{}")]
    asked = [{"role": "system", "content": PROMPT}, user("How many parks?")]
    acted = [
        *asked,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "0 parks"},
        {"role": "tool", "tool_call_id": "call_2", "content": "a map"},
    ]
    thanked = [*acted, {"role": "assistant", "content": "answer 0"}, user("Thank you")]
    return [
        (asked, completion(None, tool_calls=calls, finish_reason="tool_calls")),
        (acted, completion("answer 0", reasoning="so many")),
        (thanked, completion("answer 1", reasoning="so many")),
    ]


async def _converse(asker: Asker) -> None:
    headers = {"X-Session-Id": SESSION, "Origin": "https://app.example"}
    for messages, answer in conversation():
        await asker.ask(messages, {"body": answer}, headers=headers)


def user(text: str) -> Fields:
    """A message of a user."""
    return {"role": "user", "content": text}


async def _leave_early(proxy: ProxyProcess) -> None:
    """A client that does not wait for its answer."""
    async with Asker(proxy) as asker:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await asker.ask("never mind", {"hang": True})


async def _die(proxy: ProxyProcess) -> None:
    """A kill during a call; of the rows that wait for the next start one gets damaged."""
    async with Asker(proxy) as asker:
        await asker.ask("a last question")
        hanging = asyncio.ensure_future(asker.ask(HANGING, {"hang": True}))
        is_logged = lambda: any(HANGING in line for line in proxy.stdout_lines())  # noqa: E731
        await wait_until(is_logged, "the hanging call is logged")
        proxy.kill()
        await proxy.wait()
        with suppress(httpx.HTTPError):
            await hanging
    (queue,) = (path for path in proxy.queue_folder.iterdir() if path.is_dir())
    alter(queue, "UPDATE rows SET crc32 = crc32 + 1 WHERE seq = (SELECT min(seq) FROM rows)")


# Rows of other formats: with fewer fields than ours, and with more.
OLDER_ROW = {"timestamp": "2024-05-01T10:00:00.000Z", "type": "request", "model": "kimi"}
NEWER_ROW = {**OLDER_ROW, "type": "note", "new_field": {"a": ["b"]}, "another": "2024-05-01"}
