"""Fixtures of the fault tests: trials, disks and the store."""

import itertools
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import broken_variants
from false_clock import ClockUnavailable, FalseClock
from fault_record import FaultRecord
from loop_disk import DiskUnavailable, LoopDisk
from proxy_process import SERVE_ARGV, ProxyProcess, one_provider
from scripted_provider import ProviderProcess
from stores import DirectoryStore, Store
from syscall_faults import TracingUnavailable, require_strace
from trial import Trial


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the test's end into the record; a skip may come from a fixture, before the test."""
    report = yield
    if report.when == "call" or (report.when == "setup" and not report.passed):
        record = FaultRecord.from_environment(item.nodeid)
        record.end(report.outcome, report.duration)
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("this fault takes root")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A fault that the kernel refuses to make skips its test, with the kernel's reason."""
    try:
        return (yield)
    except (DiskUnavailable, TracingUnavailable) as error:
        pytest.skip(f"this fault cannot be made here: {error}")


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
def clock(tmp_path: Path) -> Iterator[FalseClock]:
    """A clock that the test sets, for servers started with its settings."""
    try:
        made = FalseClock(tmp_path)
    except ClockUnavailable as error:
        pytest.skip(f"no false clock here: {error}")
    made.clear()
    yield made
    made.clear()


@pytest.fixture
def strace() -> None:
    """Skips the test where processes cannot be traced."""
    try:
        require_strace()
    except TracingUnavailable as error:
        pytest.skip(f"no tracing here: {error}")
