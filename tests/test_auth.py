"""Proxy keys: who is let in, under which name, and what the others are told."""

import asyncio
import json
import os
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from memory_log import MemoryLog
from open_llm_proxy.server.auth import ProxyKeys
from open_llm_proxy.server.commands import cli
from open_llm_proxy.server.key_files import KeyFileError, KeyFiles, all_keys
from open_llm_proxy.server.proxy_errors import ProxyError
from open_llm_proxy.server.proxy_key import SENDABLE, ProxyKey
from open_llm_proxy.server.settings import Settings
from open_llm_proxy.server.wrong_keys import MAX_ADDRESSES, WrongKeys
from proxy_process import ProxyProcess, one_provider
from raw_client import request
from relay_calls import BEARER, CHAT, Relay, chat
from stores import DirectoryStore
from waiting import wait_until

pytest_plugins = ("relay_fixtures",)

KEYS = ProxyKeys({"default": ProxyKey("the-main-key"), "team": ProxyKey("the-team-key")})


def sent(authorization: str | None, peer: str = "192.0.2.1") -> HTTPServerRequest:
    """A request with this header, from a peer's address."""
    headers = HTTPHeaders({"Host": "proxy.test"})
    if authorization is not None:
        headers["Authorization"] = authorization
    request = HTTPServerRequest(
        start_line=RequestStartLine("GET", "/", "HTTP/1.1"), headers=headers
    )
    request.remote_ip = peer
    return request


@pytest.mark.parametrize(
    ("authorization", "name"),
    [
        ("Bearer the-main-key", "default"),
        ("bearer the-main-key", "default"),
        ("BEARER   the-main-key ", "default"),
        ("Bearer the-team-key", "team"),
    ],
)
def test_a_key_is_known_by_its_name(authorization: str, name: str) -> None:
    assert KEYS.check(sent(authorization)) == name


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer the-main-ke",
        "Bearer the-main-key2",
        "Bearer thé-main-key",
        "Basic the-main-key",
        "the-main-key",
        "Token the-main-key",
    ],
)
def test_anything_else_is_a_401_that_says_how_to_send_the_key(authorization: str | None) -> None:
    with pytest.raises(ProxyError) as raised:
        ProxyKeys({"default": ProxyKey("the-main-key")}).check(sent(authorization))
    assert raised.value.status == 401
    assert raised.value.code == "invalid_api_key"
    assert str(raised.value).startswith(("Incorrect API key provided", "No API key provided"))
    assert "the-main-key" not in str(raised.value)


def test_without_any_key_every_call_is_told_why() -> None:
    with pytest.raises(ProxyError, match="PROXY_KEY") as raised:
        ProxyKeys({}).check(sent("Bearer anything"))
    assert raised.value.status == 503


def test_extra_keys_are_enough() -> None:
    keys = ProxyKeys({"app": ProxyKey("key-of-the-app")})
    assert keys.check(sent("Bearer key-of-the-app")) == "app"


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_address_may_try_a_few_wrong_keys_a_second() -> None:
    clock = Clock()
    wrong = WrongKeys(clock=clock)
    tries = [wrong.is_too_often("192.0.2.1", None) for _ in range(50)]
    assert tries == [False] * 5 + [True] * 45
    assert not wrong.is_too_often("192.0.2.2", None)
    clock.now += 0.21
    assert [wrong.is_too_often("192.0.2.1", None) for _ in range(3)] == [False, True, True]
    clock.now += 1000
    assert [wrong.is_too_often("192.0.2.1", None) for _ in range(6)] == [False] * 5 + [True]


def test_the_addresses_that_are_remembered_are_bounded() -> None:
    wrong = WrongKeys(clock=Clock())
    for number in range(2 * MAX_ADDRESSES):
        wrong.is_too_often(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", None)
    assert len(wrong._left) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "203.0.113.9, unknown", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3::4", None, "2001:db8:1:2::/64"),
        ("fd00::1", "2001:db8:1:2:9::9", "2001:db8:1:2::/64"),
        ("", None, ""),
    ],
)
def test_whom_a_request_comes_from(peer: str, forwarded: str | None, address: str) -> None:
    trusted = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert WrongKeys(trusted).address(peer, forwarded) == address


