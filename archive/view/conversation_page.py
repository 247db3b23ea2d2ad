"""A session as a chat: its turns as things that were said, in their order."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tornado.web import HTTPError

from open_llm_proxy.archive.tables.conversation import conversation
from open_llm_proxy.archive.view import questions
from open_llm_proxy.archive.view.request import PageError, PageHandler
from open_llm_proxy.archive.view.snapshot import Snapshot


@dataclass(slots=True)
class ShownTurn:
    """One call. `question` is what the user said in it, if that is new; `system` the prompt, where
    it is another one than before."""

    row: dict[str, Any]
    system: str | None
    question: str | None
    results: list[tuple[str | None, str]] = field(default_factory=list)


def shown_turns(turns: list[dict[str, Any]], prompts: dict[str, str]) -> Iterator[ShownTurn]:
    """The turns of a session with what is new in each: a call repeats all that came before it."""
    said: dict[int, ShownTurn] = {id(row): ShownTurn(row, None, None) for row in turns}
    for one in conversation(turns):
        if one.speaker == "user":
            said[id(one.turn)].question = one.text
        elif one.speaker == "tool":
            said[id(one.turn)].results.append((one.name, one.text))
    last_system: str | None = None
    for turn in said.values():
        name = turn.row["system_sha256"]
        if name and name != last_system:
            turn.system = prompts.get(name, "")
        last_system = name
        yield turn


class ConversationHandler(PageHandler):
    """``/session?id=…``: the id of a session or of one of its calls."""

    title = "Session"

    async def page(self) -> None:
        key = self.get_query_argument("id", "", strip=False)
        found = await self.ask(lambda snapshot: _read(snapshot, key))
        if found is None:
            raise PageError(404, "The log has no session and no call of this id.")
        question, turns, session, prompts = found
        await self.show(
            "session.html",
            question,
            session=session,
            turns=list(shown_turns(turns, prompts)),
        )


class RowsHandler(PageHandler):
    """``/rows?request_id=…``: a call's rows as they lie in the objects."""

    title = "Rows"

    async def page(self) -> None:
        question = questions.rows_of(self.get_query_argument("request_id", "", strip=False))
        rows = await self.ask(lambda snapshot: snapshot.rows(question.shown))
        if not rows:
            raise HTTPError(404)
        await self.show("rows.html", question, rows=rows)


def _read(
    snapshot: Snapshot, key: str
) -> tuple[questions.Question, list[dict[str, Any]], dict[str, Any], dict[str, str]] | None:
    question = questions.turns_of(key)
    turns = snapshot.rows(question.shown)
    if not turns:
        found = snapshot.rows(questions.session_of(key).shown)
        if not found:
            return None
        question = questions.turns_of(found[0]["session_key"])
        turns = snapshot.rows(question.shown)
    names = sorted({turn["system_sha256"] for turn in turns if turn["system_sha256"]})
    prompts = snapshot.rows(questions.texts(names).shown) if names else []
    session = snapshot.rows(questions.session(turns[0]["session_key"]).shown)[0]
    return question, turns, session, {row["text_sha256"]: row["content"] for row in prompts}
