"""Fixtures that many tests share. What is slow to start lives for the whole session."""

import signal
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

import stores
import wire
from proxy_process import SERVE_ARGV, ProxyProcess
from scripted_provider import ProviderProcess, ScriptedProvider

# A shell without job control makes its background jobs deaf to Ctrl-C, and whatever the tests
# start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> wire.Certificates:
    """A certificate authority of our own and a certificate for 127.0.0.1 and localhost."""
    return wire.make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def provider(io_loop: IOLoop) -> Iterator[ScriptedProvider]:
    """The scripted provider on the test's own loop."""
    provider = ScriptedProvider()
    io_loop.run_sync(provider.start)
    yield provider
    io_loop.run_sync(provider.stop)


@pytest.fixture
def tls_provider(io_loop: IOLoop, certificates: wire.Certificates) -> Iterator[ScriptedProvider]:
    """The same over https, with a certificate that only `certificates.authority` vouches for."""
    provider = ScriptedProvider(certificates=certificates)
    io_loop.run_sync(provider.start)
    yield provider
    io_loop.run_sync(provider.stop)


@pytest.fixture
def provider_process(tmp_path: Path) -> Iterator[ProviderProcess]:
    """The scripted provider as a process, whose `seen()` survives everything."""
    process = ProviderProcess(tmp_path / "seen.txt")
    yield process
    process.close()


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[Callable[..., ProxyProcess]]:
    """Makes proxies (not yet started) under folders of their own, and ends them all."""
    made: list[ProxyProcess] = []

    def make(
        config: Mapping[str, Any],
        settings: Mapping[str, str | None],
        *,
        name: str = "proxy",
        command_prefix: Sequence[str] = (),
        argv: Sequence[str] = SERVE_ARGV,
    ) -> ProxyProcess:
        folder = tmp_path / name
        proxy = ProxyProcess(folder, config, settings, command_prefix=command_prefix, argv=argv)
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def directory_store(tmp_path: Path) -> stores.DirectoryStore:
    """An empty folder as object store."""
    folder = tmp_path / "objects"
    folder.mkdir()
    return stores.DirectoryStore(folder)


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.S3Server]:
    """moto's S3 as a server process."""
    process = stores.MotoProcess(tmp_path_factory.mktemp("moto") / "moto.log")
    yield process.server
    process.close()


@pytest.fixture
def moto_store(moto_server: stores.S3Server) -> Iterator[stores.S3Store]:
    """A new bucket in moto."""
    yield from _bucket(moto_server)


@pytest.fixture(scope="session")
def rgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.Rgw]:
    """The real Ceph RGW; skips with the reason where it cannot run."""
    try:
        gateway = stores.Rgw(tmp_path_factory.mktemp("rgw"))
    except stores.StoreUnavailable as error:
        pytest.skip(f"no Ceph RGW here: {error}")
    yield gateway
    gateway.close()


@pytest.fixture
def rgw_store(rgw: stores.Rgw) -> Iterator[stores.S3Store]:
    """A new bucket in the real RGW, over http."""
    yield from _bucket(rgw.server)


@pytest.fixture
def rgw_tls_store(rgw: stores.Rgw) -> Iterator[stores.S3Store]:
    """A new bucket in the real RGW, over https."""
    try:
        server = rgw.tls_server()
    except stores.StoreUnavailable as error:
        pytest.skip(f"no Ceph RGW over https here: {error}")
    yield from _bucket(server)


def _bucket(server: stores.S3Server) -> Iterator[stores.S3Store]:
    store = stores.S3Store(server, f"test-{uuid.uuid4().hex[:12]}")
    yield store
    store.close(remove=True)
