"""Fixtures of the fault tests: trials, disks and the store."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import broken_variants
import syscall_faults
from fault_record import FaultRecord
from loop_disk import DiskUnavailable, LoopDisk
from proxy_process import SERVE_ARGV, ProxyProcess, one_provider
from scripted_provider import ProviderProcess
from stores import DirectoryStore, Store
from trial import Trial


@pytest.fixture
def disks() -> Iterator[list[LoopDisk]]:
    """The disks of a test, closed after its servers have ended."""
    made: list[LoopDisk] = []
    yield made
    for disk in made:
        disk.close()


@pytest.fixture
def new_trial(
    request: pytest.FixtureRequest,
    disks: list[LoopDisk],
    start_proxy: Callable[..., ProxyProcess],
    provider_process: ProviderProcess,
    directory_store: DirectoryStore,
) -> Callable[..., Trial]:
    """Makes trials whose servers have folders of their own; all call the same provider."""
    count = itertools.count(1)

    def make(
        *,
        variant: str = "",
        store: Store = directory_store,
        settings: Mapping[str, str | None] | None = None,
        queue_folder: Path | None = None,
        window_seconds: int = 1,
        command_prefix: Sequence[str] = (),
    ) -> Trial:
        number = next(count)
        window = {"FLUSH_INTERVAL_SECONDS": str(window_seconds)}
        proxy = start_proxy(
            one_provider(provider_process.url),
            {**store.env(), **window, **(settings or {})},
            name=f"proxy-{number}",
            command_prefix=command_prefix,
            argv=broken_variants.argv(variant) if variant else SERVE_ARGV,
        )
        if queue_folder is not None:
            proxy.queue_folder = queue_folder
            proxy.settings["LOG_QUEUE_DIR"] = str(queue_folder)
        return Trial(
            proxy,
            provider_process,
            store,
            window_seconds=window_seconds,
            first_number=1 + (number - 1) * 100_000,
            variant=variant,
            records=FaultRecord.from_environment(request.node.nodeid),
        )

    return make


@pytest.fixture
def loop_disk(disks: list[LoopDisk], tmp_path: Path) -> LoopDisk:
    """A disk of 96 MB that the test may break."""
    try:
        disks.append(LoopDisk(tmp_path))
    except DiskUnavailable as error:
        pytest.skip(f"no loop disks here: {error}")
    return disks[-1]


@pytest.fixture
def strace() -> None:
    """Skips the test where processes cannot be traced."""
    try:
        syscall_faults.require_strace()
    except syscall_faults.TracingUnavailable as error:
        pytest.skip(f"no tracing here: {error}")
