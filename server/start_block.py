"""What a start tells its operator, as one readable block of the process's own log.

    2026-11-26T01:58:51Z INFO Listening on http://0.0.0.0:8002
        version     0.1.0
        config      /etc/open-llm-proxy/config.json (SHA-256 3b5d5c3712955042)
        providers   nrp (default): key set
                    openrouter: no key, set OPENROUTER_KEY
        …

It names keys and never shows one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from open_llm_proxy.queue.left_queue import LeftQueue
from open_llm_proxy.queue.messages import counted
from open_llm_proxy.server.config import Config
from open_llm_proxy.server.routing import Router
from open_llm_proxy.server.settings import Settings

HASH_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class LogFacts:
    """Where entries are uploaded and through which queue; without a sink they go to stdout only.

    `other_queues` were found beside the own one: unfinished, or those of other processes. `left`
    are those that nobody uploads, as far as a short look tells.
    """

    sink: str | None = None
    queue_id: str | None = None
    other_queues: int = 0
    left: Sequence[LeftQueue] = ()


def start_block(
    settings: Settings,
    config: Config,
    router: Router,
    port: int,
    log: LogFacts,
    key_names: Sequence[str],
) -> str:
    """The text of the block, for a server that listens on `port`."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    lines = [f"Listening on http://{host}:{port}"]
    for title, texts in (
        ("version", [version("open-llm-proxy")]),
        ("config", [f"{config.source} (SHA-256 {config.sha256[:HASH_CHARACTERS]})"]),
        ("providers", [*_providers(config, router)]),
        ("proxy keys", [", ".join(key_names) or "none, set PROXY_KEY"]),
        ("metrics", [_metrics(settings)]),
        ("capture", [settings.log_capture]),
        ("log", [*_log(settings, log)]),
    ):
        for index, text in enumerate(texts):
            lines.append(f"    {'' if index else title:<10}  {text}")
    return "\n".join(lines)


def _metrics(settings: Settings) -> str:
    own = f"; without a key on port {settings.metrics_port}" if settings.metrics_port else ""
    return f"/metrics with a proxy key{own}"


def _providers(config: Config, router: Router) -> Iterator[str]:
    for name, provider in router.providers.items():
        default = " (default)" if name == config.default_provider else ""
        key = "key set" if provider.is_configured else f"no key, set {provider.config.api_key_env}"
        yield f"{name}{default}: {key}"


def _log(settings: Settings, log: LogFacts) -> Iterator[str]:
    if log.sink is None:
        yield "stdout only, stored nowhere; set LOG_BUCKET or LOG_DIR"
        return
    yield f"{log.sink}, uploaded every {settings.flush_interval_seconds} s, and stdout"
    yield f"queue {log.queue_id} in {settings.log_queue_dir}"
    if log.other_queues:
        queues = counted(log.other_queues, "other queue")
        yield f"{queues} in there; recovering those whose process has ended"
    else:
        yield "no queues of previous processes to recover"
    for left in log.left:
        yield str(left)
