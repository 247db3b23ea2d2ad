"""Switching from the original proxy: its configuration, variables, keys, calls and queries.

`data/original` has a configuration and a log object of its shape. docs/migrate.md says what
differs; its queries are run here on old and new objects.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from duckdb_log import records
from known_content import question
from open_llm_proxy.server.commands import cli
from open_llm_proxy.server.config import parse_config
from open_llm_proxy.server.routing import Router
from proxy_process import PROXY_KEY, ProxyProcess
from raw_client import RawClient, request
from relay_calls import BEARER, Relay, chat
from scripted_provider import ProviderProcess, ScriptedProvider
from stores import DirectoryStore

pytest_plugins = ("relay_fixtures",)

ROOT = Path(__file__).resolve().parent.parent
ORIGINAL = ROOT / "tests" / "data" / "original"
SESSION = "3f2b8c1e-9d47-4a6f-8f0e-2b6f5d1c7a90"  # of the old object, too
BARE = ("eval-key-of-alice-0001", "eval-key-of-robert-0002")


def config(url: str) -> dict[str, Any]:
    """The original's configuration with all its providers at `url`."""
    text = (ORIGINAL / "config.json").read_text()
    document: dict[str, Any] = json.loads(re.sub(r"https://\w+\.example(?=/)", url, text))
    return document


def call(number: int, model: str = "kimi", **fields: object) -> bytes:
    """A call as the original's applications make it."""
    body = {"model": model, "messages": [{"role": "user", "content": question(number)}]}
    return json.dumps(body | {"user": SESSION} | fields).encode()


async def test_its_users_notice_nothing_and_their_queries_find_the_session(
    start_proxy: Callable[..., ProxyProcess],
    provider_process: ProviderProcess,
    directory_store: DirectoryStore,
) -> None:
    old_names = {
        "LOG_CAPTURE_MODE": "full", "FLUSH_INTERVAL": "1", "FLUSH_INTERVAL_SECONDS": None,
        "PROXY_KEYS_EXTRA": ",".join(BARE), "LOG_REASONING_MAX": "4000",
        "ANTHROPIC_API_KEY": "anthropic-key-of-the-tests",
    }  # fmt: skip
    settings = old_names | directory_store.env()
    proxy = start_proxy(config(provider_process.url), settings)
    await proxy.start()
    audio = [
        {"type": "text", "text": question(4)},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    ]
    tool = {"type": "function", "function": {"name": "query", "parameters": {"type": "object"}}}
    calls = [
        ("/v1/chat/completions", call(1, tools=[tool], tool_choice="auto", seed=7), PROXY_KEY),
        ("/chat", call(2, temperature=0.0, max_tokens=100), PROXY_KEY),
        ("/v1/chat/completions", call(3, enable_thinking=True), BARE[0]),
        ("/chat", call(4, messages=[{"role": "user", "content": audio}]), BARE[1]),
        ("/v1/chat/completions", call(5, "claude-opus-4-8", temperature=0.5, top_p=1), PROXY_KEY),
    ]
    for path, body, key in calls:
        # As nginx calls what stands behind it unless it is told otherwise.
        sent = request("POST", path, body, (("Authorization", f"Bearer {key}"),))
        async with RawClient(proxy.port) as client:
            await client.send(sent.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1))
            answer = await client.answer()
        assert (answer.status, answer.is_complete) == (200, True), answer.body
        assert answer.json()["choices"][0]["message"]["content"]
        assert answer.header("Transfer-Encoding") is None
    async with httpx.AsyncClient(trust_env=False) as http:
        health = await http.get(proxy.url + "/health", headers=dict([BEARER]))
    assert health.json()["logging"]["buffer_depth"] >= 0
    assert provider_process.seen() == {1, 2, 3, 4, 5}
    await proxy.drained()
    warned = proxy.stderr_text()
    for name in ("LOG_CAPTURE_MODE is read as LOG_CAPTURE;", "FLUSH_INTERVAL is read as FLUSH"):
        assert f"WARNING Check of settings: {name}" in warned
    assert not any(key in warned for key in BARE)

    connection = duckdb.connect()
    objects = f"read_ndjson_auto('{directory_store.folder}/*/*.jsonl', union_by_name=true)"
    of_session = f"FROM {objects} WHERE session_id = '{SESSION}'"
    turns = records(connection, f"SELECT * {of_session} AND type = 'request' ORDER BY seq")
    assert len(turns) == 5 and all(turn["messages_json"] for turn in turns)
    assert {turn["endpoint"] for turn in turns} == {"/v1/chat/completions"}
    alice, robert = (hashlib.sha256(key.encode()).hexdigest()[:6] for key in BARE)
    names = [turn["key_name"] for turn in turns]
    assert names == ["default", "default", alice, robert, "default"]
    assert [turn["thinking_applied"] for turn in turns] == [None, None, True, None, None]
    answers = records(connection, f"SELECT * {of_session} AND type = 'response' ORDER BY seq")
    assert [answer["outcome"] for answer in answers] == ["ok"] * 5
    assert answers[4]["proxy_warning"] == ("temperature, top_p not sent to model 'claude-opus-4-8'")
    assert await proxy.stop() == 0


