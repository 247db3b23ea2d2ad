"""A provider for real clients, and the proxy in front of it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from client_provider import MODEL, ClientProvider
from proxy_process import PROVIDER_KEY, ProxyProcess, one_provider


@pytest.fixture(scope="module")
def client_provider() -> Iterator[ClientProvider]:
    with ClientProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def client_proxy(
    client_provider: ClientProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProxyProcess]:
    folder: Path = tmp_path_factory.mktemp("clients")
    thinking = {"thinking_models": {MODEL: "thinking"}}
    config = one_provider(client_provider.url, models=[MODEL], **thinking)
    proxy = ProxyProcess(folder, config, {"LOG_DIR": str(folder / "objects")})
    asyncio.run(proxy.start())
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def provider_key() -> str:
    return PROVIDER_KEY
