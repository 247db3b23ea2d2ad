"""What a person at a terminal sees of a replay and of `queue status`, and what Ctrl-C does."""

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from open_llm_proxy.queue.uploads import UploadCounts
from open_llm_proxy.server.commands import replay_progress
from open_llm_proxy.server.commands.replay_progress import PLAIN_SECONDS, Progress, Totals
from queue_fixtures import birth, dead_queue, plain, row_lines
from replay_fixtures import tried_elsewhere
from replay_process import COMMAND, TIMEOUT_SECONDS
from terminal import CTRL_C, Terminal

# Ten objects of four rows.
ROWS = 40
PROMPT_ANSWERS = 2
CONNECTIONS = 4  # of a replay


class PausingStore:
    """An S3 store that answers its first PUTs and keeps all others waiting until `go_on`.

    `all_connections` is set once as many wait at once as a replay has connections.
    """

    def __init__(self, prompt_answers: int) -> None:
        self.objects: dict[str, bytes] = {}
        self.all_connections = threading.Event()
        self.go_on = threading.Event()
        self._seen = self._waiting = 0
        self._prompt_answers = prompt_answers
        self._lock = threading.Lock()
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                store.take(self.path, body)
                self.send_response(200)
                # By which a PUT is believed, see queue/sinks.py.
                md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
                self.send_header("ETag", f'"{md5}"')
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def env(self) -> dict[str, str]:
        return {
            "LOG_BUCKET": "logs",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._server.server_port}",
        }

    def take(self, key: str, body: bytes) -> None:
        with self._lock:
            self._seen += 1
            must_wait = self._seen > self._prompt_answers
            self._waiting += must_wait
            if self._waiting == CONNECTIONS:
                self.all_connections.set()
        if must_wait:
            assert self.go_on.wait(TIMEOUT_SECONDS)
        self.objects[key] = body

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def store() -> Iterator[PausingStore]:
    pausing = PausingStore(PROMPT_ANSWERS)
    yield pausing
    pausing.close()


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts the command on a terminal."""
    with ExitStack() as stack:

        def start(
            *arguments: object, env: Mapping[str, str] | None = None, columns: int = 120
        ) -> Terminal:
            started = Terminal([*COMMAND, *map(str, arguments)], env or {}, columns)
            stack.callback(started.close)
            return started

        yield start


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return dead_queue(
        tmp_path / "queues",
        lambda s: s.commit([plain(*range(ROWS), size_bytes=20_000)]),
        birth(object_max_bytes=85_000),
    )


def test_a_bar_shows_rows_bytes_and_time_left_and_ctrl_c_stops_after_the_objects_under_way(
    queue: Path, store: PausingStore, terminal: Callable[..., Terminal]
) -> None:
    replay = terminal("replay", queue, env=store.env, columns=80)
    assert store.all_connections.wait(TIMEOUT_SECONDS), "fewer connections at once than there are"
    replay.until(r"━ +20% 8 of 40 rows, [\d.]+ .?[bB](ytes)?/s, \d+:\d\d:\d\d left")
    replay.press(CTRL_C)
    replay.until("Stopping after the current uploads; press Ctrl-C again to stop immediately")
    store.go_on.set()
    assert replay.ended() == 1
    put = PROMPT_ANSWERS + CONNECTIONS
    assert len(store.objects) == put
    assert f"uploaded {4 * put} rows in {put} objects; LEFT: stopped with" in replay.text
    assert "Traceback" not in replay.text
    again = terminal("replay", queue, env=store.env)
    assert again.ended() == 0
    assert f"uploaded {ROWS - 4 * put} rows in {10 - put} objects; directory removed" in again.text
    assert len(store.objects) == 10
    assert len(row_lines(store.objects.values())) == ROWS


def test_a_status_loses_nothing_on_a_narrow_terminal(
    tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    queue = dead_queue(tmp_path / "queues", tried_elsewhere)
    status = terminal("queue", "status", tmp_path / "queues", columns=80)
    assert status.ended() == 0
    for cell in (
        queue.name, "crashed", "ok", "10", "oldest row", "2023-11-15T12:00:00Z",
        "1 batch may be in elsewhere: already and must be uploaded there",
    ):  # fmt: skip
        assert cell in status.text, f"{cell} is not shown: {status.text}"


def test_without_a_terminal_a_plain_line_now_and_then_tells_rows_bytes_and_time_left(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(replay_progress, "time", SimpleNamespace(monotonic=lambda: now))
    counts = UploadCounts()
    with Progress(counts, Totals(rows=4_000, bytes=8_000_000)) as progress:
        counts.uploaded_rows, counts.uploaded_bytes = 1_000, 2_000_000
        now += PLAIN_SECONDS / 2
        progress.show()
        now = 130.0
        progress.show()
        progress.show()
    assert capfd.readouterr() == ("", "1,000 of 4,000 rows, 66.7 kB/s, 0:01:30 left\n")