def test_its_configuration_passes_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ORIGINAL / "config.json", "config.json")
    variables = {
        "PROXY_KEY": PROXY_KEY, "PROXY_KEYS_EXTRA": ",".join(BARE), "NRP_API_KEY": "nrp-key-1",
        "LOG_DIR": "logs", "LOG_CAPTURE_MODE": "full", "FLUSH_INTERVAL": "60",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.run(["check", "--config", "config.json"]) == 0
    shown = capfd.readouterr().out
    assert "LOG_CAPTURE_MODE is read as LOG_CAPTURE; rename it" in " ".join(shown.split())
    assert not any(key in shown for key in BARE)


def test_where_and_with_which_key_lists_of_models_are_asked_for() -> None:
    environment = {"OPENROUTER_KEY": "o-key", "ANTHROPIC_API_KEY": "a-key", "NRP_API_KEY": "n-key"}
    providers = Router(parse_config((ORIGINAL / "config.json").read_bytes()), environment).providers
    asked = {name: (p.models_url(), p.models_headers()) for name, p in providers.items()}
    assert asked["nrp"] == ("https://nrp.example/v1/models", {"Authorization": "Bearer n-key"})
    assert asked["openrouter"] == ("https://openrouter.example/public/models", {})
    url, headers = asked["anthropic"]
    assert url == "https://anthropic.example/v1/models"
    assert headers == {"x-api-key": "a-key", "anthropic-version": "2023-06-01"}


@pytest.mark.parametrize(
    ("provider_config", "model", "body", "sent", "warning"),
    [
        (["m-4"], "m-4", {"temperature": 1, "seed": 1}, {"seed": 1}, "temperature not sent to"),
        (["m-4"], "m-4-2026", {"top_k": 3, "top_p": None}, {}, "top_p, top_k not sent to"),
        (["m-4"], "m-4", {"seed": 1}, {"seed": 1}, None),
        (["m-4"], "m-5", {"temperature": 1}, {"temperature": 1}, None),
        ([], "m-4", {"temperature": 1}, {"temperature": 1}, None),
        (
            ["m-4"], "m-4", {"temperature": 1, "enable_thinking": True}, {},
            "enable_thinking has no effect on model 'm-4'; temperature not sent to",
        ),
    ],
    indirect=["provider_config"],
)  # fmt: skip
async def test_sampling_parameters_do_not_reach_models_that_refuse_them(
    relay: Relay, model: str, body: dict[str, Any], sent: dict[str, Any], warning: str | None
) -> None:
    fields = json.loads(chat(1)) | {"model": model} | body
    async with relay.connection() as client:
        await client.send(request("POST", "/chat", json.dumps(fields).encode(), (BEARER,)))
        answer = await client.answer()
    assert answer.status == 200
    (seen,) = relay.provider.calls
    assert seen.request.target == "/v1/chat/completions"
    assert seen.json == json.loads(chat(1)) | {"model": model} | sent
    told = answer.header("X-Proxy-Warning")
    assert told is None if warning is None else str(told).startswith(warning)
    assert relay.log.rows[-1].get("proxy_warning") == told
    assert relay.log.rows[0]["endpoint"] == "/v1/chat/completions"


@pytest.fixture
def provider_config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"no_sampling_params": getattr(request, "param", [])}


