"""The pages over many calls: sessions, search, usage, integrity."""

from datetime import UTC, datetime, timedelta
from typing import Any

from open_llm_proxy.archive.integrity.report import findings
from open_llm_proxy.archive.view import plots, questions
from open_llm_proxy.archive.view.formatting import around
from open_llm_proxy.archive.view.request import PageError, PageHandler
from open_llm_proxy.archive.view.snapshot import NotReadyError

SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
SEARCHED = (
    ("question", "user_message_this_turn"),
    ("answer", "content"),
    ("reasoning", "reasoning_content"),
    ("tool call", "tool_calls"),
    ("tool result", "tool_results"),
    ("error", "error"),
)


class SessionsHandler(PageHandler):
    """``/``: the newest sessions with a turn that the filters choose."""

    title = "Sessions"

    async def page(self) -> None:
        page = self.number("page")
        question = questions.sessions(self.filters, page)
        rows = await self.ask(lambda snapshot: snapshot.rows(question.shown))
        today = datetime.now(UTC).date()
        periods = {
            "any time": (None, None),
            "today": (today, today),
            "yesterday": (today - timedelta(days=1), today - timedelta(days=1)),
            "7 days": (today - timedelta(days=6), today),
        }
        await self.show(
            "sessions.html",
            question,
            rows=rows[: questions.PAGE_ROWS],
            has_more=len(rows) > questions.PAGE_ROWS,
            page=page,
            periods=periods,
        )


class SearchHandler(PageHandler):
    """``/search?grep=…``: calls in which a text stands, with the place where it does."""

    title = "Search"

    async def page(self) -> None:
        question = questions.matches(self.filters)
        rows: list[dict[str, Any]] = []
        wanted = self.filters.grep
        if wanted is not None:
            rows = await self.ask(lambda snapshot: snapshot.rows(question.shown))
        found = [(row, _place(row, wanted or "")) for row in rows[: questions.MATCHES]]
        await self.show(
            "search.html", question, found=found, has_more=len(rows) > questions.MATCHES
        )


def _place(row: dict[str, Any], wanted: str) -> tuple[str, tuple[str, str, str]] | None:
    for name, column in SEARCHED:
        place = around(row[column] or "", wanted)
        if place is not None:
            return name, place
    return None


class UsageHandler(PageHandler):
    """``/usage?by=…``: calls, tokens, cost, latency and errors, as plots and as a table."""

    title = "Usage"

    async def page(self) -> None:
        by = self.by()
        question = questions.usage(self.filters, by)
        rows = await self.ask(lambda snapshot: snapshot.rows(question.shown))
        await self.show(
            "usage.html",
            question,
            rows=rows,
            by=by,
            groups=list(questions.GROUPS),
            titles=plots.TITLES,
        )

    def by(self) -> str:
        by = self.get_query_argument("by", "app")
        if by not in questions.GROUPS:
            raise PageError(400, f"usage by {by} is not known; by {', '.join(questions.GROUPS)} is")
        return by


class PlotHandler(UsageHandler):
    """``/plot?measure=…``: one plot as SVG, for the usage page."""

    async def page(self) -> None:
        by, measure = self.by(), self.get_query_argument("measure", "calls")
        if measure not in questions.MEASURES:
            raise PageError(400, f"{measure} is no measure")
        is_dark = self.get_query_argument("dark", "") == "1"
        svg = await self.ask(
            lambda snapshot: plots.drawn(snapshot, self.filters, by, measure, is_dark)
        )
        self.set_header("Content-Type", "image/svg+xml")
        self.set_header("Content-Security-Policy", SVG_POLICY)
        self.finish(svg)


class IntegrityHandler(PageHandler):
    """``/integrity``: whether anything is missing, per day and queue."""

    title = "Integrity"

    async def page(self) -> None:
        report = await self.ask(lambda snapshot: snapshot.report)
        if report is None:
            raise NotReadyError("the objects of the log are being checked")
        question = questions.integrity()
        rows = await self.ask(lambda snapshot: snapshot.rows(question.shown))
        await self.show(
            "integrity.html", question, rows=rows, findings=findings(report), report=report
        )
