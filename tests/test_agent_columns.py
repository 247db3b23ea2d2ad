"""Tables and columns without rich: no line is wider than the screen, whatever is in it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agent_command import columns, render_side

WIDE = st.text(st.sampled_from("ab 界e\u0301-\n"), max_size=80)


@settings(deadline=None, database=None)
@given(st.lists(st.lists(WIDE, min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_table_fits_the_screen(rows: list[list[str]]) -> None:
    flat = [[" ".join(text.split()) for text in row] for row in rows]
    for line in columns.table(flat, [False, True, False], 30):
        assert columns.cells(line) <= 30
    whole = columns.table(flat, [False, True, False], None)
    assert all("…" not in line for line in whole)


@settings(deadline=None, database=None)
@given(st.lists(WIDE, min_size=1, max_size=4), st.integers(2, 40))
def test_wrapping_loses_nothing_and_is_never_too_wide(texts: list[str], width: int) -> None:
    for text in texts:
        lines = columns.wrapped(text, width)
        assert "".join("".join(lines).split()) == "".join(text.split())
        assert all(columns.cells(line) <= width for line in lines)


def record(model: str, answers: list[str], error: str | None = None) -> dict[str, object]:
    counts = {"turns": 2, "tool_calls": 1, "not_recorded": 0, "total_tokens": 1000}
    named = {"cell": "recorded" if model == "kimi" else model, "model": model, "trial": 1}
    return {**counts, **named, "seconds": 1.5, "answers": answers, "error": error}


def test_what_does_not_fit_beside_each_other_follows_below() -> None:
    records = [
        record("kimi", ["one " * 30, "two"]),
        record("b", ["x"], "It broke."),
        record("c", []),
    ]
    text = render_side.comparison(records, ["First?", "Second?"], 70)
    lines = text.splitlines()
    assert all(len(line) <= 70 for line in lines)
    assert lines[0].split() == ["kimi", "(recorded)", "b"]
    assert text.count("> First?") == 2  # two columns fit, the third follows
    assert "[It broke.]" in text
