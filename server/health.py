"""The routes for operators, probes and Prometheus: /health, /ready, /metrics and /."""

from open_llm_proxy.server.handler import ProxyHandler
from open_llm_proxy.server.metrics import CONTENT_TYPE
from open_llm_proxy.server.proxy_errors import ProxyError

ROUTES = {
    "POST /v1/chat/completions": "chat completions, streaming or not",
    "POST /v1/completions": "legacy completions",
    "POST /v1/embeddings": "embeddings",
    "POST /v1/responses": "responses",
    "GET /v1/models": "the models that this proxy serves",
    "GET /health": "200 while the process runs; state of providers and log",
    "GET /ready": "200 while calls are accepted, else 503",
    "GET /metrics": "Prometheus metrics",
}


class HealthHandler(ProxyHandler):
    """200 while the process runs; shows what is configured, never a key."""

    async def get(self) -> None:
        services = self.services
        log = await services.log.status()
        refusal = services.log.refusal
        self.answer_json(
            200,
            {
                "status": "draining" if services.lifecycle.draining else "ok",
                "version": services.provenance.proxy_version,
                "proxy_key_configured": services.keys.is_configured,
                "providers": {
                    name: {
                        "endpoint": provider.config.endpoint,
                        "configured": provider.is_configured,
                    }
                    for name, provider in services.router.providers.items()
                },
                "log": log | {"refusing": str(refusal) if refusal is not None else None},
            },
        )


class ReadyHandler(ProxyHandler):
    """503 while the server shuts down, cannot store log entries, or has no proxy key."""

    def get(self) -> None:
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
    async def get(self) -> None:
        page = self.services.metrics.page(await self.services.log.status())
        self.set_header("Content-Type", CONTENT_TYPE)
        self.write(page)


class RootHandler(ProxyHandler):
    def get(self) -> None:
        version = self.services.provenance.proxy_version
        self.answer_json(200, {"name": "open-llm-proxy", "version": version, "routes": ROUTES})


def _not_ready(why: str) -> ProxyError:
    return ProxyError(503, "not_ready", f"Not ready: {why}", "server_error")
