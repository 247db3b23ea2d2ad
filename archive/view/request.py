"""What every page is made of: who may read it, how it is guarded, and what runs beside the loop.

Every answer has a Content-Security-Policy under which no script runs at all, so that a hostile text
in the log is only a text. Without a key the pages are for this machine: a request whose Host is
another name is refused, as a web page of somebody else could have made it (DNS rebinding).
"""

import asyncio
import base64
import binascii
import hmac
import ipaddress
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from tornado.web import HTTPError, RequestHandler

from open_llm_proxy.archive.sources.source import LogSourceError
from open_llm_proxy.archive.tables.filters import FilterError, Filters
from open_llm_proxy.archive.view import formatting
from open_llm_proxy.archive.view.questions import Question
from open_llm_proxy.archive.view.snapshot import NotReadyError, Snapshot, Snapshots

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
FILTER_NAMES = ("since", "until", "app", "model", "key", "outcome", "grep")
MAX_VALUE_CHARACTERS = 500
CHUNK_BYTES = 256 * 1024
Answer = TypeVar("Answer")

FORMATS = {
    "jsonl": ("FORMAT json", "application/x-ndjson"),
    "csv": ("FORMAT csv, HEADER", "text/csv; charset=utf-8"),
    "parquet": ("FORMAT parquet, COMPRESSION zstd", "application/vnd.apache.parquet"),
}


@dataclass(frozen=True, slots=True)
class ViewState:
    """What the pages share. `key` is None where only this machine is served."""

    snapshots: Snapshots
    source_name: str
    key: str | None
    threads: ThreadPoolExecutor


class PageHandler(RequestHandler):
    """A page, with the filters of its query."""

    title = ""

    def initialize(self, state: ViewState) -> None:
        self.state = state
        self.filters = Filters()

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Server", "open-llm-proxy")

    async def prepare(self) -> None:
        if self.state.key is None:
            if not is_this_machine(self.request.host_name):
                raise HTTPError(403)
        elif not self._has_key(self.state.key):
            raise HTTPError(401)

    async def get(self) -> None:
        try:
            given: dict[str, Any] = {name: self._value(name) for name in FILTER_NAMES}
            self.filters = Filters.parsed(**given)
            await self.page()
        except FilterError as error:
            raise PageError(400, str(error)) from None
        except LogSourceError as error:
            raise PageError(503, str(error)) from None

    async def page(self) -> None:
        """Answer with the page."""
        raise HTTPError(404)

    def _has_key(self, key: str) -> bool:
        kind, _, coded = self.request.headers.get("Authorization", "").partition(" ")
        try:
            _, _, given = base64.b64decode(coded, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        return kind.lower() == "basic" and hmac.compare_digest(given, key.encode())

    def _value(self, name: str) -> str | None:
        text = self.get_query_argument(name, "").strip()
        if len(text) > MAX_VALUE_CHARACTERS:
            raise PageError(400, f"{name} is longer than {MAX_VALUE_CHARACTERS} characters")
        return text or None

    def number(self, name: str, default: int = 0) -> int:
        """A count in the query; anything else is the default."""
        text = self.get_query_argument(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else default

    async def ask(self, work: Callable[[Snapshot], Answer]) -> Answer:
        """Run something on the present snapshot in a thread."""

        def run() -> Answer:
            with self.state.snapshots.present() as snapshot:
                return work(snapshot)

        return await asyncio.get_running_loop().run_in_executor(self.state.threads, run)

    async def show(self, template: str, question: Question, **values: Any) -> None:
        """Answer with a page, or with a file of all that its question finds."""
        wanted = self.get_query_argument("format", "")
        if wanted:
            await self.send_file(question, wanted)
            return
        problems = await self.ask(
            lambda snapshot: (snapshot.problems.sentences(), snapshot.made_at, snapshot.choices)
        )
        sentences, made_at, choices = problems
        self.render(
            template,
            question=question,
            problems=sentences,
            made_at=made_at,
            doing=self.state.snapshots.doing,
            choices=choices,
            **values,
        )

    async def send_file(self, question: Question, wanted: str) -> None:
        """All that a question finds, as JSONL, CSV or Parquet."""
        if wanted not in FORMATS:
            raise PageError(400, f"{wanted} is no format: use {', '.join(FORMATS)}")
        options, content_type = FORMATS[wanted]
        with tempfile.NamedTemporaryFile(prefix="open-llm-proxy-") as file:
            path = Path(file.name)
            await self.ask(lambda snapshot: snapshot.copy_to(question.sql, path, options))
            name = f"{self.title.lower()}.{wanted}"
            self.set_header("Content-Type", content_type)
            self.set_header("Content-Disposition", f'attachment; filename="{name}"')
            self.set_header("Content-Length", file.seek(0, os.SEEK_END))
            file.seek(0)
            while chunk := file.read(CHUNK_BYTES):
                self.write(chunk)
                await self.flush()

    def link(self, path: str, **changes: object) -> str:
        """A page with the filters of this one, some of them changed; None removes one."""
        values = {name: self.get_query_argument(name, "") for name in FILTER_NAMES} | changes
        query = urlencode(
            {name: value for name, value in values.items() if value not in (None, "")}
        )
        return f"{path}?{query}" if query else path

    def here(self, **changes: object) -> str:
        """This page with some arguments changed."""
        others = {
            name: self.get_query_argument(name)
            for name in self.request.query_arguments
            if name != "format"
        }
        return self.link(self.request.path, **(others | changes))

    def get_template_namespace(self) -> dict[str, Any]:
        return super().get_template_namespace() | {
            "title": self.title,
            "source_name": self.state.source_name,
            "link": self.link,
            "here": self.here,
            "filters": self.filters,
            "show": formatting,
        }

    def write_error(self, status_code: int, **arguments: Any) -> None:
        error = (arguments.get("exc_info") or (None, None, None))[1]
        sentence = HTTPStatus(status_code).phrase
        if isinstance(error, NotReadyError):
            self.set_status(503)
            self.set_header("Refresh", "1")
            self.render("loading.html", sentence=str(error))
            return
        if isinstance(error, PageError):
            sentence = error.sentence
        elif status_code == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="open-llm-proxy log"')
            sentence = "This log needs its key: any user name, and the key as the password."
        elif status_code == 403:
            sentence = "Without a key the log is shown under the name localhost only."
        elif status_code == 404:
            sentence = "There is no such page."
        self.render("error.html", sentence=sentence, status=status_code)

    def log_exception(self, kind: Any, value: Any, trace: Any) -> None:
        """A page that is not there yet, or not for somebody, is nothing to log."""
        if not isinstance(value, HTTPError | NotReadyError):
            super().log_exception(kind, value, trace)


class PageError(HTTPError):
    """A page that cannot be made, with the sentence that it shows."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(status)
        self.sentence = sentence


def is_this_machine(host: str) -> bool:
    """Whether a name or an address of a Host header is loopback."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
