"""Nothing that a client, a model, a tool or a web server wrote steers a terminal."""

import http.server
import io
import json
import threading
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from open_llm_proxy.agent import prompt
from open_llm_proxy.agent.settings import InputError, shown
from open_llm_proxy.archive.commands.show_command import print_conversation
from open_llm_proxy.archive.commands.tail_command import print_turn
from open_llm_proxy.archive.commands.terminal import (
    Column,
    print_table,
    result_table,
    terminal_json,
)
from open_llm_proxy.archive.tables.views import COLUMNS

# What moves a cursor, hides text or turns its direction.
HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\x7f\u202e\u2066\u200f\u061c\u2028\ud800"
TEXT_FIELDS = [name for name, kind in COLUMNS.items() if kind == "VARCHAR"]
MOMENT = datetime(2026, 3, 1, 10, 20, 30)


def is_safe(text: str) -> bool:
    bidi = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return not any(
        (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t") or c in bidi
        for c in text
    )


def turn(**fields: Any) -> dict[str, Any]:
    """A row of the view `turns`."""
    times = {"started": MOMENT, "ended": MOMENT, "app": None, "tool_calls_count": None}
    return dict.fromkeys(COLUMNS) | times | fields


def printed(show: Any, *arguments: Any) -> str:
    output = io.StringIO()
    console = Console(file=output, width=500, highlight=False, markup=False, emoji=False)
    show(console, *arguments)
    return output.getvalue()


@pytest.mark.parametrize("outcome", ["ok", "open", "interrupted", HOSTILE])
@pytest.mark.parametrize("field", [*TEXT_FIELDS, "app"])
def test_no_field_of_a_row_steers_the_terminal(field: str, outcome: str) -> None:
    hostile = turn(**{"outcome": outcome, field: HOSTILE * 20})
    text = printed(print_turn, hostile)
    assert is_safe(text) and text.count("\n") == 1
    assert is_safe(printed(print_conversation, [hostile], True))


def test_nor_do_tool_calls_and_their_results() -> None:
    call = {"id": HOSTILE, "name": HOSTILE, "arguments": json.dumps({HOSTILE[:-1]: "x"})}
    result = {"tool_call_id": HOSTILE, "content": HOSTILE}
    hostile = turn(tool_calls=[call], tool_results_this_turn=[result])
    for show, arguments in ((print_turn, (hostile,)), (print_conversation, ([hostile], False))):
        assert is_safe(printed(show, *arguments))


def test_nor_do_tables() -> None:
    text = printed(print_table, [Column("a")], [[HOSTILE + "\n\t"]], [[HOSTILE]])
    text += printed(result_table, [HOSTILE], [[HOSTILE], [{"a": [HOSTILE]}]])
    assert is_safe(text)


@given(st.text())
@settings(deadline=None, database=None)
def test_json_on_a_terminal_is_the_same_json(text: str) -> None:
    line = json.dumps({"a": text}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    safe = terminal_json(line)
    assert is_safe(safe.decode()) and json.loads(safe) == {"a": text}


@given(st.text())
@settings(deadline=None, database=None)
def test_the_agent_shows_no_control_character_and_no_bidi_override(text: str) -> None:
    assert is_safe(shown(text))
    assert is_safe(shown(HOSTILE))


class Pages(http.server.BaseHTTPRequestHandler):
    """Web pages that a prompt must not be: endless, slow, or somewhere else."""

    elsewhere = ""

    def do_GET(self) -> None:
        if self.path == "/prompt":
            self._answer(b"Be brief.")
        elif self.path == "/moved":
            self._redirect("/prompt")
        elif self.path == "/elsewhere":
            self._redirect(f"{Pages.elsewhere}/prompt")
        elif self.path == "/loop":
            self._redirect("/loop")
        else:
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * (65_536 if self.path == "/endless" else 1))
                    if self.path == "/slow" and stopped.wait(0.05):
                        return
            except OSError:
                return  # the reader had enough

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


stopped = threading.Event()


@pytest.fixture
def pages() -> Iterator[str]:
    stopped.clear()
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) for _ in range(2)]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    here, elsewhere = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    Pages.elsewhere = elsewhere
    yield here
    stopped.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_prompt_is_fetched_and_a_redirect_at_home_followed(pages: str) -> None:
    assert prompt.load_system_prompt(f"{pages}/prompt").text == "Be brief."
    assert prompt.load_system_prompt(f"{pages}/moved").text == "Be brief."


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/endless", "is larger than"),
        ("/slow", "took longer than"),
        ("/elsewhere", "redirects to another origin"),
        ("/loop", "redirects more than"),
    ],
)
def test_a_page_that_is_no_prompt_is_told_while_it_is_read(
    pages: str, monkeypatch: pytest.MonkeyPatch, path: str, why: str
) -> None:
    monkeypatch.setattr(prompt, "FETCH_TIMEOUT_SECONDS", 0.5 if path == "/slow" else 30.0)
    with pytest.raises(InputError, match=why):
        prompt.load_system_prompt(pages + path)
