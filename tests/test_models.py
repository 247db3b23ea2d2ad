"""/v1/models: asked once, filtered by the router, and answered without work, however long."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from open_llm_proxy.server import models as models_module
from raw_client import Answer, request
from relay_calls import BEARER, Relay

pytest_plugins = ("relay_fixtures",)


async def get(relay: Relay, path: str = "/v1/models") -> Answer:
    async with relay.connection() as client:
        await client.send(request("GET", path, None, (BEARER,)))
        return await client.answer()


async def test_the_list_is_the_providers_and_config_json(relay: Relay) -> None:
    relay.provider.models = ("zeta", "kimi", "org/é")
    listed = (await get(relay)).json()
    assert listed["object"] == "list"
    ids = [model["id"] for model in listed["data"]]
    assert ids == sorted({"zeta", "kimi", "org/é", "qwen3", "glm-4.7"})
    assert {model["owned_by"] for model in listed["data"]} == {"nrp"}
    assert (await get(relay, "/v1/models/zeta")).json()["id"] == "zeta"
    assert len(relay.provider.calls) == 1


@pytest.mark.parametrize("model", ["never-listed", "org/any", "a b", "é"])
async def test_a_model_that_is_routed_without_being_listed_is_there(
    relay: Relay, model: str
) -> None:
    path = f"/v1/models/{model}".replace(" ", "%20").replace("é", "%C3%A9")
    found = (await get(relay, path)).json()
    assert (found["id"], found["object"], found["owned_by"]) == (model, "model", "nrp")


JSON_TYPE = b"Content-Type: application/json\r\n"


def raw(body: bytes, status: int = 200) -> Sequence[bytes | float]:
    head = b"HTTP/1.1 %d OK\r\n%bContent-Length: %d\r\n\r\n" % (status, JSON_TYPE, len(body))
    return [head, body]


@pytest.mark.parametrize("expected_warnings", [["Provider nrp: cannot list its models"]])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 200),
        (b"no JSON", 200),
        (b"[]", 200),
        (b'{"data": 1}', 200),
        (b'{"error": 1}', 500),
        (b"[" * 100_000, 200),
        (b'{"data": [{"id": %b}]}' % (b"[" * 1000), 200),
    ],
)
async def test_a_provider_without_a_list_leaves_those_of_config_json(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, body: bytes, status: int
) -> None:
    answer_with(relay, monkeypatch, raw(body, status))
    assert [m["id"] for m in (await get(relay)).json()["data"]] == ["glm-4.7", "kimi", "qwen3"]


async def test_odd_entries_of_a_list_are_left_out(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = b'{"data":[1,null,{},{"id":2},{"id":"a","x":NaN},{"id":"\\ud800"},{"id":"b","id":"c"}]}'
    answer_with(relay, monkeypatch, raw(odd))
    ids = [m["id"] for m in (await get(relay)).json()["data"]]
    assert ids == ["a", "c", "glm-4.7", "kimi", "qwen3", "\ud800"]


@pytest.mark.parametrize("expected_warnings", [["Provider nrp: cannot list its models"]])
async def test_a_list_without_end_is_not_kept(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_module, "MAX_LIST_BYTES", 100_000)
    relay.provider.models = ("m" * 300,) * 1000
    assert len((await get(relay)).json()["data"]) == 3


async def test_a_hundred_thousand_models_are_read_once_and_in_turns(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.provider.models = tuple(f"org/model-{number}" for number in range(100_000))
    first = await get(relay)
    assert len(first.json()["data"]) == 100_003
    monkeypatch.setattr(models_module, "_rendered", None)  # nothing is written out any more
    monkeypatch.setattr(models_module, "_objects", None)
    for _ in range(3):
        assert (await get(relay)).body == first.body
    assert (await get(relay, "/v1/models/org/model-99999")).json()["id"] == "org/model-99999"
    assert len(relay.provider.calls) == 1


async def test_other_tasks_have_their_turns_while_a_list_is_read() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    document = json.dumps({"data": [{"id": str(number)} for number in range(2_000)]}).encode()
    running = asyncio.ensure_future(others())
    ids = [model["id"] async for model in models_module._objects(document)]
    running.cancel()
    assert len(ids) == 2_000 and turns >= 2_000 // models_module.MODELS_PER_TURN


def answer_with(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, pieces: Sequence[bytes | float]
) -> None:
    """Let the provider answer the next GET with raw bytes."""

    async def answer(call: Any, _: Any, __: Any, writer: asyncio.StreamWriter) -> bool:
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.write(piece)
        await writer.drain()
        return False

    monkeypatch.setattr(relay.provider, "_answer", answer)


def test_the_rendered_object_is_json() -> None:
    assert json.loads(models_module._rendered({"id": "a\ud800"}, "p"))["id"] == "a\ud800"
