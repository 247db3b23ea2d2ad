"""Whatever a client or a provider sends: the call is served, and its entries say what came.

All cases run through the real server, with everything captured, and every line that it wrote is
read by DuckDB in the end.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import httpx
import jsonschema
import pytest

import log_contract
from given_answers import (
    CHAT,
    Fields,
    GivenAnswers,
    completion,
    events,
    given_answers_thread,
    raw,
    rows_of,
)
from open_llm_proxy.archive.json_schema import json_schema
from proxy_process import PROXY_KEY, ProxyProcess, one_provider
from waiting import wait_until

MIB = 1 << 20
DEEP = 100_000


class Server:
    """The real server behind a provider that answers as the call says."""

    def __init__(self, proxy: ProxyProcess, provider: GivenAnswers) -> None:
        self.provider = provider
        self._proxy = proxy
        self._key = {"Authorization": f"Bearer {PROXY_KEY}"}

    def ask(
        self, messages: Any, given: Fields | None = None, **options: Any
    ) -> tuple[httpx.Response, Fields, Fields]:
        """The answer to a call and its two rows; a str is the one message of a user."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        headers = options.pop("headers", {})
        body = {"model": "kimi", "messages": messages, "given": given, **options}
        return self.send(json.dumps(body).encode(), headers)

    def send(
        self, body: bytes, headers: Mapping[str, str] | None = None
    ) -> tuple[httpx.Response, Fields, Fields]:
        """The same with a body as it is."""
        with httpx.Client(base_url=self._proxy.url, trust_env=False, timeout=60) as http:
            answer = http.post(CHAT, content=body, headers={**self._key, **(headers or {})})
        request, response = asyncio.run(self._rows(answer.headers["X-Proxy-Request-Id"]))
        assert (request["type"], response["type"]) == ("request", "response")
        return answer, request, response

    async def _rows(self, request_id: str) -> list[Fields]:
        """The rows of a call; stdout follows the answer by a moment."""

        def both() -> list[Fields] | None:
            lines = [line for line in self._proxy.stdout_lines()[-8:] if request_id in line[:200]]
            return rows_of(lines) if len(lines) >= 2 else None

        return await wait_until(both, f"both rows of {request_id} are on stdout")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bad-input")
    with given_answers_thread() as provider:
        settings = {"LOG_DIR": str(folder / "objects"), "LOG_CAPTURE": "full"}
        proxy = ProxyProcess(folder / "proxy", one_provider(provider.url), settings)
        try:
            asyncio.run(proxy.start())
            yield Server(proxy, provider)
            assert asyncio.run(proxy.stop()) == 0
        finally:
            proxy.close()
    assert "Traceback" not in proxy.stderr_text()
    lines = proxy.stdout_path.read_bytes().splitlines()
    validator = jsonschema.Draft202012Validator(json_schema())
    for line in lines:
        assert len(line) < log_contract.MAX_LINE_BYTES
        validator.validate(json.loads(line))
    read = duckdb.sql(f"SELECT * FROM read_ndjson_auto('{proxy.stdout_path}')").fetchall()
    assert len(read) == len(lines)


def test_messages_and_contents_of_wrong_types_are_kept_as_json(server: Server) -> None:
    for messages, text in (
        ({"role": "user", "content": "x"}, '{"role":"user","content":"x"}'),
        (7, "7"),
        (True, "true"),
        (["just text"], "just text"),
        ([{"role": "user", "content": 42}], "42"),
        ([{"role": "user", "content": [["nested"], None]}], '[["nested"],null]'),
        ([{"role": "user", "content": {"text": 1}}], '{"text":1}'),
        ([{"role": 5, "content": "x"}, {"content": "y"}, None, "z"], "z"),
    ):
        answer, request, response = server.ask(messages)
        assert answer.status_code == 200
        assert request["user_question"] == text
        assert (response["outcome"], response["content"]) == ("ok", "fine")
        assert json.loads(request["messages_json"])


