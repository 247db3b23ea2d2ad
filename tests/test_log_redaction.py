"""No credential that passes through the real server is written anywhere, split or quoted as it is.

The server captures everything; afterwards its objects, stdout, stderr and queue folder are
searched for every secret that a client or a provider said.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from given_answers import Fields, completion, events, logged, raw, tool_call, written_below
from proxy_process import PROVIDER_KEY, PROXY_KEY

pytestmark = pytest.mark.timeout(seconds=60)
PADDING = "You answer questions about protected areas. " * 20


class Secrets:
    """Makes credentials that are all different, and remembers them for the search."""

    def __init__(self) -> None:
        self.made = [PROXY_KEY, PROVIDER_KEY]

    def key(self) -> str:
        """One that looks like a provider's key."""
        return self._made(f"sk-proj-fAkE{len(self.made):03}AbCdEfGhIjKlMnOpQrStUv")

    def word(self) -> str:
        """One that only its surroundings give away."""
        return self._made(f"hunter{len(self.made):03}x")

    def sql(self) -> str:
        """DuckDB's way to keep two of them."""
        return f"CREATE SECRET (TYPE S3, KEY_ID '{self.word()}', SECRET '{self.word()}');"

    def _made(self, secret: str) -> str:
        self.made.append(secret)
        return secret


def asked(secrets: Secrets) -> Fields:
    """A call with a credential in every place that a client fills."""
    arguments = json.dumps({"sql": secrets.sql(), "s3_secret": secrets.word()})
    result = json.dumps(
        {"rows": [{"api_key": secrets.word()}], "log": f"password={secrets.word()}"}
    )
    return {
        "messages": [
            {"role": "system", "content": f"{PADDING} export NRP_API_KEY={secrets.word()}\n"},
            {"role": "user", "content": [{"type": "text", "text": f"key {secrets.key()}"}]},
            {"role": "assistant", "tool_calls": [tool_call("call_1", "query", arguments)]},
            {"role": "tool", "tool_call_id": f"call {secrets.key()}", "content": result},
            {
                "role": "user",
                "content": f"my keys: {PROXY_KEY} {PROVIDER_KEY}",
                "token": secrets.word(),
            },
        ],
        "user": f"me {secrets.key()}",
        "headers": {
            "Referer": f"https://app.example/?token={secrets.word()}",
            "X-Client": f"tests {secrets.key()}",
        },
    }


def pieces(text: str) -> list[str]:
    """A text as a model streams it: two characters at a time."""
    return [text[at : at + 2] for at in range(0, len(text), 2)]


def deltas(secrets: Secrets) -> Iterator[Fields]:
    """A stream whose credentials are all split over deltas."""
    texts = {
        "content": f'I used {{"password": "{secrets.word()}"}} and {secrets.key()}. ',
        "reasoning_content": f"Authorization: Bearer {secrets.key()}\n",
    }
    for name, text in texts.items():
        for piece in pieces(text):
            yield {"choices": [{"index": 0, "delta": {name: piece}, "finish_reason": None}]}
    for number, piece in enumerate(pieces(json.dumps({"sql": secrets.sql(), "n": 1}))):
        call: Fields = {"index": 0, "function": {"arguments": piece}}
        if number == 0:
            call |= {"id": "call_1", "function": {"name": "query", "arguments": piece}}
        yield {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}


def calls(secrets: Secrets) -> list[Fields]:
    """Calls whose answers say credentials in every place that a provider fills."""
    calls = [
        tool_call("call_1", "query", json.dumps({"sql": secrets.sql(), "cookie": secrets.word()}))
    ]
    usage = {"prompt_tokens": 1, "api_key": secrets.word()}
    whole = completion(f"token={secrets.key()}", tool_calls=calls, usage=usage)
    refusal: Any = {"error": {"message": f"Incorrect API key provided: {secrets.key()}"}}
    refused = {
        "status": 401,
        "headers": {"x-request-id": secrets.key(), "x-ratelimit-reset": f"k {secrets.key()}"},
        "body": refusal,
    }
    broken = events(*list(deltas(secrets))[:-3], done=False)
    return [
        {**asked(secrets), "given": {"body": whole}},
        {**asked(secrets), "given": events(*deltas(secrets)), "stream": True},
        {**asked(secrets), "given": broken, "stream": True},
        {**asked(secrets), "given": refused},
        {**asked(secrets), "given": raw(f"no JSON, password={secrets.word()}".encode())},
        {**asked(secrets), "model": f"kimi {secrets.key()}", "given": {"body": refusal}},
        {"messages": f"odd: {secrets.sql()}", "prompt": {"api_key": secrets.word()}},
    ]


@pytest.mark.parametrize("mode", ["summary", "full", "metadata"])
async def test_no_credential_is_written_anywhere(tmp_path: Path, mode: str) -> None:
    secrets = Secrets()
    rows, answers = await logged(tmp_path, calls(secrets), LOG_CAPTURE=mode)
    assert len([row for row in rows if row["type"] == "response"]) == len(answers)
    written = written_below(tmp_path)
    assert any(path.name == "stdout.jsonl" for path in written)
    for path, data in written.items():
        assert [secret for secret in secrets.made if secret.encode() in data] == [], path
    assert any("hunter" in answer.text for answer in answers), "the client gets what was said"


async def test_what_is_left_around_credentials_can_be_read(tmp_path: Path) -> None:
    secrets = Secrets()
    streamed = {**asked(secrets), "given": events(*deltas(secrets)), "stream": True}
    rows, _ = await logged(tmp_path, [streamed], LOG_CAPTURE="full")
    prompt, request, response = rows
    assert response["content"].startswith('I used {"password": "[redacted]"} and [redacted]. ')
    assert response["reasoning_content"] == "Authorization: Bearer [redacted]\n"
    (call,) = response["tool_calls"]
    hidden = "CREATE SECRET (TYPE S3, KEY_ID '[redacted]', SECRET '[redacted]');"
    assert json.loads(call["arguments"]) == {"sql": hidden, "n": 1}
    (result,) = request["tool_results_this_turn"]
    assert json.loads(result["content"])["rows"] == [{"api_key": "[redacted]"}]
    assert request["origin"] == "https://app.example/?token=[redacted]"
    assert prompt["content"].endswith("export NRP_API_KEY=[redacted]\n")
    messages = json.loads(request["messages_json"])
    assert messages[0]["content"] == {"text_sha256": prompt["text_sha256"]}
    assert json.loads(request["params_json"])["user"] == "me [redacted]"
    arguments = json.loads(messages[2]["tool_calls"][0]["function"]["arguments"])
    assert arguments == {"sql": hidden, "s3_secret": "[redacted]"}


async def test_hashes_are_those_of_the_redacted_prompts(tmp_path: Path) -> None:
    """A hash of the prompt as it was sent would let a short secret in it be guessed."""
    secrets = Secrets()
    rows, _ = await logged(tmp_path, [asked(secrets), asked(secrets)], LOG_CAPTURE="full")
    prompts = [row for row in rows if row["type"] == "text"]
    assert len(prompts) == 1, "two prompts that only differ in a credential are one"
    (prompt,) = prompts
    digest = hashlib.sha256(prompt["content"].encode()).hexdigest()
    assert prompt["text_sha256"] == digest
    assert {row["system_sha256"] for row in rows if row["type"] == "request"} == {digest}
