"""The program as an operator meets it: exit codes, health, signals, sinks that do not work."""

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

import calls
import log_contract
from proxy_process import PROXY_KEY, ProxyProcess, one_provider
from scripted_provider import ScriptedProvider
from stores import DirectoryStore, S3Store
from waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
CLI = (sys.executable, "-m", "open_llm_proxy.server.commands.cli")
NOWHERE = one_provider("http://127.0.0.1:9")
NO_PATIENCE = {"UPSTREAM_CONNECT_TIMEOUT_SECONDS": "0.1"}  # with it

pytestmark = pytest.mark.timeout(seconds=60)


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command that must end by itself, in an environment of its own."""
    inherited = {"PATH": os.environ["PATH"], "CONFIG": str(ROOT / "config.json")}
    return subprocess.run(
        [*CLI, *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=30,
        cwd=environment.get("PWD", ROOT),
    )


def one_sentence(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("open-llm-proxy: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


async def post(proxy: ProxyProcess, body: Any, key: str = PROXY_KEY) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        headers = {"Authorization": f"Bearer {key}"}
        return await client.post(f"{proxy.url}/v1/chat/completions", json=body, headers=headers)


def test_help_lists_every_setting() -> None:
    done = run("serve", "--help")
    assert done.returncode == 0
    assert "LOG_QUEUE_MAX_BYTES" in done.stdout
    assert "AWS_ACCESS_KEY_ID" in done.stdout


def test_without_a_command_it_is_a_usage_error() -> None:
    assert run().returncode == 2


def test_every_mistake_is_a_sentence_and_goes_to_the_termination_log(tmp_path: Path) -> None:
    path, termination_log = tmp_path / "config.json", tmp_path / "termination-log"
    path.write_text(json.dumps({"providers": {"nrp": {"endpoint": "no-url"}}}))
    termination_log.touch()
    done = run(
        "serve", "--config", str(path), PORT="http", LOG_BUKET="x",
        TERMINATION_LOG=str(termination_log),
    )  # fmt: skip
    assert done.returncode == 2
    sentences = (
        "PORT=http: must be a whole number, such as 8002",
        "config.json: providers.nrp.api_key_env is missing",
        "config.json: providers.nrp.endpoint must be a URL such as "
        "https://host/v1/chat/completions",
    )
    assert [line for line in done.stderr.splitlines() if line.startswith("open-llm-proxy: ")] == [
        f"open-llm-proxy: {sentence}" for sentence in sentences
    ]
    assert "ERROR Check of settings: LOG_BUKET is ignored; did you mean LOG_BUCKET?" in done.stderr
    assert termination_log.read_text() == "\n".join(sentences)


def test_a_termination_log_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "termination-log"
    assert run("serve", PORT="http", TERMINATION_LOG=str(missing)).returncode == 2
    assert not missing.exists()


def test_two_sinks_are_exit_code_2() -> None:
    done = run("serve", LOG_DIR="logs", LOG_BUCKET="logs-ns")
    assert done.returncode == 2
    assert "Set LOG_BUCKET or LOG_DIR, not both" in one_sentence(done)


def test_a_port_in_use_is_exit_code_3(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", HOST="127.0.0.1", PORT=port, PWD=str(tmp_path))
    assert done.returncode == 3
    assert f"PORT={port}" in one_sentence(done)


def test_a_port_in_use_goes_to_the_termination_log(tmp_path: Path) -> None:
    termination_log = tmp_path / "termination-log"
    termination_log.touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run("serve", HOST="127.0.0.1", PORT=port, TERMINATION_LOG=str(termination_log))
    assert termination_log.read_text().startswith(f"Cannot listen on HOST=127.0.0.1 PORT={port}")


def test_a_queue_folder_that_cannot_be_written_is_exit_code_3(tmp_path: Path) -> None:
    a_file = tmp_path / "file"
    a_file.write_text("")
    done = run("serve", PORT="0", LOG_DIR=str(tmp_path / "o"), LOG_QUEUE_DIR=str(a_file / "queue"))
    assert done.returncode == 3
    assert "LOG_QUEUE_DIR" in one_sentence(done)


async def test_health_and_ready_without_a_proxy_key(
    start_proxy: Callable[..., ProxyProcess], directory_store: DirectoryStore
) -> None:
    proxy = start_proxy(NOWHERE, directory_store.env() | {"PROXY_KEY": None, "NRP_API_KEY": None})
    await proxy.start(until="/health")
    health = await proxy.health()
    assert health["status"] == "ok"
    assert health["proxy_key_configured"] is False
    assert health["providers"] == {"nrp": {"configured": False}}
    assert await proxy.status("/ready") == 503
    answer = await post(proxy, {"model": "kimi", "messages": []})
    assert answer.status_code == 503
    assert "PROXY_KEY" in answer.json()["error"]["message"]


async def test_a_missing_provider_key_is_named_and_the_rejected_pair_is_logged(
    start_proxy: Callable[..., ProxyProcess], directory_store: DirectoryStore
) -> None:
    proxy = start_proxy(NOWHERE, directory_store.env() | {"NRP_API_KEY": None})
    await proxy.start()
    answer = await post(proxy, {"model": "kimi", "messages": []})
    assert answer.status_code == 503
    assert "NRP_API_KEY" in answer.json()["error"]["message"]
    assert await proxy.stop() == 0
    request, response = map(json.loads, proxy.stdout_lines())
    assert (request["type"], response["type"]) == ("request", "response")
    assert response["outcome"] == "rejected"
    assert response["status"] == 503
    assert request["request_id"] == answer.headers["X-Proxy-Request-Id"]


async def test_without_a_sink_lines_go_to_stdout_only_and_it_is_said(
    start_proxy: Callable[..., ProxyProcess], provider: ScriptedProvider
) -> None:
    proxy = start_proxy(one_provider(provider.url), {})
    await proxy.start()
    record = calls.CallRecord()
    await calls.Caller(proxy.url, PROXY_KEY).send_all(range(4), record)
    assert len(record.answered) == 4
    health = await proxy.health()
    assert health["log"]["sink"] is None
    assert "LOG_BUCKET" in health["log"]["reason"]
    assert "stdout only" in proxy.stderr_text()
    assert not proxy.queues()
    assert await proxy.stop() == 0
    rows = [json.loads(line) for line in proxy.stdout_lines()]
    assert len(rows) == 8
    assert not any("queue_id" in row or "seq" in row for row in rows)


async def test_a_bucket_without_credentials_is_stdout_only_and_said_loudly(
    start_proxy: Callable[..., ProxyProcess],
) -> None:
    proxy = start_proxy(NOWHERE, {"LOG_BUCKET": "logs-ns", **NO_PATIENCE})
    await proxy.start()
    assert "ERROR Check of log: s3://logs-ns/ has no S3 credentials" in proxy.stderr_text()
    assert "without S3 credentials" in (await proxy.health())["log"]["reason"]


async def test_stdout_is_pure_jsonl_and_equal_to_the_objects(
    start_proxy: Callable[..., ProxyProcess],
    provider: ScriptedProvider,
    directory_store: DirectoryStore,
) -> None:
    proxy = start_proxy(one_provider(provider.url), directory_store.env())
    await proxy.start()
    await calls.Caller(proxy.url, PROXY_KEY).send_all(range(8), calls.CallRecord())
    assert await proxy.stop() == 0
    printed = "".join(line + "\n" for line in proxy.stdout_lines()).encode()
    objects = (data.decode() for _, data in directory_store.objects())
    assert printed == "".join(map(log_contract.without_head, objects)).encode()
    assert printed.count(b"\n") == 16
    assert not proxy.queues(), "an empty queue's folder is removed at the end"


async def test_sigterm_lets_calls_finish_uploads_and_exits_0(
    start_proxy: Callable[..., ProxyProcess],
    provider: ScriptedProvider,
    directory_store: DirectoryStore,
) -> None:
    settings = directory_store.env() | {"FLUSH_INTERVAL_SECONDS": "300"}
    proxy = start_proxy(one_provider(provider.url), settings)
    await proxy.start()
    record = calls.CallRecord()
    caller = calls.Caller(proxy.url, PROXY_KEY, options={"pace": 0.1, "delay": 1})
    load = asyncio.create_task(caller.send_all(range(6), record, concurrency=6))
    await wait_until(lambda: len(provider.calls) == 6, "all calls arrived", 10)
    proxy.terminate()
    assert await proxy.wait() == 0
    await load
    assert len(record.answered) == 6, record.failed
    rows = [
        row
        for _, data in directory_store.objects()
        for row in log_contract.read_rows(data.splitlines())
    ]
    assert [row["outcome"] for row in rows if row["type"] == "response"] == ["ok"] * 6


async def test_a_second_sigterm_skips_the_waiting_and_not_the_entries(
    start_proxy: Callable[..., ProxyProcess],
    provider: ScriptedProvider,
    directory_store: DirectoryStore,
) -> None:
    proxy = start_proxy(one_provider(provider.url), directory_store.env())
    await proxy.start()
    caller = calls.Caller(proxy.url, PROXY_KEY, behaviour="silent")
    record = calls.CallRecord()
    load = asyncio.create_task(caller.send_all(range(4), record, concurrency=4))
    await wait_until(lambda: len(provider.calls) == 4, "all calls arrived", 10)
    proxy.terminate()
    await wait_until(lambda: "Shutting down" in proxy.stderr_text(), "the first signal is seen", 10)
    proxy.terminate()
    assert await proxy.wait() == 0
    await load
    assert not record.answered
    await proxy.start()
    await proxy.drained()
    rows = [
        row
        for _, data in directory_store.objects()
        for row in log_contract.read_rows(data.splitlines())
    ]
    outcomes = [row["outcome"] for row in rows if row["type"] == "response"]
    assert outcomes == ["interrupted"] * 4
    assert "Traceback" not in proxy.stderr_text()


async def test_sigusr1_uploads_an_open_window_now(
    start_proxy: Callable[..., ProxyProcess],
    provider: ScriptedProvider,
    directory_store: DirectoryStore,
) -> None:
    settings = directory_store.env() | {"FLUSH_INTERVAL_SECONDS": "86400"}
    proxy = start_proxy(one_provider(provider.url), settings)
    await proxy.start()
    await calls.Caller(proxy.url, PROXY_KEY).send_all(range(3), calls.CallRecord())
    assert not list(directory_store.objects())
    proxy.usr1()
    await wait_until(lambda: any(True for _ in directory_store.objects()), "an object", 10)
    assert proxy.running


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"LOG_BUCKET": "no-such-bucket"}, "NoSuchBucket"), ({"AWS_SECRET_ACCESS_KEY": "x"}, "403")],
    ids=["missing-bucket", "wrong-credentials"],
)
@pytest.mark.rgw
async def test_a_store_that_refuses_keeps_everything_queued_and_says_so(
    wrong: Mapping[str, str],
    said: str,
    start_proxy: Callable[..., ProxyProcess],
    provider: ScriptedProvider,
    rgw_store: S3Store,
) -> None:
    proxy = start_proxy(one_provider(provider.url), rgw_store.env() | wrong)
    await proxy.start()
    record = calls.CallRecord()
    await calls.Caller(proxy.url, PROXY_KEY).send_all(range(4), record)
    assert len(record.answered) == 4

    async def failed() -> dict[str, Any] | None:
        log: dict[str, Any] = (await proxy.health())["log"]
        return log if log["upload_failures"] else None

    log = await wait_until(failed, "an upload fails", 20)
    assert log["queued_rows"] == log["accepted_rows"] == 8
    assert said in log["last_error"]
    assert said in proxy.stderr_text()
    assert rgw_store.server.secret_key not in proxy.stderr_text().split()
    proxy.settings.update({**rgw_store.env()})
    await proxy.stop()
    await proxy.start()
    await proxy.drained()
    rows = [log_contract.read_rows(data.splitlines()) for _, data in rgw_store.objects()]
    assert sum(map(len, rows)) == 8


async def test_a_start_prints_one_block_and_every_line_has_a_time_and_a_level(
    start_proxy: Callable[..., ProxyProcess], directory_store: DirectoryStore
) -> None:
    settings = directory_store.env() | {"PROXY_KEYS_EXTRA": "team:key-of-the-team"}
    proxy = start_proxy(NOWHERE, settings | {"NRP_API_KEY": None})
    await proxy.start()
    assert await proxy.stop() == 0
    text = proxy.stderr_text()
    started = re.search(rf"\S+Z INFO Listening on http://127.0.0.1:{proxy.port}\n( .*\n)+", text)
    assert started is not None, text
    block = re.split(r"\n +", started.group().rstrip())
    config = proxy.folder / "config.json"
    sha256 = hashlib.sha256(config.read_bytes()).hexdigest()
    for expected in (
        f"version     {version('open-llm-proxy')}",
        f"config      {config} (SHA-256 {sha256[:16]})",
        "providers   nrp (default): no key, set NRP_API_KEY",
        "proxy keys  default, team",
        "capture     summary",
        f"log         dir:{directory_store.folder}, uploaded every 1 s, and stdout",
        "no queues of previous processes to recover",
    ):
        assert expected in block, text
    assert "key-of-the-team" not in text
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR|CRITICAL) "
    others = text.replace(started.group(), "").splitlines()
    assert others
    assert all(re.match(stamp, line) for line in others), text


async def test_a_start_says_how_many_queues_it_found(
    start_proxy: Callable[..., ProxyProcess], provider: ScriptedProvider, tmp_path: Path
) -> None:
    proxy = start_proxy(one_provider(provider.url), {"LOG_DIR": str(tmp_path / "objects")})
    await proxy.start()
    await calls.Caller(proxy.url, PROXY_KEY).send_all(range(2), calls.CallRecord())
    proxy.kill()
    await proxy.wait()
    await proxy.start()
    assert "1 other queue in there; recovering those whose process has ended" in proxy.stderr_text()


async def test_the_root_lists_the_routes(start_proxy: Callable[..., ProxyProcess]) -> None:
    proxy = start_proxy(NOWHERE, {})
    await proxy.start()
    async with httpx.AsyncClient(trust_env=False, base_url=proxy.url) as client:
        root = (await client.get("/")).json()
    assert root["name"] == "open-llm-proxy"
    assert "POST /v1/chat/completions" in root["routes"]


def test_ctrl_c_ends_the_demo_cleanly(tmp_path: Path) -> None:
    """`demo --json`: one call by itself, an object, and exit code 0 on Ctrl-C."""
    process = subprocess.Popen(
        [*CLI, "demo", "--json"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "demo --history" in line:
            break
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=30)
    text = "".join(said)
    assert process.returncode == 0, text + rest
    assert "Traceback" not in text + rest
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["type"] for row in rows] == ["request", "response"]
    assert rows[1]["outcome"] == "ok"
    objects = list((tmp_path / "logs").glob("*/*.jsonl"))
    assert [log_contract.without_head(path.read_text()) for path in objects] == [out]
    assert "curl -s http://127.0.0.1:" in text
    assert "read_ndjson_auto('logs/*/*.jsonl')" in text
