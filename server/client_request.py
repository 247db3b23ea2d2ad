"""The client's call as it came: what is read from it, and what of it must change.

The body goes to the provider byte for byte unless a field has to change. Then only the changed
top-level fields are written anew, and every other value keeps the client's own bytes: numbers,
escapes and the order inside it stay as they were sent.
"""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from open_llm_proxy.server.duplicate_names import duplicate_name
from open_llm_proxy.server.json_size import MAX_VALUES, has_too_many_values
from open_llm_proxy.server.json_text import NotJSON, decode_json
from open_llm_proxy.server.proxy_errors import bad_request, duplicate_field, too_many_values
from open_llm_proxy.server.routing import Provider

THINKING_FLAG = "enable_thinking"
TEMPLATE_ARGUMENTS = "chat_template_kwargs"
# The responses API refuses `include_usage`, and its streams end with the usage in any case.
ENDPOINTS_WITH_STREAM_USAGE = ("/v1/chat/completions", "/v1/completions")

SAMPLING_PARAMETERS = ("temperature", "top_p", "top_k", "min_p", "top_a", "typical_p")
WARNED_MODEL_CHARACTERS = 200

_MISSING_MODEL = "The field `model` is missing. Set it to a model id"


class ClientRequest(msgspec.Struct, frozen=True):
    """A call that can be routed: `fields` is the decoded body, `model` a non-empty string."""

    body: bytes
    fields: dict[str, Any]
    model: str

    @classmethod
    def parse(cls, body: bytes) -> "ClientRequest":
        """Read a body; raises `ProxyError` (400) where it is no object with a model.

        Nor may a name come twice in an object of it.
        """
        if has_too_many_values(body):
            raise too_many_values(MAX_VALUES)
        try:
            fields = decode_json(body)
        except NotJSON as error:
            raise bad_request(
                "invalid_json", f"The request body is not valid JSON ({error}). Send a JSON object."
            ) from error
        if not isinstance(fields, dict):
            raise bad_request(
                "invalid_body", 'The request body must be a JSON object, such as {"model": …}.'
            )
        name = duplicate_name(body, fields)
        if name is not None:
            raise duplicate_field(name)
        model = fields.get("model")
        if not isinstance(model, str) or not model:
            raise bad_request("missing_model", f"{_MISSING_MODEL}{_why(fields)}.", "model")
        return cls(body, fields, model)

    @property
    def stream(self) -> bool:
        return self.fields.get("stream") is True

    @property
    def user(self) -> str | None:
        user = self.fields.get("user")
        return user if isinstance(user, str) and user else None

    @property
    def enable_thinking(self) -> bool | None:
        flag = self.fields.get(THINKING_FLAG)
        return flag if isinstance(flag, bool) else None


class ProviderBody(msgspec.Struct, frozen=True):
    """What goes to the provider. `stream`: a streamed answer is asked for. `thinking_applied` is
    None where the client did not ask; `asked_for_usage` says that the usage chunk is wanted by
    the proxy and not by the client. `warning` names what the client sent and the provider does not
    get, in ASCII."""

    body: bytes
    stream: bool
    thinking_applied: bool | None
    asked_for_usage: bool
    warning: str | None = None


def provider_body(request: ClientRequest, provider: Provider, endpoint: str) -> ProviderBody:
    """The body for `provider`: thinking flag translated, sampling parameters left out where the
    model refuses them, the operator's extra fields set.

    `endpoint` is the path that the client called, such as ``/v1/chat/completions``. Raises
    `ProxyError` (400) where the flag is no boolean or has nowhere to go.
    """
    changed: dict[str, Any] = {}
    removed: set[str] = set()
    warnings: list[str] = []
    thinking_applied = None
    if THINKING_FLAG in request.fields:
        removed.add(THINKING_FLAG)
        thinking_applied = _apply_thinking(request, provider, changed)
        if thinking_applied is False:
            warnings.append(f"enable_thinking has no effect on model {_shown(request.model)}")
    if not provider.takes_sampling(request.model):
        sampling = [name for name in SAMPLING_PARAMETERS if name in request.fields]
        removed.update(sampling)
        if sampling:
            warnings.append(f"{', '.join(sampling)} not sent to model {_shown(request.model)}")
    _apply_extra_body(request, provider.extra_body, changed)
    is_stream = request.stream
    asked_for_usage = False
    if is_stream and endpoint in ENDPOINTS_WITH_STREAM_USAGE and provider.config.log_stream_usage:
        options = changed.get("stream_options", request.fields.get("stream_options"))
        if asked_for_usage := _leaves_usage_out(options):
            changed["stream_options"] = (options or {}) | {"include_usage": True}
    body = _rewritten(request, changed, removed) if changed or removed else request.body
    warning = "; ".join(warnings) or None
    return ProviderBody(body, is_stream, thinking_applied, asked_for_usage, warning)


def _why(fields: Mapping[str, Any]) -> str:
    """Why the model cannot be left out, where OpenAI's own API allows that."""
    if any(name in fields for name in ("prompt", "input", "previous_response_id")):
        return ", also where a stored prompt or an earlier response has one: calls are routed by it"
    return ""


def _shown(model: str) -> str:
    return f"{model[:WARNED_MODEL_CHARACTERS]!a}"


def _leaves_usage_out(stream_options: object) -> bool:
    """Whether a stream with these options has no usage; options of a wrong type are left alone."""
    if isinstance(stream_options, dict):
        return stream_options.get("include_usage") in (None, False)
    return stream_options is None


def _apply_thinking(
    request: ClientRequest, provider: Provider, changed: dict[str, Any]
) -> bool | None:
    flag = request.fields[THINKING_FLAG]
    if flag is None:
        return None
    if not isinstance(flag, bool):
        raise bad_request(
            "invalid_type", "enable_thinking must be true or false.", param=THINKING_FLAG
        )
    argument = provider.thinking_argument(request.model)
    if argument is None:
        return False
    sent = request.fields.get(TEMPLATE_ARGUMENTS)
    if sent is not None and not isinstance(sent, dict):
        raise bad_request(
            "invalid_type", "chat_template_kwargs must be an object.", param=TEMPLATE_ARGUMENTS
        )
    changed[TEMPLATE_ARGUMENTS] = (sent or {}) | {argument: flag}
    return True


def _apply_extra_body(
    request: ClientRequest, extra: Mapping[str, Any], changed: dict[str, Any]
) -> None:
    """Set the operator's fields; objects are merged, and the operator's values win."""
    for name, value in extra.items():
        current = changed.get(name, request.fields.get(name))
        if isinstance(current, dict) and isinstance(value, dict):
            changed[name] = current | value
        else:
            changed[name] = value


def _rewritten(request: ClientRequest, changed: Mapping[str, Any], removed: set[str]) -> bytes:
    try:
        fields: dict[str, Any] = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw])
        return msgspec.json.encode(_merged(fields, changed, removed))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # JSON that msgspec refuses (lone surrogates, NaN): values are kept, not their spelling.
        merged = _merged(request.fields, changed, removed)
        return json.dumps(merged, separators=(",", ":")).encode()


def _merged(
    fields: Mapping[str, Any], changed: Mapping[str, Any], removed: set[str]
) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in removed} | dict(changed)
