"""Keys with bounds: which models, until when, how many requests a minute."""

import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from memory_log import MemoryLog
from open_llm_proxy.server.commands import cli
from open_llm_proxy.server.key_files import KeyFileError, KeyFiles, all_keys, read_keys_json
from open_llm_proxy.server.proxy_key import KeyEntryError, ProxyKey
from open_llm_proxy.server.request_rate import RequestRates
from open_llm_proxy.server.settings import Settings
from proxy_process import ProxyProcess, one_provider
from raw_client import request
from relay_calls import BEARER, CHAT, Relay, chat
from scripted_provider import ProviderProcess
from stores import DirectoryStore
from waiting import wait_until

pytest_plugins = ("relay_fixtures",)

YESTERDAY = datetime(2026, 1, 1, tzinfo=UTC)


def test_an_entry_of_keys_json() -> None:
    entry = {
        "key": "k", "models": ["kimi", "anthropic/", "claude-*"], "expires": "2026-12-31",
        "requests_per_minute": 3, "_comment": "for the workshop",
    }  # fmt: skip
    key = ProxyKey.of(entry)
    tried = ("kimi", "kimi2", "anthropic/x", "claude-5", "claude")
    assert [model for model in tried if key.allows(model)] == ["kimi", "anthropic/x", "claude-5"]
    assert not key.is_expired(datetime(2026, 12, 31, 23, 59, tzinfo=UTC))
    assert key.is_expired(datetime(2027, 1, 1, tzinfo=UTC))
    assert "k" not in repr(key).partition("models")[0].removeprefix("ProxyKey")
    unbounded = ProxyKey.of({"key": "k"})
    assert unbounded.allows("any") and not unbounded.is_expired()
    moment = ProxyKey.of({"key": "k", "expires": "2026-12-31T18:00:00+02:00"}).expires_at
    assert moment == datetime(2026, 12, 31, 16, tzinfo=UTC)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({}, "key must be"),
        ({"key": "the secret"}, "key must be"),
        ({"key": 1}, "key must be"),
        ({"key": "k", "model": ["kimi"]}, "did you mean models"),
        ({"key": "k", "models": "kimi"}, "models must be a list"),
        ({"key": "k", "models": []}, "models is empty"),
        ({"key": "k", "expires": "soon"}, "expires must be a date"),
        ({"key": "k", "expires": None}, "expires must be a date"),
        ({"key": "k", "requests_per_minute": 0}, "a whole number from 1"),
        ({"key": "k", "requests_per_minute": True}, "a whole number from 1"),
        ({"key": "k", "requests_per_minute": "9"}, "a whole number from 1"),
    ],
)
def test_a_wrong_entry_is_a_sentence_without_the_key(
    tmp_path: Path, entry: dict[str, Any], why: str
) -> None:
    with pytest.raises(KeyEntryError, match=why) as raised:
        ProxyKey.of(entry)
    assert "secret" not in str(raised.value)
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"app": entry}))
    with pytest.raises(KeyFileError, match=f"keys.json: app: .*{why}"):
        read_keys_json(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"a b": {"key": "k"}}', "'a b' cannot be a key's name"),
        ('{"app": "the-secret"}', "app: must be an object"),
        ('{"app": {"key": "k"}, "app": {"key": "j"}}', "'app' is in it twice"),
    ],
)
def test_a_file_that_is_no_keys_json(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(KeyFileError, match=why) as raised:
        read_keys_json(path)
    assert "secret" not in str(raised.value)


def test_a_mounted_file_may_hold_an_entry_and_names_are_not_used_twice(tmp_path: Path) -> None:
    folder, path = tmp_path / "keys", tmp_path / "keys.json"
    folder.mkdir()
    (folder / "app").write_text('{"key": "key-of-app", "models": ["kimi"]}\n')
    (folder / "odd").write_text("{a-key-with-braces}")
    path.write_text('{"workshop": {"key": "key-of-workshop"}}')
    files = KeyFiles(None, folder, path)
    assert files.read() == {
        "workshop": ProxyKey("key-of-workshop"),
        "app": ProxyKey("key-of-app", ("kimi",)),
        "odd": ProxyKey("{a-key-with-braces}"),
    }
    before = files.state()
    path.write_text('{"app": {"key": "key-of-workshop"}}')
    assert files.state() != before
    with pytest.raises(KeyFileError, match="app is the name of another file's key"):
        files.read()
    with pytest.raises(KeyFileError, match="Two keys are named app"):
        all_keys(Settings(proxy_keys_json=path, proxy_keys_extra=(("app", "x"),)))


def test_a_minute_of_requests_is_counted_exactly() -> None:
    now = 100.0
    rates = RequestRates(lambda: now)
    waits = []
    for _ in range(5):
        waits.append(rates.seconds_to_wait("app", 3))
        now += 10
    assert waits == [0, 0, 0, 30, 20]
    assert rates.seconds_to_wait("other", 3) == 0
    assert rates.seconds_to_wait("app", 3) == 10
    now = 160.0
    assert [rates.seconds_to_wait("app", 3) for _ in range(2)] == [0, 10]
    assert rates.seconds_to_wait("app", 1) == 60  # lowered meanwhile
    rates.keep({"other"})
    assert rates.seconds_to_wait("app", 1) == 0


@pytest.mark.parametrize("relay_settings", [{"bounds": {"requests_per_minute": 2}}])
async def test_a_call_too_many_is_429_and_logged(relay: Relay, log: MemoryLog) -> None:
    for number in (1, 2):
        assert (await relay.ask(number)).status == 200
    answer = await relay.ask(3)
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert answer.error["type"] == "rate_limit_error"
    assert 1 <= int(answer.header("Retry-After") or 0) <= 60
    assert len(relay.provider.calls) == 2
    row = log.rows[-1]
    assert (row["outcome"], row["status"], row["key_name"]) == ("rejected", 429, "default")
    async with relay.connection() as client:  # what is no call does not count
        await client.send(request("GET", "/v1/models", None, (BEARER,)))
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("relay_settings", [{"bounds": {"models": ("kimi", "zeta/")}}])
async def test_another_model_is_403_and_lists_have_the_allowed_ones(
    relay: Relay, log: MemoryLog
) -> None:
    relay.provider.models = ("zeta/one", "other")
    assert (await relay.ask(1)).status == 200
    async with relay.connection() as client:
        body = chat(2).replace(b"kimi", b"qwen3")
        await client.send(request("POST", CHAT, body, (BEARER,)))
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
        assert answer.error["message"].endswith("It may call: kimi, zeta/")
        assert (log.rows[-1]["outcome"], log.rows[-1]["model"]) == ("rejected", "qwen3")
        await client.send(request("GET", "/v1/models", None, (BEARER,)))
        listed = (await client.answer()).json()["data"]
        assert [model["id"] for model in listed] == ["kimi", "zeta/one"]
        await client.send(request("GET", "/v1/models/other", None, (BEARER,)))
        assert (await client.answer()).status == 403


@pytest.mark.parametrize("relay_settings", [{"bounds": {"expires_at": YESTERDAY}}])
async def test_an_expired_key_is_403_everywhere_and_a_stranger_s_for_health(
    relay: Relay, log: MemoryLog
) -> None:
    answer = await relay.ask(1)
    assert (answer.status, answer.error["code"]) == (403, "key_expired")
    assert "expired at 2026-01-01T00:00:00Z" in answer.error["message"]
    async with relay.connection() as client:
        await client.send(request("GET", "/v1/models", None, (BEARER,)))
        assert (await client.answer()).status == 403
        await client.send(request("GET", "/health", None, (BEARER,)))
        assert "log" not in (await client.answer()).json()
    assert not log.rows and not relay.provider.calls


async def test_keys_json_is_read_again_and_keys_new_writes_it(
    start_proxy: Callable[..., ProxyProcess],
    provider_process: ProviderProcess,
    directory_store: DirectoryStore,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "keys.json"

    def new(name: str, *options: str) -> str:
        assert cli.run(["keys", "new", name, "--file", str(path), *options]) == 0
        key = capfd.readouterr().out.strip()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        return key

    first = new("first", "--models", "kimi,qwen3", "--requests-per-minute", "1")
    settings = {"PROXY_KEYS_JSON": str(path), "PROXY_KEY": None, **directory_store.env()}
    proxy = start_proxy(one_provider(provider_process.url), settings)
    await proxy.start()

    async def ask(http: httpx.AsyncClient, key: str, number: int) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return (
            await http.post(proxy.url + CHAT, content=chat(number), headers=headers)
        ).status_code

    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        assert [await ask(http, first, n) for n in (1, 2)] == [200, 429]
        second = new("second")
        await wait_until(lambda: "were read again: first, second" in proxy.stderr_text(), "", 30)
        assert await ask(http, second, 3) == 200
        assert await ask(http, first, 4) == 429  # a reading forgets no minute
    assert first not in proxy.stderr_text() and second not in proxy.stderr_text()
    assert cli.run(["keys", "new", "second", "--file", str(path)]) == 2
    assert "has a key second already" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options", [("--expires", "soon"), ("--models", ","), ("--requests-per-minute", "0")]
)
def test_keys_new_refuses_bounds_that_make_no_sense(
    capsys: pytest.CaptureFixture[str], options: tuple[str, str]
) -> None:
    assert cli.run(["keys", "new", "app", *options]) == 2
    assert not capsys.readouterr().out


def test_keys_new_prints_an_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["keys", "new", "app", "--expires", "2026-12-31"]) == 0
    out, err = capsys.readouterr()
    entry = json.loads(out)["app"]
    assert ProxyKey.of(entry).expires_at == datetime(2027, 1, 1, tzinfo=UTC)
    assert "PROXY_KEYS_JSON" in err and entry["key"] not in err
    assert cli.run(["keys", "new", "app", "--json"]) == 0
    out, err = capsys.readouterr()
    assert set(json.loads(out)["app"]) == {"key"} and not err
