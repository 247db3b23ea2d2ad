"""The life of a server process: start, serve, leave in order.

SIGTERM makes /ready say 503 while calls are still taken, so that balancers notice; then the
socket is closed, calls under way may finish, the rest is ended visibly, and the log is uploaded
as far as the store takes it. What is left stays in the queue for the next start. A second
SIGTERM skips the waiting and never a closing entry. SIGUSR1 seals and uploads the log now.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version

from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from open_llm_proxy.queue.errors import QueueBroken
from open_llm_proxy.queue.folder import Birth
from open_llm_proxy.queue.log_queue import LogQueue
from open_llm_proxy.server.app import make_app
from open_llm_proxy.server.auth import ProxyKeys
from open_llm_proxy.server.config import Config
from open_llm_proxy.server.cors import CorsPolicy
from open_llm_proxy.server.entries.call_entries import Provenance
from open_llm_proxy.server.entries.capture import capture_of
from open_llm_proxy.server.entries.log import EntryLog, QueuedLog, StdoutLog
from open_llm_proxy.server.entries.stdout import StdoutLines
from open_llm_proxy.server.metrics import Metrics
from open_llm_proxy.server.redaction.cache import RememberingRedactor
from open_llm_proxy.server.relay.exchange import Timeouts
from open_llm_proxy.server.routing import Router
from open_llm_proxy.server.services import Lifecycle, Services
from open_llm_proxy.server.settings import Settings
from open_llm_proxy.server.sink_choice import choose_sink
from open_llm_proxy.server.upstream.client import PooledHTTPClient

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_QUEUE_BROKEN = 70
# With Python's 5 ms the writer's thread would wait for the event loop at every commit.
SWITCH_INTERVAL_SECONDS = 0.0005
INTERRUPT_SECONDS = 10.0
UPLOAD_SECONDS = 20.0
STDOUT_SECONDS = 2.0
CONNECTIONS_PER_HOST = 2000


class PortUnavailable(Exception):
    """HOST and PORT cannot be listened on; the message says why."""


class Signals:
    """What the process was asked to do: to leave, to leave at once, or because its queue broke."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()
        self.hurry = asyncio.Event()
        self.broken: QueueBroken | None = None

    def listen(self, flush: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_leave)
        loop.add_signal_handler(signal.SIGUSR1, flush)

    def on_broken(self, broken: QueueBroken) -> None:
        log.critical("%s", broken)
        self.broken = broken
        self.leave.set()
        self.hurry.set()

    def _asked_to_leave(self) -> None:
        (self.hurry if self.leave.is_set() else self.leave).set()


