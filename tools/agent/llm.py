"""The model behind the proxy: one chat-completions call at a time, and its errors in words.

The OpenAI SDK sends the call and retries what it always retries (408, 409, 429, 5xx and lost
connections; twice, with back-off or as Retry-After says).
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import openai

from .reply import OnPiece, Reply, UnusableAnswer, as_object, read_completion, read_stream
from .settings import SessionSettings, public_url

CLIENT_NAME = "open-llm-proxy-agent"
CONNECT_TIMEOUT_SECONDS = 10.0
HEALTH_TIMEOUT_SECONDS = 5.0
MAX_ERROR_CHARS = 500


class ModelError(Exception):
    """A call of the model failed for good; the message is a sentence that says what to do."""


class Model:
    """The model of one session. `aclose` gives its connections back."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._client = openai.AsyncOpenAI(
            base_url=settings.proxy_url,
            api_key=settings.api_key,
            timeout=openai.Timeout(settings.timeout_seconds, connect=CONNECT_TIMEOUT_SECONDS),
            default_headers={
                "Origin": settings.origin,
                "X-Session-Id": settings.session_id,
                "X-Client": CLIENT_NAME,
            },
        )

    async def aclose(self) -> None:
        await self._client.close()

    async def proxy_version(self) -> str | None:
        """The version that /health of the proxy names; None where there is no such thing."""
        once = self._client.with_options(max_retries=0, timeout=HEALTH_TIMEOUT_SECONDS)
        url = self._settings.proxy_url.removesuffix("/v1") + "/health"
        try:
            health: object = await once.get(url, cast_to=object)
        except (openai.OpenAIError, ValueError):
            return None
        version = health.get("version") if isinstance(health, dict) else None
        return version[:MAX_ERROR_CHARS] if isinstance(version, str) else None

    async def reply(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], on_piece: OnPiece
    ) -> Reply:
        """One call. `on_piece` gets the parts of a stream as they come. Raises ModelError."""
        request = self._request(messages, tools)
        broken: tuple[type[Exception], ...] = (UnusableAnswer, *transport_errors())
        try:
            raw = await self._client.chat.completions.with_raw_response.create(**request)
            parsed = await parsed_body(raw)
            if self._settings.stream:
                reply = await read_stream(parsed, on_piece)
            else:
                reply = read_completion(as_object(parsed))
        except openai.APIError as error:
            raise ModelError(self._without_key(self._sentence(error))) from error
        except broken as error:
            where = public_url(self._settings.proxy_url)
            text = f"{where} did not send a complete answer: {str(error) or 'connection lost'}."
            raise ModelError(self._without_key(text)) from error
        reply.retries = raw.retries_taken
        reply.proxy_request_id = raw.headers.get("X-Proxy-Request-Id")
        reply.proxy_warning = raw.headers.get("X-Proxy-Warning")
        return reply

    def _request(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """The call's parameters; what the user did not set is not sent."""
        settings = self._settings
        request: dict[str, Any] = {
            "model": settings.model,
            "messages": messages,
            "user": settings.session_id,
        }
        if tools:
            request["tools"] = tools
        extra = dict(settings.recording.params) if settings.recording else {}
        if settings.temperature is not None:
            extra["temperature"] = settings.temperature
        if settings.enable_thinking is not None:
            extra["enable_thinking"] = settings.enable_thinking
        if extra:
            request["extra_body"] = extra
        if settings.stream:
            request["stream"] = True
            request["stream_options"] = {"include_usage": True}
        return request

    def _sentence(self, error: openai.APIError) -> str:
        where = public_url(self._settings.proxy_url)
        message = error_message(error)
        match error:
            case openai.APITimeoutError():
                return f"{where} did not answer within {self._settings.timeout_seconds:g} seconds."
            case openai.APIConnectionError():
                cause = str(error.__cause__ or error).rstrip(".")
                return f"The connection to {where} failed: {cause or 'no reason given'}."
            case openai.AuthenticationError():
                return (
                    f"{where} refused the key: {message} Give the proxy's key in OPENAI_API_KEY "
                    "or --api-key."
                )
            case openai.NotFoundError() if not isinstance(error.body, dict):
                return (
                    f"{where}/chat/completions answered 404 (not found): check --proxy-url, "
                    "which usually ends in /v1."
                )
            case openai.APIStatusError():
                return f"{where} answered {error.status_code}: {message}"
            case _:
                return f"{where} reported an error: {message}"

    def _without_key(self, text: str) -> str:
        """Some providers repeat the key that they refuse."""
        return text.replace(self._settings.api_key, "[key]")


async def parsed_body(raw: Any) -> Any:
    """The SDK's object for a response, or its stream. Raises UnusableAnswer."""
    try:
        parsed = raw.parse()
        return await parsed if inspect.isawaitable(parsed) else parsed  # a coming SDK awaits it
    except ValueError as error:
        raise UnusableAnswer("its body is no JSON") from error


def transport_errors() -> tuple[type[Exception], ...]:
    """The error classes of the HTTP library under the SDK: httpx, since 3.0 httpx2.

    Older SDKs let them through where a stream breaks.
    """
    libraries = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return tuple(library.HTTPError for library in libraries if library is not None)


def error_message(error: openai.APIError) -> str:
    """The server's own words, on one line and of bounded length, with a full stop."""
    body = error.body if isinstance(error.body, dict) else {}
    text = body.get("message") or body.get("detail")
    if not isinstance(text, str):
        response = getattr(error, "response", None)
        text = response.text if response is not None else error.message
    text = " ".join(text.split())[:MAX_ERROR_CHARS].rstrip(".")
    return f"{text or type(error).__name__}."
