"""The life of a server process: start, serve, shut down.

On SIGTERM or SIGINT /ready answers 503 while calls are still accepted, so that load balancers
notice. Then the socket and idle connections are closed, calls in progress may finish, the remaining
ones are ended visibly, and the log is uploaded as far as the store accepts it. The rest stays in
the queue for the next start. A second signal skips the waiting, but never a closing entry. SIGUSR1
uploads the log now.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import version

from tornado.netutil import bind_sockets

from open_llm_proxy.queue.errors import QueueBroken, QueueStalled
from open_llm_proxy.queue.folder import queue_folders
from open_llm_proxy.queue.log_queue import LogQueue
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.queue.meta import Meta
from open_llm_proxy.queue.orphans.adoption import Adoption
from open_llm_proxy.queue.orphans.left_queues import left_at_start
from open_llm_proxy.server.app import make_app, make_metrics_app
from open_llm_proxy.server.auth import ProxyKeys
from open_llm_proxy.server.config import Config
from open_llm_proxy.server.cors import CorsPolicy
from open_llm_proxy.server.entries.call_entries import Provenance
from open_llm_proxy.server.entries.capture import capture_of
from open_llm_proxy.server.entries.log import EntryLog, QueuedLog, StdoutLog
from open_llm_proxy.server.entries.stdout import StdoutLines
from open_llm_proxy.server.http1.server import (
    ClientServer,
    connections_for,
    listen_backlog,
    raise_file_limit,
)
from open_llm_proxy.server.key_files import all_keys, follow
from open_llm_proxy.server.metrics import Metrics
from open_llm_proxy.server.preflight.checks import check_online
from open_llm_proxy.server.preflight.findings import Finding, Level
from open_llm_proxy.server.proxy_key import ProxyKey
from open_llm_proxy.server.redaction.cache import RememberingRedactor
from open_llm_proxy.server.request_body import BodyBudget
from open_llm_proxy.server.routing import Router
from open_llm_proxy.server.services import Lifecycle, Services
from open_llm_proxy.server.settings import Settings
from open_llm_proxy.server.sink_choice import choose_sink
from open_llm_proxy.server.start_block import LogFacts, start_block
from open_llm_proxy.server.upstream.client import PooledHTTPClient
from open_llm_proxy.server.upstream.timeouts import Timeouts
from open_llm_proxy.server.wrong_keys import WrongKeys

log = logging.getLogger(__name__)

# With Python's 5 ms the writer's thread would wait for the event loop at every commit.
SWITCH_INTERVAL_SECONDS = 0.0005
# New objects between two looks for garbage, and so on; Python's 700 are some ten calls.
GARBAGE_THRESHOLDS = (10_000, 20, 20)
INTERRUPT_SECONDS = 10.0
STALLED_INTERRUPT_SECONDS = 1.0
UPLOAD_SECONDS = 20.0
STDOUT_SECONDS = 2.0
CONNECTIONS_PER_HOST = 2000
METRICS_CONNECTIONS = 100


class PortUnavailable(Exception):
    """HOST and PORT cannot be listened on; the message says why."""


class Shutdown:
    """Why and how fast the process must end.

    `requested` is set by the first signal, `hurry` by the second one. A queue file that failed,
    `broken`, sets both.
    """

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.hurry = asyncio.Event()
        self.broken: QueueBroken | None = None

    def listen(self, flush: Callable[[], None]) -> None:
        """Handle the process's signals from now on; SIGUSR1 calls `flush`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGUSR1, flush)

    def on_broken(self, broken: QueueBroken) -> None:
        self.broken = broken
        self.requested.set()
        self.hurry.set()

    def _on_signal(self) -> None:
        (self.hurry if self.requested.is_set() else self.requested).set()


