"""What a person sees: on a terminal with rich, on one without it, and in a file."""

import importlib.util
from typing import Any

import pytest

from agent_command import Run, render
from agent_provider import AgentProvider, asks, call, says

pytest_plugins = ("agent_fixtures",)

SQL = "SELECT state\nFROM states\nWHERE gap12 > 0.4"


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    without = lambda name, *more: None if name == "rich" else found(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def ranking(llm: AgentProvider) -> None:
    thought = {"reasoning_content": "A filter."}
    step = asks(call("query", sql=SQL), call("hang"), content="I look.", **thought)
    llm.script(step, says("It is **Nevada**."))


def test_a_session_in_a_file_is_plain_text(run_agent: Run, llm: AgentProvider) -> None:
    ranking(llm)
    out = run_agent("Which state?", "--tool-timeout", "0.2").out
    lines = out.splitlines()
    assert lines[0] == "Question: Which state?"
    assert "  [1] query" in lines
    sql = lines.index("      SELECT state")
    assert lines[sql + 1 : sql + 3] == ["      FROM states", "      WHERE gap12 > 0.4"]
    assert "      | Nevada" in lines
    assert any(line.startswith("  [2] error · 0.2 s · ") for line in lines)
    assert "It is **Nevada**." in lines
    assert lines[-1].startswith("Answered · 2 turns · 2 tool calls · 220 tokens (80 cached) · ")
    assert "\x1b" not in out


def test_a_session_on_a_terminal_is_in_colours_and_markdown(
    run_agent: Run, llm: AgentProvider
) -> None:
    ranking(llm)
    out = run_agent("Which state?", "--tool-timeout", "0.2", terminal=True).out
    assert "Which state?" in out
    assert "\x1b[2;3mA filter.\x1b[0m" in out  # dim and italic
    assert "\x1b[1mNevada\x1b[0m" in out  # **Nevada**
    assert "**Nevada**" not in out
    assert "Answered · 2 turns" in out


@pytest.mark.usefixtures("without_rich")
def test_a_terminal_without_rich_gets_plain_text_with_dimmed_reasoning(
    run_agent: Run, llm: AgentProvider
) -> None:
    ranking(llm)
    out = run_agent("Which state?", "--tool-timeout", "0.2", terminal=True).out
    assert "\x1b[2m  ~ A filter.\x1b[0m" in out
    assert "It is **Nevada**." in out


@pytest.mark.usefixtures("without_rich")
def test_a_streamed_answer_is_shown_once(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(says("It is Nevada.", reasoning_content="A filter."))
    out = run_agent("Which state?", "--stream", terminal=True).out
    assert out.count("It is Nevada.") == 1
    assert "\x1b[2m" in out


def test_a_stream_on_a_rich_terminal_ends_as_markdown(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(asks(call("query", sql=SQL), reasoning_content="Hm."), says("It is **Nevada**."))
    out = run_agent("Which state?", "--stream", terminal=True).out
    assert "\x1b[1mNevada\x1b[0m" in out


def test_what_a_model_sends_cannot_steer_the_terminal(run_agent: Run, llm: AgentProvider) -> None:
    for terminal in (False, True):
        llm.script(asks(call("query", sql="SELECT chr(27) || '[2J'")), says("\x1b]0;title\x07Hi."))
        out = run_agent("Clear my screen", terminal=terminal).out
        assert "\x1b[2J" not in out
        assert "\x1b]0;" not in out
        assert "Hi." in out


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sql", "select 1", True),
        ("query", "  -- best\nSELECT 1", True),
        ("query", "(SELECT 1)", True),
        ("query", "WITH a AS (SELECT 1) FROM a", True),
        ("query", "selection criteria", False),
        ("path", "SELECT 1", False),
    ],
)
def test_sql_is_told_from_other_text(name: str, value: str, expected: bool) -> None:
    assert render.is_sql(name, value) is expected


def test_a_preview_is_short_and_says_what_is_missing() -> None:
    text = "\n".join(["y" * 500, *map(str, range(30))])
    lines = render.preview(text).splitlines()
    assert len(lines) == 9
    assert len(lines[0]) < 200
    assert lines[-1] == "… 23 more lines"


def test_an_unfinished_session_still_sums_up(run_agent: Run, llm: AgentProvider) -> None:
    llm.script(*[says("x")] * 0)
    done: Any = run_agent("Hello")
    assert done.code == 1
    assert "Failed · 0 turns · 0 tool calls · 0 tokens" in done.out
