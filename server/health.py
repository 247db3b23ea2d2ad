"""The routes for operators, probes and Prometheus: /health, /ready, /metrics and /."""

from collections.abc import Mapping
from typing import Any

from open_llm_proxy.queue.left_queue import LeftQueue
from open_llm_proxy.server.handler import ProxyHandler
from open_llm_proxy.server.http1.connection import ClientConnection
from open_llm_proxy.server.http1.request import Request
from open_llm_proxy.server.metrics import CONTENT_TYPE
from open_llm_proxy.server.proxy_errors import ProxyError
from open_llm_proxy.server.services import Services
from open_llm_proxy.server.sink_choice import NO_SINK

# Intervals that a row may wait for its upload before the state is degraded.
LATE_INTERVALS = 3

ROUTES = {
    "POST /v1/chat/completions": "chat completions, streaming or not",
    "POST /chat": "the same as /v1/chat/completions",
    "POST /v1/completions": "legacy completions",
    "POST /v1/embeddings": "embeddings",
    "POST /v1/responses": "responses",
    "GET /v1/models": "the models that this proxy serves",
    "GET /health": "200 while the process runs; with a key also the state of the log",
    "GET /ready": "200 while calls are accepted, else 503",
    "GET /metrics": "Prometheus metrics, with a key",
}


class HealthHandler(ProxyHandler):
    """200 while the process runs; shows what is configured, never a key.

    Anybody learns whether it works; where to and how much it logs is for those who have a key.
    """

    def judge(self) -> None:
        services = self.services
        self._has_key = services.keys.known_name(self.request) is not None
        if not self._has_key and "Authorization" in self.request.headers:
            services.metrics.count_refusal("invalid_api_key")
        super().judge()

    async def get(self) -> None:
        services = self.services
        log = await services.log.status()
        refusal = services.log.refusal
        reasons = degraded_reasons(log, refusal, services.flush_interval_seconds)
        status = "degraded" if reasons else "ok"
        providers = services.router.providers.items()
        health: dict[str, object] = {
            "status": "draining" if services.lifecycle.draining else status,
            "version": services.provenance.proxy_version,
            "proxy_key_configured": services.keys.is_configured,
            "providers": {name: {"configured": p.is_configured} for name, p in providers},
        }
        if self._has_key:
            health["reasons"] = reasons
            health["providers"] = {
                name: {"endpoint": p.config.endpoint, "configured": p.is_configured}
                for name, p in providers
            }
            health["log"] = log | {"refusing": str(refusal) if refusal is not None else None}
            health["logging"] = _logging(log)
        self.answer_json(200, health)


def _logging(log: Mapping[str, Any]) -> dict[str, object]:
    """What monitors of the original proxy read. No windows are checked for unpaired entries: a
    request entry without its response entry cannot be."""
    return {
        "last_window": None,
        "windows_checked": 0,
        "imbalance_windows": 0,
        "swallowed_exceptions": log.get("damaged_rows", 0),
        "swallowed_by_fn": {},
        "buffer_depth": log.get("queued_rows", 0),
    }


def degraded_reasons(
    log: Mapping[str, Any], refusal: Exception | None, flush_interval_seconds: int
) -> list[str]:
    """Why an operator must look, as sentences that say what is wrong; empty if all is well."""
    reasons = []
    if refusal is not None:
        reasons.append(f"New calls are refused: {refusal}")
    for left in log.get("left", ()):
        text = str(LeftQueue(**left))
        reasons.append(text[:1].upper() + text[1:])
    if log.get("last_error") is not None:
        reasons.append(f"Uploads fail: {log['last_error']}")
    age = log.get("oldest_age_seconds") or 0
    if age > LATE_INTERVALS * flush_interval_seconds:
        reasons.append(f"Log rows have been waiting for their upload for {age:,.0f} s")
    if log.get("reason") not in (None, NO_SINK):
        reasons.append(str(log["reason"]))
    return reasons


class ReadyHandler(ProxyHandler):
    """503 while the server shuts down, cannot store log entries, or has no proxy key."""

    async def get(self) -> None:
        services = self.services
        refusal = services.log.refusal
        if services.lifecycle.draining:
            raise _not_ready("the server is shutting down")
        if refusal is not None:
            raise _not_ready(str(refusal))
        if not services.keys.is_configured:
            raise _not_ready("no proxy key; set PROXY_KEY")
        self.answer_json(200, {"status": "ready"})


class MetricsHandler(ProxyHandler):
    """For holders of a proxy key and, on METRICS_PORT, for everybody who reaches that."""

    def __init__(
        self,
        services: Services,
        connection: ClientConnection,
        request: Request,
        needs_key: bool = True,
    ) -> None:
        super().__init__(services, connection, request)
        self._needs_key = needs_key

    def judge(self) -> None:
        if self._needs_key and self.request.method != "OPTIONS":
            self.check_key()
        super().judge()

    async def get(self) -> None:
        services = self.services
        page = services.metrics.page(
            await services.log.status(),
            in_flight=len(services.lifecycle.calls),
            draining=services.lifecycle.draining,
            refusing=services.log.refusal is not None,
        )
        self.answer_text(200, CONTENT_TYPE, page)


class RootHandler(ProxyHandler):
    async def get(self) -> None:
        version = self.services.provenance.proxy_version
        self.answer_json(200, {"name": "open-llm-proxy", "version": version, "routes": ROUTES})


def _not_ready(why: str) -> ProxyError:
    return ProxyError(503, "not_ready", f"Not ready: {why}", "server_error")
