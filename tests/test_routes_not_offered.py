"""What OpenAI's API has and this proxy does not: answered in OpenAI's shape, with the reason."""

import re
from pathlib import Path

import openai
import pytest

from memory_log import MemoryLog
from open_llm_proxy.server.health import ROUTES
from open_llm_proxy.server.routes_not_offered import NOT_OFFERED, why_not_offered
from raw_client import request
from relay_calls import BEARER, CHAT, Relay, quickly

pytest_plugins = ("relay_fixtures",)

# As openai-python calls them.
CALLED = [
    ("GET", "/v1/responses/resp_1"),
    ("DELETE", "/v1/responses/resp_1"),
    ("POST", "/v1/responses/resp_1/cancel"),
    ("GET", "/v1/responses/resp_1/input_items"),
    ("POST", "/v1/responses/input_tokens"),
    ("POST", "/v1/responses/compact"),
    ("POST", "/v1/conversations"),
    ("GET", "/v1/conversations/c_1/items"),
    ("GET", CHAT),
    ("GET", f"{CHAT}/chatcmpl-1"),
    ("POST", f"{CHAT}/chatcmpl-1"),
    ("DELETE", f"{CHAT}/chatcmpl-1"),
    ("GET", f"{CHAT}/chatcmpl-1/messages"),
    ("DELETE", "/v1/models/kimi"),
    ("DELETE", "/v1/models/ft:org/m"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/f_1/content"),
    ("POST", "/v1/uploads"),
    ("POST", "/v1/batches"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("POST", "/v1/audio/speech"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/videos"),
    ("POST", "/v1/moderations"),
    ("POST", "/v1/assistants"),
    ("POST", "/v1/threads/runs"),
    ("POST", "/v1/vector_stores"),
    ("POST", "/v1/containers"),
    ("POST", "/v1/evals"),
    ("POST", "/v1/realtime/client_secrets"),
    ("GET", "/v1/organization/usage/completions"),
    ("POST", "/v1/messages"),
]


@pytest.mark.parametrize("headers", [(), (BEARER,)], ids=["stranger", "key"])
@pytest.mark.parametrize(("method", "path"), CALLED)
async def test_a_route_that_is_not_offered_says_so_and_why(
    relay: Relay, log: MemoryLog, method: str, path: str, headers: tuple[tuple[str, str], ...]
) -> None:
    async with relay.connection() as client:
        for body in (None, b'{"a": 1}', b"x" * 60_000):
            await client.send(request(method, path, body, headers))
            answer = await quickly(client.answer())
            assert (answer.status, answer.error["code"]) == (404, "route_not_offered")
            assert answer.error["type"] == "invalid_request_error"
            assert answer.error["message"].startswith(f"{method} {path} is not offered by this ")
            assert answer.header("X-Request-Id")
    assert not log.rows and not relay.provider.calls


@pytest.mark.parametrize(
    "path",
    [
        f"{CHAT}/",
        "/v1/responses/",
        "/v1/filesystem",
        "/v1/responses_",
        "/files",
        "/v1/",
        "/v2/files",
        "/v1/chat",
        "/v1/embed",
    ],
)
async def test_a_path_that_nobody_has_stays_an_unknown_one(relay: Relay, path: str) -> None:
    async with relay.connection() as client:
        await client.send(request("GET", path, None, (BEARER,)))
        answer = await quickly(client.answer())
        assert (answer.status, answer.error["code"]) == (404, "unknown_url")


def test_what_is_offered_is_nowhere_called_not_offered() -> None:
    for route in [*ROUTES, "GET /", "GET /v1/models/kimi", "HEAD /v1/models/kimi"]:
        assert why_not_offered(*route.split()) is None


async def test_a_preflight_lets_a_page_see_the_answer(relay: Relay) -> None:
    headers = (("Origin", "https://a.example"), ("Access-Control-Request-Method", "DELETE"))
    async with relay.connection() as client:
        await client.send(request("OPTIONS", "/v1/responses/resp_1", None, headers))
        answer = await quickly(client.answer())
    assert answer.status == 204
    assert "DELETE" in (answer.header("Access-Control-Allow-Methods") or "")


async def test_openais_sdk_raises_what_a_program_can_read(relay: Relay) -> None:
    async with relay.sdk() as sdk:
        for ask in (
            sdk.responses.retrieve("resp_1"),
            sdk.responses.delete("resp_1"),
            sdk.chat.completions.retrieve("chatcmpl-1"),
            sdk.models.delete("kimi"),
            sdk.files.retrieve("f_1"),
            sdk.images.generate(prompt="a cat"),
        ):
            with pytest.raises(openai.NotFoundError) as raised:
                await ask
            assert raised.value.code == "route_not_offered" and raised.value.request_id


@pytest.mark.parametrize("fields", [{"input": "hi"}, {"prompt": {"id": "pmpt_1"}}, {}])
async def test_a_response_without_a_model_is_told_what_is_missing(
    relay: Relay, log: MemoryLog, fields: dict[str, object]
) -> None:
    async with relay.sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as raised:
            await sdk.responses.create(**fields)  # type: ignore[call-overload]
    assert (raised.value.code, raised.value.param) == ("missing_model", "model")
    assert "Set it to a model id" in str(raised.value)
    assert ("routed by it" in str(raised.value)) == bool(fields)
    assert log.the_call()[1]["outcome"] == "rejected"


def test_the_page_for_clients_lists_every_route() -> None:
    page = (Path(__file__).parent.parent / "docs" / "clients.md").read_text()
    listed = set(re.findall(r"`((?:[A-Z]+ )?/v1/[^`]*)`", page))
    for group in NOT_OFFERED:
        for route in group.routes:
            assert (f"{route}…" if route.endswith("/") else route) in listed
    assert {route for route in ROUTES if " /v1/" in route} <= listed