def test_fields_of_wrong_types_are_left_out(server: Server) -> None:
    odd: Fields = {"user": 7, "tools": {"a": 1}, "stream": "yes", "stream_options": 5}
    answer, request, _ = server.ask("q", **odd)
    assert answer.status_code == 200
    expected = {"session_id": None, "tools_count": 0, "stream": False, "enable_thinking": None}
    assert {name: request[name] for name in expected} == expected
    headers = {"X-Stainless-Retry-Count": "9" * 40, "X-Session-Id": "s" * 3000}
    _, request, _ = server.ask("q", headers=headers)
    assert request["retry_count"] is None
    assert request["session_id"] == "s" * 500 + "…[cut: 3000 characters in all]"


def test_tool_calls_without_function_and_ids_that_are_numbers(server: Server) -> None:
    calls: list[Any] = [
        {"id": 7, "type": "function"},
        {"function": {"name": 5, "arguments": {"a": 1}}},
        "no call",
        {"id": "ok", "function": {"name": "f", "arguments": "{}"}},
    ]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": 7, "content": 3.5},
    ]
    given = {"body": completion(None, tool_calls=calls, finish_reason=7)}
    answer, request, response = server.ask(messages, given)
    assert answer.json()["choices"][0]["message"]["tool_calls"] == calls
    assert request["tool_results_this_turn"] == [{"tool_call_id": "7", "content": "3.5"}]
    logged = response["tool_calls"]
    assert {"id": "ok", "name": "f", "arguments": "{}"} in logged
    assert response["outcome"] == "ok"


def test_usage_with_strings_and_nonsense(server: Server) -> None:
    usage = {"prompt_tokens": "12", "completion_tokens": "many", "total_tokens": -5, "x": [1]}
    _, _, response = server.ask("q", {"body": completion("a", usage=usage)})
    assert (response["prompt_tokens"], response["completion_tokens"]) == (12, None)
    assert response["total_tokens"] is None
    assert json.loads(response["usage_json"]) == usage
    for usage in (7, "many", [], {"prompt_tokens": 1e300}, {"prompt_tokens": 2**70}):
        _, _, response = server.ask("q", {"body": completion("a", usage=usage)})
        assert (response["outcome"], response["prompt_tokens"]) == ("ok", None)


