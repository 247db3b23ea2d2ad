"""Grids: every question for every model, side by side, and continued where they stopped."""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from agent_command import Run
from agent_provider import AgentProvider, Request, Silence, Step, asks, call, fails, says

pytest_plugins = ("agent_fixtures",)

DEADLINE_SECONDS = 30
GRID = ("--questions", "questions.txt", "--model", "kimi", "--model", "openai/gpt-oss")


@pytest.fixture(autouse=True)
def questions(run_agent: Run, tmp_path: Path) -> Path:
    """Two questions in the folder in which the command runs."""
    path = tmp_path / "questions.txt"
    path.write_text("# about states\nHow many states?\n\nWhich is first?\n")
    return path


def answer(request: Request) -> Step:
    """One tool call, then an answer that names the model."""
    if not request.results:
        return asks(call("query", sql="SELECT count(*) AS n FROM states"))
    return says(f"{request.body['model']} says three.")


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_grid_runs_every_cell_as_a_session_of_its_own(
    run_agent: Run, llm: AgentProvider, tmp_path: Path
) -> None:
    llm.choose(answer)
    done = run_agent(*GRID, "--origin", "https://app.example.org", "--transcript", "cells")
    assert done.code == 0
    found = {record["cell"]: record for record in records(tmp_path / "questions.txt.results.jsonl")}
    assert sorted(found) == ["q1-kimi", "q1-openai_gpt-oss", "q2-kimi", "q2-openai_gpt-oss"]
    cell = found["q2-openai_gpt-oss"]
    assert cell["question"] == "Which is first?"
    assert cell["answer"] == "openai/gpt-oss says three."
    assert (cell["status"], cell["turns"], cell["total_tokens"]) == ("answered", 2, 220)
    assert len({record["session_id"] for record in found.values()}) == 4
    seen = {(r.headers["x-session-id"], r.headers["origin"]) for r in llm.requests}
    assert seen == {(r["session_id"], r["origin"]) for r in found.values()}
    assert cell["origin"] == "https://app.example.org/q2-openai_gpt-oss"
    transcript = json.loads((tmp_path / "cells" / "q2-openai_gpt-oss.json").read_text())
    assert transcript["session_id"] == cell["session_id"]


def test_a_grid_ends_with_a_table(run_agent: Run, llm: AgentProvider) -> None:
    llm.choose(answer)
    lines = run_agent(*GRID).out.splitlines()
    assert any(line.startswith("[4/4] ") for line in lines)
    table = [line.split() for line in lines[-4:]]
    heads = lines[-5].split()
    assert heads == ["question", "model", "status", "turns", "tokens", "seconds", "answer"]
    assert [row[:5] for row in table] == [
        ["q1", "kimi", "answered", "2", "220"],
        ["q1", "openai/gpt-oss", "answered", "2", "220"],
        ["q2", "kimi", "answered", "2", "220"],
        ["q2", "openai/gpt-oss", "answered", "2", "220"],
    ]


def test_trials_repeat_each_cell_and_a_second_run_adds_the_missing_ones(
    run_agent: Run, llm: AgentProvider, tmp_path: Path
) -> None:
    llm.choose(answer)
    once = run_agent("How many?", "--model", "kimi", "--trials", "2", "--results", "r.jsonl")
    assert "q1 kimi: 2 of 2 answered · 2 turns · 220 tokens" in once.out
    run_agent("How many?", "--model", "kimi", "--trials", "3", "--results", "r.jsonl")
    found = records(tmp_path / "r.jsonl")
    assert sorted(r["trial"] for r in found) == [1, 2, 3]
    assert len({record["session_id"] for record in found}) == 3


