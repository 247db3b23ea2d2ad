"""A namespace of its own for each test on a cluster, a provider, and a store that can go away."""

import itertools
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from cluster import (
    BUCKET,
    STORE_NAMESPACE,
    Cluster,
    Layout,
    image_name,
    load_image,
    make_store_name,
    own_address,
    run,
)
from cluster_trial import Trial
from scripted_provider import ProviderProcess
from store_faults import FaultyProxy
from stores import MotoProcess, S3Store

EVERYWHERE = "0.0.0.0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(seconds=7200))


@pytest.fixture(scope="session")
def loaded() -> Iterator[bool]:
    """Loads the image once; whether there was a command for it."""
    if "KUBECONFIG" not in os.environ or shutil.which("kubectl") is None:
        pytest.skip("no cluster: set KUBECONFIG, and install kubectl")
    loop = IOLoop(make_current=False)
    yield loop.run_sync(lambda: load_image(image_name()))
    loop.close()


@pytest.fixture
def new_trial(
    io_loop: IOLoop, tmp_path: Path, loaded: bool
) -> Iterator[Callable[..., Awaitable[Trial]]]:
    """Makes trials in namespaces of their own; nothing of them is left."""
    undo: list[Callable[[], Awaitable[object]]] = []
    close: list[Callable[[], object]] = []
    count = itertools.count()

    async def make(layout: Layout, *, with_store: bool = True) -> Trial:
        folder = tmp_path / str(next(count))
        folder.mkdir()
        address = own_address()
        provider = ProviderProcess(folder / "seen.txt", EVERYWHERE)
        close.append(provider.close)
        (folder / "seen.txt").touch()
        moto = MotoProcess(folder / "moto.log")
        close.append(moto.close)
        store = S3Store(moto.server, BUCKET)
        passage = FaultyProxy(moto.server.address, EVERYWHERE)
        await passage.accept()
        undo.append(passage.refuse)
        if with_store:
            await run("kubectl", "create", "namespace", STORE_NAMESPACE)
            undo.append(lambda: run("kubectl", "delete", "namespace", STORE_NAMESPACE))
            await make_store_name(address, passage.port)
        url = f"http://{address}:{provider.port}"
        namespace = f"open-llm-proxy-{secrets.token_hex(4)}"
        cluster = Cluster(namespace, folder / "k8s", url, layout, loaded)
        undo.append(cluster.remove)
        await cluster.prepare()
        return Trial(cluster, provider, store, passage)

    yield make
    for step in reversed(undo):
        io_loop.run_sync(step)
    for finish in reversed(close):
        finish()