def test_ten_megabytes_of_text_in_and_out(server: Server) -> None:
    text = "a line of text\n" * (10 * MIB // 15)
    answer, request, response = server.ask(text, {"body": completion(text)})
    assert answer.json()["choices"][0]["message"]["content"] == text
    assert json.loads(server.provider.bodies[-1])["messages"][0]["content"] == text
    mark = f"…[cut: {len(text)} characters in all]"
    assert request["user_question"] == text[:4000] + mark
    assert request["messages_json"].endswith(mark + '"}]')
    assert len(response["content"]) > 3_900_000
    assert response["content"].startswith("a line") and "…[cut: " in response["content"][-60:]


def test_lone_surrogates_and_nul_in_and_out(server: Server) -> None:
    text = 'lone \ud800, \udfff, NUL \0, "quoted"'
    safe = 'lone \\ud800, \\udfff, NUL \\u0000, "quoted"'
    answer, request, response = server.ask(text, {"body": completion(text)})
    assert json.loads(answer.content)["choices"][0]["message"]["content"] == text
    assert json.loads(server.provider.bodies[-1])["messages"][0]["content"] == text
    assert request["user_question"] == response["content"] == safe
    assert json.loads(request["messages_json"]) == [{"role": "user", "content": safe}]


def test_invalid_utf_8_from_a_provider(server: Server) -> None:
    body = json.dumps(completion("caf#")).encode().replace(b"#", b"\xe9\xff")
    answer, _, response = server.ask("q", raw(body))
    assert answer.content == body
    assert (response["outcome"], response["content"]) == ("ok", "caf\ufffd\ufffd")
    stream = (
        b'data: {"choices": [{"index": 0, "delta": {"content": "caf\xe9"}}]}\n\ndata: [DONE]\n\n'
    )
    answer, _, response = server.ask("q", raw(stream, "text/event-stream"), stream=True)
    assert answer.content == stream
    assert (response["outcome"], response["content"]) == ("ok", "caf\ufffd")


def test_a_body_with_invalid_utf_8_is_refused_and_kept(server: Server) -> None:
    answer, request, response = server.send(b'{"model": "kimi", "messages": "caf\xe9"}')
    assert answer.status_code == 400
    assert request["user_question"] == '{"model": "kimi", "messages": "caf\ufffd"}'
    assert response["outcome"] == "rejected"


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_deeply_nested_json_in_and_out(server: Server, bracket: str) -> None:
    body = b'{"model": "kimi", "messages": ' + bracket.encode() * DEEP
    answer, request, response = server.send(body)
    assert answer.status_code == 400
    assert "nested" in response["error"] or "JSON" in response["error"]
    assert request["user_question"].startswith('{"model": "kimi", "messages": ' + bracket)
    assert request["user_question"].endswith(f"…[cut: {len(body)} bytes in all]")
    closing = {"[": "]", '{"a":': "}"}[bracket]
    deep = (bracket * DEEP + "1" + closing * DEEP).encode()
    answer, _, response = server.ask("q", raw(deep))
    assert answer.content == deep
    assert (response["outcome"], response["content"]) == ("upstream_error", None)
    assert response["error"].startswith(bracket * 100)


def test_nesting_that_is_just_allowed(server: Server) -> None:
    value: Any = "deep"
    for _ in range(190):
        value = [value]
    answer, request, _ = server.ask([{"role": "user", "content": value}])
    assert answer.status_code == 200
    assert json.loads(request["messages_json"])[0]["content"] == value


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<html><h1>It works</h1></html>", "text/html"),
        (b"plain text, with \x00 and \xff", "text/plain"),
        (b'["broken off', "application/json"),
        (b'"only a string"', "application/json"),
        (b"[1, 2, 3]", "application/json"),
        (b"data: no JSON\n\ndata: [DONE]\n\n", "text/event-stream"),
    ],
)
def test_an_answer_that_is_no_completion_passes_and_is_kept(
    server: Server, body: bytes, content_type: str
) -> None:
    answer, _, response = server.ask("q", raw(body, content_type))
    assert answer.content == body
    assert (response["outcome"], response["content"]) == ("upstream_error", None)
    text = body.decode("utf-8", "replace").replace("\0", "\\u0000")
    assert text.removeprefix("data: ").partition("\n")[0] in response["error"]


def test_an_empty_answer_and_an_empty_body(server: Server) -> None:
    answer, _, response = server.ask("q", raw(b""))
    assert (answer.content, response["outcome"]) == (b"", "upstream_error")
    assert (response["content"], response["error"]) == (None, "the answer is empty")
    answer, request, response = server.send(b"")
    assert (answer.status_code, response["outcome"]) == (400, "rejected")
    assert request["user_question"] is None


def test_answers_with_parts_of_wrong_types(server: Server) -> None:
    for body in (
        completion({"odd": 1}),
        completion(["a", {"type": "text", "text": "b"}]),
        {"choices": "none"},
        {"choices": [None, 5, {"message": "text"}]},
        {"choices": [{"message": {"content": 5, "tool_calls": "no"}}]},
        {"error": "odd"},
        {"error": ["odd", 5]},
    ):
        answer, _, response = server.ask("q", {"body": body})
        assert answer.json() == body
        assert response["outcome"] in ("ok", "upstream_error"), body
    odd: Any = [{"choices": [{"index": "0", "delta": None}]}, 5, "text", None, {"choices": {}}]
    answer, _, response = server.ask("q", events(*odd), stream=True)
    assert answer.content.endswith(b"data: [DONE]\n\n")
    assert response["outcome"] == "upstream_error"
