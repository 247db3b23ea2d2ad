"""The view for a terminal with rich: SQL in colours, dimmed reasoning, the answer as Markdown."""

from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.panel import Panel
from rich.spinner import Spinner
from rich.syntax import Syntax
from rich.text import Text

from .render import (
    SilentView,
    argument_lines,
    preview,
    result_line,
    shortened,
    summary_line,
    turn_line,
)
from .reply import PieceKind
from .settings import shown
from .transcript import ToolCall, Transcript, Turn

# Lines of a stream that are shown while it comes; the whole text follows when it is complete.
LIVE_LINES = 12
LIVE_CHARS = 4000

COLOURS = {"answered": "green", "turn_limit": "yellow", "no_progress": "yellow"}


class RichView(SilentView):
    """Lines that stay, and below them one live part: a spinner, or the end of a stream."""

    def __init__(self, output: TextIO) -> None:
        self._console = Console(file=output, highlight=False)
        self._live: Live | None = None
        self._streamed = ""
        self._running = 0

    def started(self, transcript: Transcript) -> None:
        settings = transcript.settings
        about = Text.assemble(
            (shown(settings.question), "bold"),
            (f"\n{settings.model} · session {settings.session_id}", "dim"),
            (f"\ntools: {', '.join(transcript.tools) or 'none'}", "dim"),
            (f" ({settings.tool_server})", "dim"),
        )
        self._console.print(Panel(about, title="Question", title_align="left"))
        for note in transcript.notes:
            self._console.print(Text(f"Note: {shown(note)}", style="yellow"))

    def waiting(self, turn: Turn) -> None:
        self._streamed = ""
        self._start_live(f"turn {turn.number}: waiting for the model")

    def piece(self, kind: PieceKind, text: str) -> None:
        self._streamed = (self._streamed + shown(text))[-LIVE_CHARS:]
        if self._live is not None:
            tail = "\n".join(self._streamed.splitlines()[-LIVE_LINES:])
            self._live.update(Text(tail, style="dim" if kind == "reasoning" else ""))

    def replied(self, turn: Turn) -> None:
        self._stop_live()
        self._console.print(Text(f"\n{shown(turn_line(turn))}", style="bold cyan"))
        if turn.reasoning.strip():
            self._indented(Text(shown(shortened(turn.reasoning)), style="dim italic"))
        if turn.tool_calls and turn.content.strip():
            self._indented(Text(shown(turn.content.strip())))
        for number, call in enumerate(turn.tool_calls, start=1):
            self._indented(Text(f"[{number}] {shown(call.name)}", style="bold"))
            for label, text in argument_lines(call):
                self._indented(argument_block(label, text), by=6)
        self._running = len(turn.tool_calls)
        if self._running:
            self._start_live("running tools")

    def tool_finished(self, turn: Turn, call: ToolCall) -> None:
        self._stop_live()
        number = turn.tool_calls.index(call) + 1
        line = Text(f"[{number}] {result_line(call)}", style="red" if call.is_error else "green")
        self._indented(line)
        self._indented(Text(shown(preview(call.result or "")), style="dim"), by=6)
        self._running -= 1
        if self._running:
            self._start_live("running tools")

    def finished(self, transcript: Transcript) -> None:
        self._stop_live()
        if transcript.answer:
            self._console.print()
            self._console.print(Markdown(shown(transcript.answer)))
        colour = COLOURS.get(transcript.status, "red")
        self._console.print(Text(f"\n{summary_line(transcript)}", style=colour))

    def _indented(self, block: Text | Syntax, by: int = 2) -> None:
        self._console.print(Padding(block, (0, 0, 0, by), expand=False))

    def _start_live(self, what: str) -> None:
        spinner = Spinner("dots", Text(what, style="dim"))
        self._live = Live(spinner, console=self._console, transient=True)
        self._live.start()

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def argument_block(label: str, text: str) -> Text | Syntax:
    """One argument of a call; without a label it is SQL."""
    if label:
        return Text.assemble((f"{shown(label)}: ", "dim"), shown(text))
    return Syntax(shown(text), "sql", word_wrap=True, background_color="default")
