"""Tests of openai-python that end otherwise through the proxy, and why: nothing else may.

docs/clients.md tells readers the same. Each group is a pattern over `file::test`, without classes
and parameters, and the code that the proxy answers there. Tests that send nothing (empty path
parameters) pass everywhere, so the patterns name the ones that do.
"""

import re
from dataclasses import dataclass

_SENDS = r"test_(method|raw_response|streaming_response)"
# Only `create` with all its parameters names a model.
_WITHOUT_MODEL = "(?!.*with_all_params)"


@dataclass(frozen=True, slots=True)
class Difference:
    """What the SDK calls (and what that sends), the tests that do, and the code that they meet."""

    calls: dict[str, str]
    tests: str
    code: str = "route_not_offered"

    def covers(self, test: str) -> bool:
        file, _, name = test.partition("::")
        bare = f"{file.removeprefix('tests/api_resources/')}::{name.rpartition('::')[2]}"
        return re.match(self.tests, bare) is not None


KNOWN_DIFFERENCES = (
    Difference(
        {
            "chat.completions.list": "GET /v1/chat/completions",
            "chat.completions.retrieve": "GET /v1/chat/completions/c",
            "chat.completions.update": "POST /v1/chat/completions/c",
            "chat.completions.delete": "DELETE /v1/chat/completions/c",
        },
        rf"chat/test_completions\.py::{_SENDS}_(list|retrieve|update|delete)",
    ),
    Difference(
        {"chat.completions.messages.list": "GET /v1/chat/completions/c/messages"},
        rf"chat/completions/test_messages\.py::{_SENDS}_list",
    ),
    Difference(
        {
            "responses.retrieve": "GET /v1/responses/r",
            "responses.delete": "DELETE /v1/responses/r",
            "responses.cancel": "POST /v1/responses/r/cancel",
            "responses.compact": "POST /v1/responses/compact",
        },
        rf"test_responses\.py::{_SENDS}_(retrieve|delete|cancel|compact)",
    ),
    Difference(
        {"responses.input_items.list": "GET /v1/responses/r/input_items"},
        rf"responses/test_input_items\.py::{_SENDS}_list",
    ),
    Difference(
        {"responses.input_tokens.count": "POST /v1/responses/input_tokens"},
        rf"responses/test_input_tokens\.py::{_SENDS}_count",
    ),
    Difference({"models.delete": "DELETE /v1/models/m"}, rf"test_models\.py::{_SENDS}_delete"),
    Difference(
        {"responses.create": "POST /v1/responses"},
        rf"test_responses\.py::{_WITHOUT_MODEL}{_SENDS}_create",
        "missing_model",
    ),
)


def why_different(test: str) -> Difference | None:
    """The known reason why this test fails through the proxy; None where it has to pass."""
    return next((known for known in KNOWN_DIFFERENCES if known.covers(test)), None)
