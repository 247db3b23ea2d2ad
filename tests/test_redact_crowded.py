"""Texts that are full of places for credentials are read up to a number of them, and cut there."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from open_llm_proxy.server.redaction.cache import RememberingRedactor
from open_llm_proxy.server.redaction.credentials import MARK
from open_llm_proxy.server.redaction.redactor import MAX_PLACES, Redactor, RowRedactor

FEW = 400  # places, so that a small text is crowded
MANY = 2 * FEW
CROWDS: dict[str, Callable[[int], str]] = {
    "assignments": lambda n: f"DB_PASSWORD=hunter{n}x ",
    "headers": lambda n: f"Authorization: Bearer fake{n:08}\n",
    "bearers": lambda n: f"Bearer fake{n:08} ",
    "URLs": lambda n: f"https://me:fake{n:08}@example.org/ ",
    "SQL": lambda n: f"SECRET 'fake{n:08}', ",
    "flags": lambda n: f"mysql -pfake{n:08}\n",
    "hashes": lambda n: f"bob:$2y$12${'fAkE0123' * 6}fake{n:08} ",
}


def row(places: int = FEW) -> RowRedactor:
    return RowRedactor((), places)


@pytest.mark.parametrize("crowd", CROWDS)
def test_a_crowded_text_ends_in_a_mark_and_keeps_no_credential(crowd: str) -> None:
    text = "".join(CROWDS[crowd](number) for number in range(MANY))
    redacted = row().text(text)
    assert "hunter" not in redacted and "fake" not in redacted
    assert redacted.endswith(MARK) and redacted.count(MARK) <= FEW + 1
    assert redacted.startswith(Redactor().text(text[:2000])[:500]), "its beginning is readable"
    assert row().text(redacted) == redacted


@pytest.mark.parametrize(
    "member",
    [
        lambda n: {"password": f"fake{n}"},
        lambda n: [f"token=fake{n:08}"],
        lambda n: {f"password{n}": f"fake{n}"},
        lambda n: {"a": {"b": json.dumps({"s3_secret": f"fake{n}"})}},
        lambda n: [f"https://me:fake{n:08}@example.org/"],
    ],
)
def test_a_crowded_document_ends_in_a_mark_and_keeps_no_credential(
    member: Callable[[int], Any],
) -> None:
    members = [member(number) for number in range(MANY)]
    text = json.dumps(members)
    redacted = row().text(text)
    assert "fake" not in redacted and redacted.endswith(MARK)
    assert len(redacted) < len(text)
    assert row().text(redacted) == redacted
    assert "fake" not in json.dumps(row().value(members))


def test_a_text_of_any_length_with_fewer_places_is_read_to_its_end() -> None:
    line = f"DB_PASSWORD=hunter2x {'x y ' * 200}\n"
    number = MAX_PLACES - 1
    assert Redactor().text(line * number) == line.replace("hunter2x", MARK) * number


@pytest.mark.parametrize(
    "text",
    [
        "turkey_0001 2.5\n" * MANY,
        "max_tokens: 4096, tokenizer: fast, " * MANY,
        json.dumps([{"key": n, "tokens": 3, "name": f"turkey {n}"} for n in range(MANY)]),
        json.dumps([{"key": f"a{n}", "value": f"b {n}"} for n in range(MANY)]),
        json.dumps([{"token": f"word{number}", "logprob": -1} for number in range(MANY)]),
        json.dumps([f"monkey_{number}" for number in range(MANY)]),
        "primary key (h3), sort key. " * MANY,
        "https://example.org/x?y=1 costs $5, mail me@example.org; tar -x -f a.tar\n" * MANY,
    ],
    ids=["table", "settings", "rows", "pairs", "probabilities", "names", "schema", "shell"],
)  # fmt: skip
def test_words_that_only_resemble_names_are_no_places(text: str) -> None:
    assert row().text(text) is text


@pytest.mark.parametrize("unit", ["turkey_01 2.5 ", "://me:a@b ", "curl -x\n", "k" * 18 + "9_0 "])
def test_a_text_with_very_many_words_to_look_at_is_cut(unit: str) -> None:
    text = unit * 40_000 + "password=hunter2x"
    redacted = Redactor().text(text)
    assert redacted.endswith(MARK) and len(redacted) < len(text)
    assert "hunter2x" not in redacted


def test_the_texts_of_a_row_share_their_places() -> None:
    texts = [f"DB_PASSWORD=hunter{number}x" for number in range(3 * FEW)]
    shared = row()
    redacted = [shared.text(text) for text in texts]
    assert not any("hunter" in text for text in redacted)
    assert (redacted[0], redacted[-1]) == (f"DB_PASSWORD={MARK}", MARK)
    assert shared.text("ordinary words") == "ordinary words"
    assert Redactor().text(texts[-1]) == f"DB_PASSWORD={MARK}"


def test_what_a_row_had_no_place_for_is_not_remembered() -> None:
    remembering = RememberingRedactor()
    text = "DB_PASSWORD=hunter2x" + " ordinary words around it" * 20
    full = remembering.for_row()
    for number in range(MAX_PLACES):
        full.text(f"DB_PASSWORD=hunter{number}x")
    assert full.text(text) == MARK
    assert remembering.text(text) == text.replace("hunter2x", MARK)
