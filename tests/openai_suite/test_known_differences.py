"""The list of what openai-python's suite meets through the proxy agrees with code and page."""

from pathlib import Path

import pytest

from known_differences import KNOWN_DIFFERENCES, Difference, why_different
from open_llm_proxy.server.routes_not_offered import why_not_offered

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "clients.md"
CALLS = [(call, known) for known in KNOWN_DIFFERENCES for call in known.calls]


@pytest.mark.parametrize(("call", "known"), CALLS)
def test_each_call_is_refused_for_the_reason_that_is_listed(call: str, known: Difference) -> None:
    is_refused = why_not_offered(*known.calls[call].split()) is not None
    assert is_refused == (known.code == "route_not_offered")


def test_the_page_for_clients_lists_every_call_with_its_code() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    for call, known in CALLS:
        assert any(f"`{call}`" in row and f"`{known.code}`" in row for row in rows), call


@pytest.mark.parametrize(
    ("test", "code"),
    [
        ("test_responses.py::TestResponses::test_method_create_overload_1[loose]", "missing_model"),
        ("test_responses.py::TestResponses::test_method_create_with_all_params[loose]", None),
        ("test_responses.py::TestResponses::test_path_params_retrieve_overload_1[loose]", None),
        ("test_models.py::TestModels::test_method_retrieve[loose]", None),
        ("chat/test_completions.py::A::test_method_create_overload_1[strict]", None),
        ("chat/test_completions.py::A::test_raw_response_list[strict]", "route_not_offered"),
    ],
)
def test_a_test_that_the_proxy_can_pass_is_not_listed(test: str, code: str | None) -> None:
    known = why_different(f"tests/api_resources/{test}")
    assert (known.code if known else None) == code
