"""The scripted provider, the calls and the proxy's process do what whole-program tests rely on."""

import asyncio
import base64
import json
import signal
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import known_content
import wire
from calls import Caller, CallRecord
from provider_behaviours import BEHAVIOURS
from proxy_process import ProxyProcess, ServerEnded, is_over, one_provider
from scripted_provider import ProviderProcess, ScriptedProvider
from waiting import DeadlinePassed

# Stands in for the server: answers /ready and /health, ends with 0 on SIGTERM, counts SIGUSR1.
STAND_IN = """
import http.server, json, os, signal, sys
signals = []
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.signal(signal.SIGUSR1, lambda *_: signals.append("USR1"))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if os.environ.get("NEVER_READY") and self.path == "/ready" else 200)
        self.end_headers()
        log = {"queue_id": "0123456789abcdef", "queued_rows": 0, "open_calls": 0}
        health = {"pid": os.getpid(), "env": dict(os.environ), "signals": signals, "log": log}
        self.wfile.write(json.dumps(health).encode())
    def log_message(self, *_): pass
if "FAILS" in os.environ: sys.exit("port in use")
print("one line", flush=True)
print("half a line", end="", flush=True)
http.server.HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""
ARGV = (sys.executable, "-c", STAND_IN)
StartProxy = Callable[..., ProxyProcess]


def asking(behaviour: str, **options: object) -> dict[str, Any]:
    text = known_content.question(1, behaviour, **options)
    return {"model": "kimi", "messages": [{"role": "user", "content": text}]}


async def ask(
    provider: ScriptedProvider, behaviour: str, stream: bool = False, **options: object
) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        body = {**asking(behaviour, **options), "stream": stream}
        return await http.post(f"{provider.url}/v1/chat/completions", json=body)


@pytest.mark.parametrize(
    "behaviour",
    ["ok", "stream_usage", "tool_call", "reasoning", "informational", "gzipped", "close_delimited"],
)
async def test_every_answer_reaches_both_clients_as_it_is_known(
    provider: ScriptedProvider, behaviour: str
) -> None:
    record = CallRecord()
    numbers = range(1, 41)
    if behaviour == "stream_usage":  # always a stream, so only for those who asked for one
        numbers = range(2, 41, 2)
    await Caller(provider.url, "key", behaviour=behaviour).send_all(numbers, record)
    assert not (record.wrong or record.failed or record.refused)
    assert record.answered.keys() == provider.seen == set(numbers)


async def test_calls_that_get_no_whole_answer_do_not_count_as_answered(
    provider: ScriptedProvider,
) -> None:
    for behaviour in ("reset_mid_chunk", "error_event", "short_body", "bad_chunking", "error"):
        record = CallRecord()
        await Caller(provider.url, "key", behaviour=behaviour).send_all(range(1, 5), record)
        assert not record.answered, behaviour
        assert len(record.failed) + len(record.refused) + len(record.wrong) == 4


async def test_calls_that_are_cancelled_or_late_are_noted_as_failed(
    provider: ScriptedProvider,
) -> None:
    late, cancelled = CallRecord(), CallRecord()
    caller = Caller(provider.url, "key", behaviour="silent")
    await caller.send_all(range(1, 41), late, concurrency=8, timeout_seconds=0.5)
    assert late.failed.keys() == late.sent == set(range(1, 9))
    sending = asyncio.create_task(caller.send_all(range(101, 141), cancelled, concurrency=8))
    await provider.arrived(16)
    sending.cancel()
    await asyncio.wait([sending])
    assert cancelled.failed.keys() == cancelled.sent == set(range(101, 109))


async def test_a_wrong_answer_is_noticed(provider: ScriptedProvider) -> None:
    record = CallRecord()
    caller = Caller(provider.url, "key", behaviour="shape", options={"name": "other"})
    answer = json.dumps({"choices": [{"message": {"content": "no"}, "finish_reason": "stop"}]})
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))]
    provider.shapes["other"] = [wire.head(200, headers), answer.encode()]
    await caller.send_all([1, 3], record)
    assert set(record.wrong) == {1, 3}


async def test_the_provider_notices_that_the_client_left_while_it_is_silent(
    provider: ScriptedProvider,
) -> None:
    for behaviour in ("silent", "stall_after_headers", "stall_mid_stream", "slow"):
        asked = asyncio.create_task(ask(provider, behaviour, stream=True))
        call = await provider.call(1)
        assert not call.closed.is_set()
        asked.cancel()
        await asyncio.wait_for(call.closed.wait(), 5)
        assert call.closed_at is not None and call.closed_at >= call.arrived_at
        provider.calls.clear()


@pytest.mark.parametrize(
    "behaviour, error",
    [
        ("reset_before_headers", httpx.ReadError),
        ("reset_mid_chunk", httpx.ReadError),
        ("close_before_headers", httpx.RemoteProtocolError),
        ("short_body", httpx.RemoteProtocolError),
        ("bad_chunking", httpx.RemoteProtocolError),
        ("huge_headers", httpx.RemoteProtocolError),
    ],
)
async def test_the_provider_breaks_http_as_told(
    provider: ScriptedProvider, behaviour: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await ask(provider, behaviour)


async def test_the_provider_misbehaves_once_where_told(provider: ScriptedProvider) -> None:
    with pytest.raises(httpx.HTTPError):
        await ask(provider, "reset_before_headers", once=1)
    assert (await ask(provider, "reset_before_headers", once=1)).status_code == 200


async def test_the_provider_answers_with_every_status_header_and_encoding(
    provider: ScriptedProvider,
) -> None:
    assert (await ask(provider, "error", status=503, body="html")).text.startswith("<html>")
    assert (await ask(provider, "error", status=400, body="empty")).content == b""
    limited = await ask(provider, "rate_limited")
    assert limited.status_code == 429 and limited.headers["Retry-After"] == "7"
    assert (await ask(provider, "redirect", status=308)).headers["Location"]
    content = known_content.answer_content(1)
    for behaviour in ("informational", "gzipped", "close_delimited", "odd_headers"):
        answer = (await ask(provider, behaviour)).json()
        assert answer["choices"][0]["message"]["content"] == content, behaviour
    streamed = await ask(provider, "gzipped", stream=True)
    assert streamed.headers["Content-Encoding"] == "gzip" and streamed.text.endswith("[DONE]\n\n")
    odd = await ask(provider, "odd_headers")
    assert odd.headers.get_list("Set-Cookie") == ["a=1; Path=/", "b=2; Path=/"]
    big = await ask(provider, "big", megabytes=3, stream=True)
    assert 2_900_000 < len(big.content) <= 3_100_000


async def test_the_provider_echoes_the_bytes_it_got(provider: ScriptedProvider) -> None:
    body = json.dumps(asking("echo")).encode() + b"\n  "
    async with httpx.AsyncClient(trust_env=False) as http:
        url = f"{provider.url}/v1/chat/completions?x=1"
        answer = await http.post(url, content=body, headers=[("X-Two", "a"), ("X-Two", "b")])
    echo = answer.json()["echo"]
    assert base64.b64decode(echo["body"]) == body == provider.calls[0].request.body
    assert echo["target"] == "/v1/chat/completions?x=1"
    assert [value for name, value in echo["headers"] if name == "X-Two"] == ["a", "b"]


async def test_the_provider_keeps_connections_open_and_lists_models(
    provider: ScriptedProvider,
) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        for path in ("completions", "embeddings", "responses", "chat/completions"):
            body = {"model": "kimi", "input": known_content.question(2)}
            answer = await http.post(f"{provider.url}/v1/{path}", json=body)
            assert answer.json()["usage"]
        listed = (await http.get(f"{provider.url}/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["kimi", "qwen3", "glm-4.7"]
        refused = await http.post(f"{provider.url}/v1/chat/completions", content=b"no JSON")
        assert refused.status_code == 400
    assert provider.connections == 1


async def test_the_provider_speaks_tls_that_only_its_own_authority_vouches_for(
    tls_provider: ScriptedProvider, certificates: wire.Certificates
) -> None:
    trusting = ssl.create_default_context(cafile=str(certificates.authority))
    async with httpx.AsyncClient(trust_env=False, verify=trusting) as http:
        url = f"{tls_provider.url}/v1/chat/completions"
        assert (await http.post(url, json=asking("ok"))).status_code == 200
        with pytest.raises(httpx.HTTPError):
            await http.post(url, json=asking("reset_mid_chunk"))
    with pytest.raises(httpx.ConnectError):
        await ask(tls_provider, "ok")


async def test_what_the_provider_process_saw_survives_it(provider_process: ProviderProcess) -> None:
    record = CallRecord()
    await Caller(provider_process.url, "key").send_all(range(1, 21), record)
    provider_process.close()
    assert provider_process.seen() == set(range(1, 21)) == record.answered.keys()


def test_every_behaviour_says_what_it_does() -> None:
    assert all(function.__doc__ for function in BEHAVIOURS.values())


def config_at(path: str) -> Any:
    return json.loads(Path(path).read_text())


async def test_the_proxy_starts_in_an_environment_of_its_own_and_ends_in_order(
    start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_BUCKET", "somebody-elses")
    settings = {"LOG_DIR": "objects", "NRP_API_KEY": None}
    proxy = start_proxy(one_provider("http://127.0.0.1:1"), settings, argv=ARGV)
    await proxy.start()
    health = await proxy.health()
    assert health["env"]["LOG_DIR"] == "objects" and health["pid"] == proxy.server_pid()
    assert not {"LOG_BUCKET", "NRP_API_KEY", "PYTEST_CURRENT_TEST"} & health["env"].keys()
    assert config_at(health["env"]["CONFIG"])["default_provider"] == "nrp"
    assert proxy.stdout_lines() == ["one line"] and proxy.peak_memory_bytes() > 1_000_000
    proxy.usr1()
    assert (await proxy.health())["signals"] == ["USR1"]
    assert await proxy.stop() == 0


async def test_a_killed_proxy_starts_again_on_its_port(start_proxy: StartProxy) -> None:
    proxy = start_proxy({}, {}, argv=ARGV)
    await proxy.start()
    first = proxy.server_pid()
    proxy.kill()
    assert await proxy.wait() == -signal.SIGKILL
    assert await proxy.status("/health") == 0
    await proxy.start()
    assert proxy.server_pid() != first and proxy.stdout_lines()[0] == "one line"


async def test_the_signals_reach_the_server_behind_a_prefix(start_proxy: StartProxy) -> None:
    prefix = (sys.executable, "-c", "import subprocess, sys; subprocess.call(sys.argv[1:])")
    proxy = start_proxy({}, {}, argv=ARGV, command_prefix=prefix)
    await proxy.start()
    pid = proxy.server_pid()
    assert pid != proxy.process.pid
    proxy.kill()
    await proxy.wait()
    assert is_over(pid)


async def test_a_proxy_that_does_not_come_up_says_why(start_proxy: StartProxy) -> None:
    failing = start_proxy({}, {"FAILS": "1"}, argv=ARGV)
    with pytest.raises(ServerEnded, match="exit code 1; stderr ends: port in use"):
        await failing.start()
    waiting = start_proxy({}, {"NEVER_READY": "1"}, argv=ARGV, name="waiting")
    with pytest.raises(DeadlinePassed, match="/ready answers 200: not within"):
        await waiting.start(timeout_seconds=1)
    assert await waiting.status("/ready") == 503


async def test_a_queue_is_drained_only_when_no_other_queue_is_left(
    start_proxy: StartProxy,
) -> None:
    proxy = start_proxy({}, {}, argv=ARGV)
    await proxy.start()
    for name in ("0123456789abcdef", "quarantine"):
        (proxy.queue_folder / name).mkdir()
    await proxy.drained()
    (proxy.queue_folder / "fedcba9876543210.done").mkdir()
    with pytest.raises(DeadlinePassed, match="fedcba9876543210"):
        await proxy.drained(timeout_seconds=0.2)