def test_without_rich_the_table_fits_the_terminal(
    run_agent: Run, llm: AgentProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm.choose(lambda request: says("A long answer. " * 20))
    monkeypatch.setenv("COLUMNS", "72")
    monkeypatch.setitem(sys.modules, "rich", None)
    out = run_agent(*GRID, terminal=True).out
    table = out[out.index("question  model") :].splitlines()
    assert len(table) == 5
    assert all(60 < len(line) <= 72 for line in table[1:])


def test_on_a_terminal_a_grid_shows_its_progress(
    run_agent: Run, llm: AgentProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm.choose(answer)
    monkeypatch.setenv("COLUMNS", "140")
    out = run_agent(*GRID, terminal=True).out
    assert "4/4" in out
    assert "│ openai/gpt-oss │ \x1b[32manswered" in out


def test_several_models_are_a_grid_for_one_question_too(
    run_agent: Run, llm: AgentProvider, tmp_path: Path
) -> None:
    llm.choose(answer)
    done = run_agent("Hello?", "--model", "a", "--model", "b", "--json", "--transcript", "cells")
    assert done.code == 0
    assert [json.loads(line)["model"] for line in done.out.splitlines()] == ["a", "b"]
    assert len(records(tmp_path / "agent.results.jsonl")) == 2


def test_at_most_so_many_cells_run_at_once(run_agent: Run, llm: AgentProvider) -> None:
    """Three sessions arrive and wait for each other; a fourth may not be among them."""
    together = threading.Barrier(3)
    under_way, most, lock = set[str](), [0], threading.Lock()

    def step(request: Request) -> Step:
        with lock:
            under_way.add(request.headers["x-session-id"])
            most[0] = max(most[0], len(under_way))
        return Meeting()

    class Meeting(Step):
        def answer(self, handler: Any, request: Request) -> None:
            together.wait(DEADLINE_SECONDS)
            with lock:
                under_way.discard(request.headers["x-session-id"])
            says("Met.").answer(handler, request)

    llm.choose(step)
    models = [option for name in "abc" for option in ("--model", name)]
    done = run_agent("--questions", "questions.txt", *models, "--concurrency", "3", "--json")
    assert done.code == 0
    assert most == [3]


def test_a_second_run_does_only_what_is_left(
    run_agent: Run, llm: AgentProvider, tmp_path: Path
) -> None:
    def half(request: Request) -> Step:
        model = request.body["model"]
        return fails(400, "Down for now.") if model == "openai/gpt-oss" else answer(request)

    grid = (*GRID, "--session-id", "mine")
    llm.choose(half)
    first = run_agent(*grid)
    assert first.code == 1
    assert "failed" in first.out
    assert "Down for now." in first.out
    llm.choose(answer)
    second = run_agent(*grid)
    assert second.code == 0
    assert {request.body["model"] for request in llm.requests} == {"openai/gpt-oss"}
    assert "2 of 4 cells are known from an earlier run." in second.out
    found = records(tmp_path / "questions.txt.results.jsonl")
    assert [record["status"] for record in found].count("failed") == 2
    assert len(found) == 6
    # A cell that is tried again is another session, although the user named the run.
    assert len({record["session_id"] for record in found}) == 6
    assert all(record["session_id"].startswith("mine-q") for record in found)


def test_a_third_run_asks_nothing_and_shows_the_same_table(
    run_agent: Run, llm: AgentProvider
) -> None:
    llm.choose(answer)
    first = run_agent(*GRID)
    llm.choose(answer)
    again = run_agent(*GRID)
    assert not llm.requests
    assert again.out.splitlines()[-5:] == first.out.splitlines()[-5:]


def test_other_settings_are_other_cells(run_agent: Run, llm: AgentProvider) -> None:
    llm.choose(answer)
    run_agent(*GRID)
    llm.choose(answer)
    run_agent(*GRID, "--temperature", "0.5", "--json")
    assert len(llm.requests) == 8


def test_the_worst_cell_gives_the_exit_code(run_agent: Run, llm: AgentProvider) -> None:
    def step(request: Request) -> Step:
        endless = request.body["model"] == "endless"
        return asks(call("next_number")) if endless else says("Done.")

    llm.choose(step)
    grid = ("Hello", "--model", "kimi", "--model", "endless", "--max-turns", "2", "--json")
    grid += ("--transcript", "cells")
    assert run_agent(*grid).code == 3
    assert run_agent(*grid, "--model", "no-such").code == 1


def test_a_result_that_was_cut_short_is_done_again(
    run_agent: Run, llm: AgentProvider, tmp_path: Path
) -> None:
    llm.choose(answer)
    run_agent(*GRID)
    path = tmp_path / "questions.txt.results.jsonl"
    for cut, requests in ((20, 2), (1, 0)):  # in the middle of a record, and at its line end
        path.write_bytes(path.read_bytes()[:-cut])
        llm.choose(answer)
        assert run_agent(*GRID).code == 0
        assert len(llm.requests) == requests
        assert len(records(path)) == 4


def test_a_file_that_holds_something_else_is_not_touched(
    run_agent: Run, llm: AgentProvider, tmp_path: Path
) -> None:
    for text in ("How many?\nWhich?\n", "no line end", '{"status": 1}'):
        other = tmp_path / "other.txt"
        other.write_text(text)
        done = run_agent(*GRID, "--results", "other.txt")
        assert done.code == 1
        assert "is no result of a grid" in done.err
        assert other.read_text() == text
    assert not llm.requests


def test_questions_may_carry_names(run_agent: Run, llm: AgentProvider, tmp_path: Path) -> None:
    (tmp_path / "named.jsonl").write_text('{"id": "gap 1/2", "question": "How many?"}\n')
    llm.choose(answer)
    done = run_agent("--questions", "named.jsonl", "--json")
    assert (done.json["question_id"], done.json["cell"]) == ("gap 1/2", "gap_1_2-nemotron")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '{"question": "A?"}\nB?\n', "a.jsonl, line 2: must be a JSON object"),
        ("a.jsonl", '{"id": 1}\n', "line 1: must be a JSON object"),
        ("a.txt", "A?\nB?\nA?\n", "line 3: this question or its id came before."),
        ("a.txt", "# only a note\n", "there is no question in"),
    ],
)
def test_a_file_of_questions_that_cannot_be_used_is_told(
    run_agent: Run, tmp_path: Path, name: str, text: str, expected: str
) -> None:
    (tmp_path / name).write_text(text)
    done = run_agent("--questions", name)
    assert done.code == 1
    assert expected in done.err


def test_ctrl_c_in_a_grid_keeps_what_is_done(
    run_agent: Run, llm: AgentProvider, tmp_path: Path
) -> None:
    silence = Silence(threading.Event(), threading.Event())

    def step(request: Request) -> Step:
        return (
            silence if request.body["messages"][-1]["content"] == "Which is first?" else says("3")
        )

    def press_ctrl_c() -> None:
        if silence.arrived.wait(DEADLINE_SECONDS):
            os.kill(os.getpid(), signal.SIGINT)

    llm.choose(step)
    person = threading.Thread(target=press_ctrl_c)
    person.start()
    options = ("--questions", "questions.txt", "--concurrency", "1", "--transcript", "cells")
    done = run_agent(*options)
    person.join()
    silence.release.set()
    assert (done.code, done.err) == (130, "agent_runner: Interrupted.\n")
    assert done.out.splitlines()[-1].startswith("q1 ")
    assert [r["status"] for r in records(tmp_path / "questions.txt.results.jsonl")] == ["answered"]
    interrupted = json.loads((tmp_path / "cells" / "q2-nemotron.json").read_text())
    assert interrupted["status"] == "interrupted"
    llm.choose(answer)
    assert run_agent(*options).code == 0
    assert len(llm.requests) == 2
