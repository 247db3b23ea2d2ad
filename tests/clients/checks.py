"""What the Python clients' scripts share: where to call, and how checks are told.

    python use_openai.py     with BASE_URL, API_KEY, CONTROL_URL, SESSION and NONCE set

prints one JSON object: for each check null, or the error that it ended with; `request_id` is what
the client read from X-Proxy-Request-Id. The names of the checks are the columns of docs/clients.md.
"""

import json
import os
import urllib.request
from collections.abc import Callable
from typing import Any

BASE_URL = os.environ["BASE_URL"]
API_KEY = os.environ["API_KEY"]
SESSION = os.environ["SESSION"]
NONCE = os.environ["NONCE"]
HEADERS = {"X-Session-Id": SESSION, "X-Client": "check"}
MODEL = "kimi"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def user(word: str) -> list[Any]:
    """The messages of a question whose last word says what the provider does."""
    return [{"role": "user", "content": f"Please: {word}"}]


def equal(found: object, expected: object) -> None:
    if found != expected:
        raise AssertionError(f"{found!r} instead of {expected!r}")


def client_left() -> None:
    """Wait until the provider has seen the client of an endless stream leave."""
    with urllib.request.urlopen(os.environ["CONTROL_URL"] + "/left", timeout=60) as answer:
        equal(json.load(answer), {"left": True})


def fails(
    error: type[BaseException] | tuple[type[BaseException], ...], call: Callable[[], Any]
) -> Any:
    """The error that `call` must end with."""
    try:
        result = call()
    except error as raised:
        return raised
    raise AssertionError(f"no error, but {result!r}")


def report(checks: dict[str, Callable[[], Any]]) -> None:
    """Run the checks and print how each ended; `ids` returns the request id."""
    results: dict[str, Any] = {}
    request_id = None
    for name, check in checks.items():
        try:
            returned = check()
            results[name] = None
            request_id = returned if name == "ids" else request_id
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"[:500]
    print(json.dumps({"results": results, "request_id": request_id}))