async def serve(
    settings: Settings,
    config: Config,
    environment: Mapping[str, str],
    on_ready: Callable[[int], Awaitable[None]] | None = None,
    lines: Callable[[], StdoutLines] = StdoutLines,
) -> None:
    """Serve until a signal ends the process.

    `on_ready` is started with the port once calls are accepted, and so are the online checks, if
    they are switched on. `lines` makes what writes the log's lines to stdout. Raises
    `PortUnavailable` or `QueueFolderUnusable` before anything is served, and `QueueBroken` at the
    end where the queue's own file failed.
    """
    _tune_interpreter()
    sockets = _listen(settings, "PORT", settings.port)
    metrics_sockets = _metrics_sockets(settings, sockets)
    shutdown = Shutdown()
    stdout = lines()
    provenance = Provenance(
        proxy_version=version("open-llm-proxy"),
        config_sha256=config.sha256,
        instance=settings.pod_name or socket.gethostname(),
    )
    try:
        entry_log, log_facts = _start_log(settings, provenance, stdout, shutdown)
    except BaseException:
        _close(sockets + metrics_sockets)
        raise
    services = _services(settings, config, environment, provenance, entry_log)
    server = ClientServer(make_app(services), max_connections=_max_connections(settings))
    server.add_sockets(sockets)
    metrics_server = ClientServer(make_metrics_app(services), max_connections=METRICS_CONNECTIONS)
    metrics_server.add_sockets(metrics_sockets)
    shutdown.listen(entry_log.flush)
    port = sockets[0].getsockname()[1]
    names = services.keys.names
    log.info("%s", start_block(settings, config, services.router, port, log_facts, names))
    background = [asyncio.ensure_future(on_ready(port))] if on_ready is not None else []
    background.append(asyncio.ensure_future(follow(settings, partial(_take_keys, services))))
    if settings.online_checks:
        background.append(asyncio.ensure_future(_check_online(settings, services)))
    gc.freeze()
    await shutdown.requested.wait()
    for task in background:
        task.cancel()
    try:
        await _shut_down(settings, services, server, shutdown)
    except QueueBroken as broken:
        shutdown.broken = broken
    metrics_server.stop()
    metrics_server.close_all_connections()
    stdout.close(STDOUT_SECONDS)
    server.reset_half_closed()
    if shutdown.broken is not None:
        raise shutdown.broken