ROUTES = [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/health")]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_wrong_keys_are_counted_and_refused_on_every_route_and_a_right_one_never(
    relay: Relay, log: MemoryLog, method: str, path: str
) -> None:
    wrong = ("Authorization", "Bearer wrong")
    statuses = []
    async with relay.connection() as client:
        for _ in range(40):
            await client.send(request(method, path, b"{}", (wrong,)))
            answer = await client.answer()
            statuses.append(answer.status)
            if answer.status == 429:
                assert answer.error["code"] == "too_many_wrong_keys"
                assert answer.header("Retry-After") == "1"
    assert statuses.count(429) > 20
    assert set(statuses[:5]) == ({200} if path == "/health" else {401})
    assert (await relay.ask(1)).status == 200
    async with relay.connection() as client:
        await client.send(request("GET", "/metrics", None, (BEARER,)))
        metrics = (await client.answer()).body.decode()
    counted = f'open_llm_proxy_refused_total{{code="too_many_wrong_keys"}} {statuses.count(429)}.0'
    assert counted in metrics
    counted = f'open_llm_proxy_refused_total{{code="invalid_api_key"}} {40 - statuses.count(429)}.0'
    assert counted in metrics
    assert len(log.rows) == 2


async def test_who_sends_no_key_is_told_so_however_often(relay: Relay) -> None:
    async with relay.connection() as client:
        for _ in range(20):
            await client.send(request("POST", CHAT, b"{}"))
            assert (await client.answer()).status == 401


def test_keys_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the-key-in-the-file\n")
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "..data").mkdir()
    (folder / "app").write_text("the-key-of-the-app")
    files = KeyFiles(tmp_path / "key", folder)
    assert files.read() == {
        "default": ProxyKey("the-key-in-the-file"), "app": ProxyKey("the-key-of-the-app"),
    }  # fmt: skip
    state = files.state()
    assert files.state() == state
    (folder / "other").write_text("another-key")
    assert files.state() != state
    settings = Settings(proxy_key_file=tmp_path / "key", proxy_keys_extra=(("app", "x"),))
    assert set(all_keys(settings)) == {"default", "app"}
    with pytest.raises(KeyFileError, match="named app"):
        all_keys(Settings(proxy_keys_dir=folder, proxy_keys_extra=(("app", "x"),)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "must hold one key"),
        (b" \n", "must hold one key"),
        (b"two keys", "must hold one key"),
        (b"one\ntwo\n", "must hold one key"),
        ("schlüssel".encode(), "must hold one key"),
        (b"a\0b", "must hold one key"),
        (b"k" * 5000, "must hold one key"),
        (None, "cannot be read"),
    ],
)
def test_a_file_without_a_key_is_a_sentence_without_its_content(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeyFileError, match=why) as raised:
        KeyFiles(key_file=path).read()
    assert "schl" not in str(raised.value) and "two" not in str(raised.value)


async def test_a_key_is_replaced_and_revoked_without_dropping_a_call(
    start_proxy: Callable[..., ProxyProcess],
    provider_process: object,
    directory_store: DirectoryStore,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "app").write_text("the-first-key-of-the-app")
    settings = {"PROXY_KEYS_DIR": str(folder), "PROXY_KEY": None, **directory_store.env()}
    url = provider_process.url  # type: ignore[attr-defined]
    proxy = start_proxy(one_provider(url), settings)
    await proxy.start()

    async def ask(http: httpx.AsyncClient, key: str, number: int, **options: object) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        body = json.loads(chat(number, **options))
        return (await http.post(proxy.url + CHAT, json=body, headers=headers)).status_code

    async def accepts(http: httpx.AsyncClient, key: str) -> bool:
        headers = {"Authorization": f"Bearer {key}"}
        return (await http.get(proxy.url + "/v1/models", headers=headers)).status_code == 200

    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        assert await ask(http, "the-first-key-of-the-app", 1) == 200
        slow = asyncio.ensure_future(ask(http, "the-first-key-of-the-app", 2, delay=8.0))
        os.replace(_file(tmp_path, "the-second-key-of-the-app"), folder / "app")
        await wait_until(
            lambda: accepts(http, "the-second-key-of-the-app"), "the new key", poll_seconds=0.5
        )
        assert not await accepts(http, "the-first-key-of-the-app")
        os.replace(_file(tmp_path, "no key"), folder / "app")
        await wait_until(lambda: "stay as they were" in proxy.stderr_text(), "the refusal", 30)
        assert await accepts(http, "the-second-key-of-the-app")
        assert await slow == 200
    text = proxy.stderr_text()
    assert "the-second-key" not in text and "the-first-key" not in text


def _file(folder: Path, content: str) -> Path:
    path = folder / "new"
    path.write_text(content)
    return path


def test_a_new_key_is_strong_and_has_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    made = set()
    for _ in range(3):
        assert cli.run(["keys", "new", "my-app"]) == 0
        out, err = capsys.readouterr()
        name, key = out.strip().split(":")
        assert name == "my-app" and len(key) > 40 and SENDABLE.fullmatch(key)
        assert "PROXY_KEYS_EXTRA" in err and key not in err
        made.add(key)
    assert len(made) == 3
    for wrong in ("a:b", "a,b", "", "-a", "a b"):
        with pytest.raises(SystemExit):
            cli.run(["keys", "new", wrong])