async def test_a_preflight_of_chat_is_answered(relay: Relay, provider: ScriptedProvider) -> None:
    async with relay.connection() as client:
        await client.send(request("OPTIONS", "/chat", None, (("Origin", "https://a.example"),)))
        answer = await client.begin()
        assert (answer.status, answer.header("Access-Control-Allow-Origin")) == (204, "*")
        await client.send(request("GET", "/chat", None, (BEARER,)))
        assert (await client.answer()).error["code"] == "route_not_offered"  # as its route
    assert not provider.calls


def test_one_query_reads_old_and_new_objects(tmp_path: Path) -> None:
    day = tmp_path / "2026-04-07"
    shutil.copytree(ORIGINAL / "2026-04-07", day)
    rows: list[dict[str, Any]] = [
        {"type": "request", "message_count": 2, "user_message_this_turn": "And now?"},
        {"type": "response", "outcome": "ok", "latency_ms": 9, "content": "Now.",
         "total_tokens": 7, "tool_calls": [{"id": "c", "name": "query", "arguments": "{}"}]},
    ]  # fmt: skip
    common = {"queue_id": "0" * 16, "timestamp": "2026-04-07T09:00:00.000Z", "request_id": "ab" * 8}
    common |= {"session_id": SESSION, "origin": "https://maps.example", "model": "kimi"}
    head = {"type": "schema", "queue_id": "0" * 16, "timestamp": "2026-04-07T09:00:00.000Z"}
    lines = [json.dumps(row) for row in [head, *(common | row for row in rows)]]
    (day / f"09-00-00-{'0' * 16}-0000000001-0000000002-{'a' * 12}.jsonl").write_text(
        "\n".join(lines) + "\n"
    )
    page = (ROOT / "docs" / "migrate.md").read_text().replace("s3://logs-<ns>", str(tmp_path))
    view, session, use = re.findall(r"^```sql\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    connection = duckdb.connect()
    connection.execute(view)
    turns = records(connection, session)
    assert [turn["content"] for turn in turns] == [None, "Alaska, then Nevada.", "Now."]
    assert [turn["outcome"] for turn in turns] == ["ok"] * 3
    assert turns[0]["tool_calls"][0]["name"] == turns[2]["tool_calls"][0]["name"] == "query"
    assert turns[1]["tool_results_this_turn"][0]["content"] == "Alaska, Nevada"
    found = [
        (u["is_old"], u["calls"], u["total_tokens"], u["not_ok"]) for u in records(connection, use)
    ]
    assert found == [(False, 1, 7, 0), (True, 3, 512, 1)]
    (prompt,) = records(
        connection, "SELECT messages_json FROM calls WHERE messages_json IS NOT NULL"
    )
    assert json.loads(prompt["messages_json"])[1]["role"] == "user"

    # The old daily Parquet keeps each row whole in `entry`.
    (command,) = re.findall(r"`(COPY [^`]+)`", page)
    source = f"read_ndjson_objects('{ORIGINAL}/*/*.jsonl')"
    old = str(tmp_path / "old.jsonl")
    copy = command.replace("…", f"SELECT json AS entry FROM {source}").replace("old.jsonl", old)
    connection.execute(copy)
    (original,) = (ORIGINAL / "2026-04-07").iterdir()
    assert [json.loads(line) for line in Path(old).read_text().splitlines()] == [
        json.loads(line) for line in original.read_text().splitlines()
    ]
