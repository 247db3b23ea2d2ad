"""Texts that are full of credentials are read as far as their looks last, and cut behind that."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from open_llm_proxy.server.redaction.cache import RememberingRedactor
from open_llm_proxy.server.redaction.credentials import MARK
from open_llm_proxy.server.redaction.looks import LOOK_CHARACTERS, Looks
from open_llm_proxy.server.redaction.redactor import Redactor

REDACTOR = Redactor()
FEW = 400  # looks, so that a small text is crowded
MANY = 2 * FEW
CROWDS: dict[str, Callable[[int], str]] = {
    "assignments": lambda n: f"DB_PASSWORD=hunter{n}x ",
    "headers": lambda n: f"Authorization: Bearer fake{n:08}\n",
    "bearers": lambda n: f"Bearer fake{n:08} ",
    "URLs": lambda n: f"https://me:fake{n:08}@example.org/ ",
    "SQL": lambda n: f"SECRET 'fake{n:08}', ",
    "flags": lambda n: f"mysql -pfake{n:08}\n",
}


@pytest.mark.parametrize("crowd", CROWDS)
def test_a_crowded_text_ends_in_a_mark_and_keeps_no_credential(crowd: str) -> None:
    text = "".join(CROWDS[crowd](number) for number in range(MANY))
    redacted = REDACTOR.text(text, Looks(FEW))
    assert "hunter" not in redacted and "fake" not in redacted
    assert redacted.endswith(MARK) and len(redacted) < len(text) / 2
    assert redacted.startswith(REDACTOR.text(text[:2000])[:500]), "its beginning is readable"
    assert REDACTOR.text(redacted, Looks(FEW)) == redacted


@pytest.mark.parametrize(
    "member",
    [
        lambda n: {"password": f"fake{n}"},
        lambda n: [f"token=fake{n:08}"],
        lambda n: {f"password{n}": f"fake{n}"},
        lambda n: {"a": {"b": json.dumps({"s3_secret": f"fake{n}"})}},
    ],
)
def test_a_crowded_document_ends_in_a_mark_and_keeps_no_credential(
    member: Callable[[int], Any],
) -> None:
    members = [member(number) for number in range(MANY)]
    text = json.dumps(members)
    redacted = REDACTOR.text(text, Looks(FEW))
    assert "fake" not in redacted and redacted.endswith(MARK)
    assert len(redacted) < len(text)
    assert REDACTOR.text(redacted, Looks(FEW)) == redacted
    values = json.dumps(REDACTOR.value(members, Looks(FEW)))
    assert "fake" not in values


def test_a_long_text_whose_credentials_are_apart_is_read_to_its_end() -> None:
    line = f"DB_PASSWORD=hunter2x {'x y ' * (LOOK_CHARACTERS // 4)}\n"
    redacted = REDACTOR.text(line * MANY, Looks(FEW))
    assert redacted == line.replace("hunter2x", MARK) * MANY
    rows = [{"token": "hunter2x", "note": "x y " * (LOOK_CHARACTERS // 4)}] * MANY
    assert REDACTOR.text(json.dumps(rows), Looks(FEW)) == json.dumps(rows).replace("hunter2x", MARK)


@pytest.mark.parametrize(
    "text",
    [
        "turkey_0001 2.5\n" * MANY,
        "max_tokens: 4096, tokenizer: fast, " * MANY,
        json.dumps([{"key": n, "tokens": 3, "name": f"turkey {n}"} for n in range(MANY)]),
        json.dumps([{"token": f"word{number}", "logprob": -1} for number in range(MANY)]),
        json.dumps([f"monkey_{number}" for number in range(MANY)]),
        "primary key (h3), sort key. " * MANY,
    ],
    ids=["table", "settings", "rows", "log probabilities", "names", "schema"],
)  # fmt: skip
def test_words_that_only_resemble_names_take_no_looks(text: str) -> None:
    assert REDACTOR.text(text, Looks(FEW)) is text


def test_the_texts_of_a_row_share_its_looks() -> None:
    texts = [f"DB_PASSWORD=hunter{number}x" for number in range(3 * FEW)]
    row = REDACTOR.for_row(Looks(FEW))
    redacted = [row.text(text) for text in texts]
    assert not any("hunter" in text for text in redacted)
    assert (redacted[0], redacted[-1]) == (f"DB_PASSWORD={MARK}", MARK)
    assert REDACTOR.for_row().text(texts[-1]) == f"DB_PASSWORD={MARK}"


def test_what_a_row_had_no_look_for_is_not_remembered() -> None:
    remembering = RememberingRedactor()
    text = "DB_PASSWORD=hunter2x" + " ordinary words around it" * 20
    row = remembering.for_row(Looks(FEW))
    for number in range(3 * FEW):
        row.text(f"DB_PASSWORD=hunter{number}x")
    assert row.text(text) == MARK
    assert remembering.text(text) == text.replace("hunter2x", MARK)
