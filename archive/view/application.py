"""``logs view`` as a Tornado application, and how it is served."""

import asyncio
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from open_llm_proxy.archive.view.conversation_page import ConversationHandler, RowsHandler
from open_llm_proxy.archive.view.formatting import highlight_css
from open_llm_proxy.archive.view.own_tables import OwnTables
from open_llm_proxy.archive.view.pages import (
    IntegrityHandler,
    PlotHandler,
    SearchHandler,
    SessionsHandler,
    UsageHandler,
)
from open_llm_proxy.archive.view.request import PageHandler, ViewState
from open_llm_proxy.archive.view.snapshot import OpenLog, Snapshots

QUERY_THREADS = 4
MAX_BODY_BYTES = 64 * 1024
HERE = Path(__file__).parent


class StyleHandler(PageHandler):
    """``/view.css``, with the colours of code behind it."""

    css = ""

    async def get(self) -> None:
        if not self.css:
            StyleHandler.css = (HERE / "static" / "view.css").read_text() + highlight_css()
        self.set_header("Content-Type", "text/css; charset=utf-8")
        self.finish(self.css)


def view_application(state: ViewState) -> Application:
    """The pages."""
    arguments = {"state": state}
    routes = [
        (r"/", SessionsHandler),
        (r"/session", ConversationHandler),
        (r"/rows", RowsHandler),
        (r"/search", SearchHandler),
        (r"/usage", UsageHandler),
        (r"/plot", PlotHandler),
        (r"/integrity", IntegrityHandler),
        (r"/view.css", StyleHandler),
        (r".*", PageHandler),
    ]
    return Application(
        [(path, handler, arguments) for path, handler in routes],
        template_path=str(HERE / "templates"),
        log_function=lambda handler: None,
    )


class View:
    """The pages over one log, on one address.

    `open_log` opens the source; `key` is needed where `address` is not loopback, which the caller
    has seen to.
    """

    def __init__(
        self,
        open_log: OpenLog,
        source_name: str,
        key: str | None,
        own_tables: OwnTables | None = None,
    ) -> None:
        self.snapshots = Snapshots(open_log, own_tables)
        self._threads = ThreadPoolExecutor(QUERY_THREADS, thread_name_prefix="log-page")
        state = ViewState(self.snapshots, source_name, key, self._threads)
        self._server = HTTPServer(view_application(state), max_body_size=MAX_BODY_BYTES)

    def listen(self, port: int, address: str) -> int:
        """Begin to read the log and to answer, on the running loop; returns the port."""
        sockets = bind_sockets(port, address)
        self._server.add_sockets(sockets)
        self.snapshots.start()
        found: int = sockets[0].getsockname()[1]
        return found

    async def close(self) -> None:
        """Stop answering."""
        self._server.stop()
        await self._server.close_all_connections()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.snapshots.stop)


async def serve_until_signal(
    view: View, port: int, address: str, tell: Callable[[int], None]
) -> None:
    """Serve until SIGINT or SIGTERM; `tell` is given the port."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    tell(view.listen(port, address))
    try:
        await ended.wait()
    finally:
        await view.close()
