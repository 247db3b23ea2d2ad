"""Real clients against a real proxy: no check passes directly and fails through the proxy.

`make test-clients` runs all and writes the table of docs/clients.md from what they say. The openai
package for Python is tried in every `make test`, and a page in Chromium where Node, Chromium and
what `make test-clients` installs are there.
"""

import json
import sys
from pathlib import Path

import pytest

import client_runs
from client_provider import ClientProvider
from client_runs import CLIENTS, Client, Missing, Outcome
from proxy_process import PROXY_KEY, ProxyProcess

RESULTS = client_runs.FOLDER / "results"


def through_both(
    client: Client, program: list[str], provider: ClientProvider, proxy: ProxyProcess, key: str
) -> tuple[Outcome, Outcome]:
    """The client's checks, directly and through the proxy."""
    direct = client_runs.run(client, program, f"{provider.url}/v1", key, provider.url)
    proxied = client_runs.run(client, program, f"{proxy.url}/v1", PROXY_KEY, provider.url)
    return direct, proxied


def judge(direct: Outcome, proxied: Outcome, proxy: ProxyProcess) -> None:
    passed = [name for name, error in direct.results.items() if error is None]
    assert "chat" in passed, direct.results
    lost = {name: proxied.results[name] for name in passed if proxied.results[name] is not None}
    assert not lost
    rows = [json.loads(line) for line in proxy.stdout_lines() if '"request"' in line]
    [row] = [row for row in rows if row.get("request_id") == proxied.request_id]
    assert (row["session_id"], row["client"]) == (proxied.session, "check")


@pytest.mark.clients
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_does_through_the_proxy_what_it_does_directly(
    client: Client, client_provider: ClientProvider, client_proxy: ProxyProcess, provider_key: str
) -> None:
    try:
        program = client_runs.installed(client)
    except Missing as missing:
        pytest.skip(str(missing))
    direct, proxied = through_both(client, program, client_provider, client_proxy, provider_key)
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = {"name": client.name, "version": proxied.version}
    found |= {"direct": direct.results, "proxied": proxied.results}
    name = f"{CLIENTS.index(client)}-{client.script.partition('.')[0]}.json"
    (RESULTS / name).write_text(json.dumps(found, indent=1))
    judge(direct, proxied, client_proxy)


def test_the_openai_package_does_through_the_proxy_what_it_does_directly(
    client_provider: ClientProvider, client_proxy: ProxyProcess, provider_key: str
) -> None:
    """With the version that the tests have."""
    client = Client("openai", "use_openai.py", "openai", ("openai",))
    program = [sys.executable]
    direct, proxied = through_both(client, program, client_provider, client_proxy, provider_key)
    assert {name: error for name, error in direct.results.items() if error is not None} == {}
    judge(direct, proxied, client_proxy)


def test_a_page_of_another_origin_does_through_the_proxy_what_it_does_directly(
    client_provider: ClientProvider, client_proxy: ProxyProcess, provider_key: str
) -> None:
    if not (client_runs.NODE_FOLDER / "filled").exists():
        pytest.skip("playwright-core is not installed: make test-clients does it")
    [client] = [client for client in CLIENTS if client.name == "Chromium, fetch"]
    try:
        program = client_runs.installed(client)
    except Missing as missing:
        pytest.skip(str(missing))
    direct, proxied = through_both(client, program, client_provider, client_proxy, provider_key)
    judge(direct, proxied, client_proxy)


def test_the_table_of_the_documentation_has_every_client() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "clients.md").read_text()
    for client in CLIENTS:
        assert f"| {client.name} " in page