def _tune_interpreter() -> None:
    """For many short calls; `gc.freeze` then leaves out what the start has loaded, whose search
    would take a twentieth of the processor and hold the event loop for 30 ms each time."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def report(findings: Iterable[Finding]) -> None:
    """Log the warnings and problems among `findings`; worse ones end the start by themselves."""
    levels = {Level.WARNING: logging.WARNING, Level.PROBLEM: logging.ERROR}
    for finding in findings:
        if finding.level in levels:
            log.log(levels[finding.level], "Check of %s: %s", finding.area, finding.text)


async def _check_online(settings: Settings, services: Services) -> None:
    try:
        report(await check_online(settings, services.router, services.client))
    except Exception:
        log.exception("The online checks failed; the server is not affected")


def _max_connections(settings: Settings) -> int:
    files = raise_file_limit()
    allowed = connections_for(files, settings.max_connections)
    if allowed < settings.max_connections:
        log.warning(
            "At most %d client connections: %d open files are allowed here (ulimit -n)",
            allowed,
            files,
        )
    return allowed


def _take_keys(services: Services, keys: Mapping[str, ProxyKey]) -> None:
    """The keys have changed; no row may hold the new ones either."""
    services.redactor.learn([key.key for key in keys.values()])
    services.keys.replace(keys)


def _listen(settings: Settings, variable: str, port: int) -> list[socket.socket]:
    try:
        return bind_sockets(port, settings.host or None, backlog=listen_backlog())
    except OSError as error:
        raise PortUnavailable(
            f"Cannot listen on HOST={settings.host} {variable}={port} "
            f"({error.strerror or error}); stop the other program or choose another port"
        ) from error


def _metrics_sockets(settings: Settings, others: list[socket.socket]) -> list[socket.socket]:
    """Of METRICS_PORT, if it is set; `others` are closed where it cannot be listened on."""
    if not settings.metrics_port:
        return []
    try:
        return _listen(settings, "METRICS_PORT", settings.metrics_port)
    except PortUnavailable:
        _close(others)
        raise


def _close(sockets: list[socket.socket]) -> None:
    for listening in sockets:
        listening.close()


def _start_log(
    settings: Settings, provenance: Provenance, stdout: StdoutLines, shutdown: Shutdown
) -> tuple[EntryLog, LogFacts]:
    sink = choose_sink(settings)
    if isinstance(sink, str):
        return StdoutLog(stdout, sink), LogFacts()
    queue = LogQueue.start(
        settings.log_queue_dir,
        Meta(
            window_seconds=settings.flush_interval_seconds,
            object_max_bytes=settings.log_object_max_bytes,
            log_format=provenance.log_format(),
        ),
        sink,
        settings.log_queue_max_bytes,
        Adoption,
        on_committed=stdout.write,
        on_broken=shutdown.on_broken,
    )
    # Recovery begins with the next turn of the event loop, so that none of them is gone yet.
    others = len(queue_folders(settings.log_queue_dir)) - 1
    left = left_at_start(settings.log_queue_dir, queue.queue_id, sink.identity)
    return QueuedLog(queue, stdout), LogFacts(sink.identity, queue.queue_id, others, left)


def _services(
    settings: Settings,
    config: Config,
    environment: Mapping[str, str],
    provenance: Provenance,
    entry_log: EntryLog,
) -> Services:
    router = Router(config, environment)
    proxy_keys = all_keys(settings)
    keys = [key.key for key in proxy_keys.values()]
    keys += [provider.api_key or "" for provider in router.providers.values()]
    keys.append(environment.get("AWS_SECRET_ACCESS_KEY", ""))
    return Services(
        keys=ProxyKeys(proxy_keys, WrongKeys(settings.trusted_proxies)),
        router=router,
        log=entry_log,
        client=PooledHTTPClient(force_instance=True, max_connections_per_host=CONNECTIONS_PER_HOST),
        cors=CorsPolicy(settings.cors_allow_origins),
        provenance=provenance,
        redactor=RememberingRedactor(secrets=tuple(filter(None, keys))),
        timeouts=Timeouts(
            connect_seconds=settings.upstream_connect_timeout_seconds,
            idle_seconds=settings.upstream_idle_timeout_seconds,
            total_seconds=settings.upstream_timeout_seconds,
        ),
        metrics=Metrics(
            router.labels(),
            version=provenance.proxy_version,
            config_sha256=config.sha256,
            queue_max_bytes=settings.log_queue_max_bytes,
        ),
        lifecycle=Lifecycle(),
        max_body_bytes=settings.max_body_bytes,
        transcript_max_bytes=settings.log_transcript_max_bytes,
        bodies=BodyBudget(settings.max_bodies_bytes),
        flush_interval_seconds=settings.flush_interval_seconds,
        capture=capture_of(settings),
    )


async def _shut_down(
    settings: Settings, services: Services, server: ClientServer, shutdown: Shutdown
) -> None:
    lifecycle = services.lifecycle
    log.info("Shutting down; %s in progress", counted(len(lifecycle.calls), "call"))
    lifecycle.draining = True
    await _unless(shutdown.hurry, asyncio.sleep(settings.shutdown_delay_seconds))
    server.stop()
    finishing = _finish(server, lifecycle, settings.shutdown_grace_seconds)
    await _unless(shutdown.hurry, finishing)
    lifecycle.refusing = True
    if lifecycle.calls:
        log.warning("Ending %s that did not finish in time", counted(len(lifecycle.calls), "call"))
        lifecycle.interrupt_all()
        is_stalled = isinstance(services.log.refusal, QueueStalled)
        await lifecycle.wait_idle(STALLED_INTERRUPT_SECONDS if is_stalled else INTERRUPT_SECONDS)
    server.close_all_connections()
    services.client.close()
    if await services.log.close(0.0 if shutdown.hurry.is_set() else UPLOAD_SECONDS):
        log.info("Shutdown complete; the log is uploaded")
    else:
        log.warning(
            "Shutdown complete, but not everything was uploaded; the rest is in %s, "
            "and the next start uploads it",
            settings.log_queue_dir,
        )


async def _finish(server: ClientServer, lifecycle: Lifecycle, timeout_seconds: float) -> None:
    """Wait for all connections and calls, those included whose client has left."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            await server.drain()
            await lifecycle.wait_idle(timeout_seconds)


async def _unless(event: asyncio.Event, waited: Awaitable[object]) -> None:
    """Wait for `waited`, or until `event` is set."""
    tasks = {asyncio.ensure_future(waited), asyncio.ensure_future(event.wait())}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