async def serve(
    settings: Settings,
    config: Config,
    environment: Mapping[str, str],
    on_ready: Callable[[int], Awaitable[None]] | None = None,
) -> int:
    """Serve until a signal says otherwise; returns the exit code.

    `on_ready` is started with the port once calls are taken. Raises `PortUnavailable` and
    `QueueFolderUnusable` before anything is served.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    sockets = _listen(settings)
    signals = Signals()
    stdout = StdoutLines()
    provenance = Provenance(
        proxy_version=version("open-llm-proxy"),
        config_sha256=config.sha256,
        instance=settings.pod_name or socket.gethostname(),
    )
    try:
        entry_log = _start_log(settings, provenance, stdout, signals)
    except BaseException:
        for listening in sockets:
            listening.close()
        raise
    services = _services(settings, config, environment, provenance, entry_log)
    server = HTTPServer(make_app(services), xheaders=False)
    server.add_sockets(sockets)
    signals.listen(entry_log.flush)
    port = sockets[0].getsockname()[1]
    log.warning("listening on %s port %d", settings.host, port)
    announced = asyncio.ensure_future(on_ready(port)) if on_ready is not None else None
    await signals.leave.wait()
    if announced is not None:
        announced.cancel()
    await _shut_down(settings, services, server, signals)
    stdout.close(STDOUT_SECONDS)
    return EXIT_OK if signals.broken is None else EXIT_QUEUE_BROKEN


def _listen(settings: Settings) -> list[socket.socket]:
    try:
        return bind_sockets(settings.port, settings.host or None)
    except OSError as error:
        raise PortUnavailable(
            f"cannot listen on HOST={settings.host} PORT={settings.port} "
            f"({error.strerror or error}): stop the other program or choose another port"
        ) from error


def _start_log(
    settings: Settings, provenance: Provenance, stdout: StdoutLines, signals: Signals
) -> EntryLog:
    sink = choose_sink(settings)
    if isinstance(sink, str):
        log.warning("%s", sink)
        return StdoutLog(stdout, sink)
    queue = LogQueue.start(
        settings.log_queue_dir,
        Birth(
            window_seconds=settings.flush_interval_seconds,
            object_max_bytes=settings.log_object_max_bytes,
            damaged_body=provenance.damaged_body(),
        ),
        sink,
        settings.log_queue_max_bytes,
        on_committed=stdout.write,
        on_broken=signals.on_broken,
    )
    log.warning(
        "log queue %s below %s, sink %s", queue.queue_id, settings.log_queue_dir, sink.identity
    )
    return QueuedLog(queue, stdout)


def _services(
    settings: Settings,
    config: Config,
    environment: Mapping[str, str],
    provenance: Provenance,
    entry_log: EntryLog,
) -> Services:
    router = Router(config, environment)
    AsyncHTTPClient.configure(PooledHTTPClient, max_connections_per_host=CONNECTIONS_PER_HOST)
    keys = [settings.proxy_key, *(key for _, key in settings.proxy_keys_extra)]
    keys += [provider.api_key or "" for provider in router.providers.values()]
    keys.append(environment.get("AWS_SECRET_ACCESS_KEY", ""))
    for name, provider in router.providers.items():
        if not provider.is_configured:
            log.warning(
                "provider %s is not configured: %s is not set", name, provider.config.api_key_env
            )
    if not settings.proxy_key and not settings.proxy_keys_extra:
        log.warning("PROXY_KEY is not set: every call will be refused")
    return Services(
        keys=ProxyKeys(settings.proxy_key, settings.proxy_keys_extra),
        router=router,
        log=entry_log,
        client=AsyncHTTPClient(),
        cors=CorsPolicy(settings.cors_allow_origins),
        provenance=provenance,
        redactor=RememberingRedactor(secrets=tuple(filter(None, keys))),
        timeouts=Timeouts(
            connect_seconds=settings.upstream_connect_timeout_seconds,
            idle_seconds=settings.upstream_idle_timeout_seconds,
            total_seconds=settings.upstream_timeout_seconds,
        ),
        metrics=Metrics(),
        lifecycle=Lifecycle(),
        max_body_bytes=settings.max_body_bytes,
        transcript_max_bytes=settings.log_transcript_max_bytes,
        capture=capture_of(settings),
    )


async def _shut_down(
    settings: Settings, services: Services, server: HTTPServer, signals: Signals
) -> None:
    lifecycle = services.lifecycle
    log.warning("leaving: %d calls under way", len(lifecycle.calls))
    lifecycle.draining = True
    await _unless(signals.hurry, asyncio.sleep(settings.shutdown_delay_seconds))
    server.stop()
    lifecycle.refusing = True
    await _unless(signals.hurry, lifecycle.wait_idle(settings.shutdown_grace_seconds))
    if lifecycle.calls:
        log.warning("ending %d calls that did not finish in time", len(lifecycle.calls))
        lifecycle.interrupt_all()
        await lifecycle.wait_idle(INTERRUPT_SECONDS)
    await server.close_all_connections()
    services.client.close()
    uploaded = await services.log.close(0.0 if signals.hurry.is_set() else UPLOAD_SECONDS)
    if not uploaded:
        log.warning("not everything was uploaded; the rest is in the queue for the next start")


async def _unless(event: asyncio.Event, waited: Awaitable[object]) -> None:
    """Wait for `waited`, but no longer than until `event` is set."""
    tasks = {asyncio.ensure_future(waited), asyncio.ensure_future(event.wait())}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
