"""The pages of ``logs view``: real objects, a real server, strangers and hostile texts."""

import asyncio
import base64
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import duckdb
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from log_history import write_history
from open_llm_proxy.archive.sources.opening import open_source
from open_llm_proxy.archive.sources.source import Environment
from open_llm_proxy.archive.view.application import View
from open_llm_proxy.archive.view.own_tables import OwnTables
from open_llm_proxy.archive.view.request import is_this_machine
from open_llm_proxy.archive.view.snapshot import OpenLog
from waiting import wait_until

HOSTILE = (
    "<script>alert(1)</script> \u202eevil\u202c \x1b[31m & \"quoted\" 'x' <img src=x onerror=y>"
)
SESSION = "a/b?c#d <i>&amp;"
Get = Callable[..., "asyncio.Future[HTTPResponse]"]


def environment() -> Environment:
    return Environment(None, lambda: pytest.fail("no bucket is named"))


def opener(folder: Path) -> OpenLog:
    return lambda stack: (stack.enter_context(open_source(str(folder), environment())), None)


@asynccontextmanager
async def serving(folder: Path, key: str | None = None) -> AsyncIterator[Get]:
    """The pages over a folder, ready; gives a function that gets one of them."""
    view = View(opener(folder), folder.name, key)
    await asyncio.to_thread(view.snapshots.refresh)
    port = view.listen(0, "127.0.0.1")
    client = AsyncHTTPClient(force_instance=True)

    def get(path: str, **headers: str) -> "asyncio.Future[HTTPResponse]":
        return client.fetch(
            f"http://127.0.0.1:{port}{path}",
            headers=headers,
            raise_error=False,
            follow_redirects=False,
        )

    try:
        yield get
    finally:
        client.close()
        await view.close()


def write_rows(folder: Path, *rows: dict[str, object]) -> None:
    day = folder / "2026-04-07"
    day.mkdir(parents=True, exist_ok=True)
    start = {"queue_id": "00112233aabbccdd", "timestamp": "2026-04-07T10:00:00.000Z"}
    lines = (json.dumps(start | {"seq": seq} | row) for seq, row in enumerate(rows, 1))
    name = f"10-00-00-00112233aabbccdd-0000000001-{len(rows):010}-0123456789ab.jsonl"
    (day / name).write_text("\n".join(lines) + "\n")


def write_hostile(folder: Path) -> None:
    call = {"request_id": "r1", "session_id": SESSION, "client": HOSTILE, "model": HOSTILE}
    write_rows(
        folder,
        {"type": "text", "text_sha256": HOSTILE, "content": HOSTILE},
        {
            "type": "request",
            **call,
            "user_question": HOSTILE,
            "user_message_this_turn": HOSTILE,
            "system_sha256": HOSTILE,
            "tool_results_this_turn": [{"tool_call_id": HOSTILE, "content": HOSTILE}],
        },
        {
            "type": "response",
            **call,
            "outcome": "upstream_error",
            "content": HOSTILE + "\n\n[x](javascript:alert(1)) ![x](http://evil.example/x.png)\0",
            "reasoning_content": HOSTILE,
            "error": HOSTILE,
            "tool_calls": [
                {
                    "id": "c",
                    "name": HOSTILE,
                    "arguments": json.dumps({"sql": HOSTILE, "b": HOSTILE}),
                },
                {"id": "d", "name": None, "arguments": HOSTILE},
            ],
        },
    )


async def test_the_sessions_of_a_log_are_listed_and_each_is_a_page(tmp_path: Path) -> None:
    history = write_history(tmp_path / "logs", days=2, calls=300)
    async with serving(tmp_path / "logs") as get:
        listed = await get("/?format=csv")
        sessions = list(csv.DictReader(io.StringIO(listed.body.decode())))
        keys = {row["session_key"] for row in sessions}
        assert history.sessions <= keys
        assert sum(int(row["turns"]) for row in sessions) == history.calls
        page = (await get("/")).body.decode()
        links = re.findall(r'href="(/session\?id=[^"]+)"', page)
        assert len(links) == min(50, len(keys))
        shown = await get(links[0])
        assert shown.code == 200 and b"turn-1" in shown.body


async def test_usage_adds_up_to_the_calls_of_the_log(tmp_path: Path) -> None:
    history = write_history(tmp_path / "logs", days=2, calls=300)
    async with serving(tmp_path / "logs") as get:
        for by in ("app", "model", "key", "day", "hour"):
            answer = await get(f"/usage?by={by}&format=jsonl")
            rows = [json.loads(line) for line in answer.body.splitlines()]
            assert sum(row["calls"] for row in rows) == history.calls
            assert sum(row["errors"] for row in rows) == history.failed
        for measure in ("calls", "tokens", "cost", "latency", "errors"):
            for by in ("model", "day"):
                plot = await get(f"/plot?measure={measure}&by={by}")
                assert plot.code == 200 and b"</svg>" in plot.body


async def test_the_integrity_page_says_what_is_missing(tmp_path: Path) -> None:
    history = write_history(tmp_path / "logs", calls=200, with_open=False)
    async with serving(tmp_path / "logs") as get:
        page = (await get("/integrity")).body.decode()
        assert 'class="verdict good"' in page and "complete: " in page
    history.objects[40].unlink()
    victim = next(path for path in history.objects[44:] if b"qwen3" in path.read_bytes())
    victim.write_bytes(victim.read_bytes().replace(b"qwen3", b"qwen4"))
    async with serving(tmp_path / "logs") as get:
        page = (await get("/integrity")).body.decode()
        assert 'class="verdict bad"' in page and "missing from queue" in page
        assert victim.name in page
        rows = [
            json.loads(line) for line in (await get("/integrity?format=jsonl")).body.splitlines()
        ]
        assert sum(row["missing"] for row in rows) > 0


async def test_the_sql_that_a_page_shows_is_what_it_asked(tmp_path: Path) -> None:
    write_history(tmp_path / "logs", days=1, calls=50)
    async with serving(tmp_path / "logs") as get:
        for path in ("/?outcome=failed", "/usage?by=model", "/search?grep=parks"):
            page = (await get(path)).body.decode()
            shown = re.search(
                r"<pre><code>(.*?)</code></pre></details>\s*</footer>", page, re.DOTALL
            )
            assert shown is not None
            assert re.sub(r"<[^>]+>", "", shown[1]).startswith("SELECT")


async def test_parquet_of_a_page_is_read_by_duckdb(tmp_path: Path) -> None:
    history = write_history(tmp_path / "logs", days=1, calls=40)
    async with serving(tmp_path / "logs") as get:
        answer = await get("/?format=parquet")
    (tmp_path / "sessions.parquet").write_bytes(answer.body)
    counted = (
        duckdb.connect()
        .execute(f"SELECT sum(turns) FROM '{tmp_path / 'sessions.parquet'}'")
        .fetchall()
    )
    assert counted == [(history.calls,)]


async def test_a_hostile_text_is_only_a_text_on_every_page(tmp_path: Path) -> None:
    write_hostile(tmp_path / "logs")
    pages = ("/", "/usage?by=model", "/search?grep=evil", f"/session?id={quote(SESSION, safe='')}",
             "/rows?request_id=r1", "/?grep=%3Cscript%3E", "/session?id=r1")  # fmt: skip
    async with serving(tmp_path / "logs") as get:
        for path in pages:
            answer = await get(path)
            text = answer.body.decode()
            assert answer.code == 200, path
            assert "<script" not in text and "<img src=x" not in text and "<i>" not in text, path
            assert not re.search(r'href="javascript|src="http', text), path
            seen = re.sub(r' value="[^"]*"', "", text)  # what a form sends is as the log has it
            assert not re.search("[\x00\x1b\u202e\u202c]", seen), path
            assert "script-src" not in answer.headers["Content-Security-Policy"]
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        plot = await get("/plot?measure=calls&by=model")
        assert plot.code == 200 and b"<script" not in plot.body


async def test_an_answer_of_a_megabyte_is_cut_on_the_page_and_whole_in_its_rows(
    tmp_path: Path,
) -> None:
    call = {"request_id": "r1", "session_id": "s"}
    write_rows(
        tmp_path / "logs",
        {"type": "request", **call},
        {"type": "response", **call, "outcome": "ok", "content": "word " * 200_000},
    )
    async with serving(tmp_path / "logs") as get:
        page = await get("/session?id=s")
        assert len(page.body) < 300_000 and b"800,000 further characters" in page.body
        rows = await get("/rows?request_id=r1&format=jsonl")
        answer = json.loads(rows.body.splitlines()[-1])
        assert len(answer["content"]) == 1_000_000


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/?since=yesterdayish", "is no time"),
        ("/usage?by=planet", "by planet is not known"),
        ("/?format=xlsx", "is no format"),
        ("/plot?measure=love", "is no measure"),
        ("/?app=" + "x" * 501, "longer than 500"),
        ("/?grep=a%00b", None),
        ("/?page=99999999999999999999", None),
        ("/session", "no session and no call"),
        ("/session?id=' OR true --", "no session and no call"),
        ("/../etc/passwd", "no such page"),
        ("/static/../../entry.py", "no such page"),
    ],
)
async def test_a_mistake_in_the_address_is_a_sentence(
    tmp_path: Path, path: str, sentence: str | None
) -> None:
    write_hostile(tmp_path / "logs")
    async with serving(tmp_path / "logs") as get:
        answer = await get(quote(path, safe="/?=&%"))
        if sentence is None:
            assert answer.code in (200, 400)
        else:
            assert answer.code in (400, 404) and sentence in answer.body.decode()


async def test_with_a_key_nothing_is_shown_without_it(tmp_path: Path) -> None:
    write_hostile(tmp_path / "logs")
    async with serving(tmp_path / "logs", key="right key") as get:
        for path in ("/", "/usage", "/plot", "/session?id=r1", "/view.css", "/none"):
            for given in (None, "Basic !", "Basic " + _basic("wrong"), "Bearer right key"):
                headers = {} if given is None else {"Authorization": given}
                answer = await get(path, **headers)
                assert answer.code == 401 and "Basic" in answer.headers["WWW-Authenticate"]
        right = {"Authorization": "Basic " + _basic("right key")}
        assert (await get("/", **right, Host="logs.example")).code == 200


def _basic(key: str) -> str:
    return base64.b64encode(f"me:{key}".encode()).decode()


async def test_without_a_key_another_name_than_localhost_is_refused(tmp_path: Path) -> None:
    write_hostile(tmp_path / "logs")
    async with serving(tmp_path / "logs") as get:
        assert (await get("/", Host="rebound.example:80")).code == 403
        assert (await get("/", Host="localhost:80")).code == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("[::1]", True),
        ("localhost.evil.example", False),
        ("evil.example", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_what_is_this_machine(host: str, expected: bool) -> None:
    assert is_this_machine(host) is expected


async def test_objects_that_arrive_are_shown_after_a_while(tmp_path: Path) -> None:
    write_hostile(tmp_path / "logs")
    view = View(opener(tmp_path / "logs"), "logs", None)
    snapshots = view.snapshots
    assert snapshots.refresh() is True
    assert snapshots.refresh() is False
    write_history(tmp_path / "logs", days=1, calls=10)
    with snapshots.present() as old:
        assert snapshots.refresh() is True
        assert len(old.rows("SELECT * FROM turns")) == 1, "a page that is being made keeps its log"
    with snapshots.present() as new:
        assert len(new.rows("SELECT * FROM turns")) == 11
    await view.close()


async def test_a_log_that_is_not_read_yet_or_cannot_be_is_said_on_the_page(tmp_path: Path) -> None:
    view = View(opener(tmp_path / "none"), "none", None)
    port = view.listen(0, "127.0.0.1")
    client = AsyncHTTPClient(force_instance=True)

    async def is_said() -> bool:
        answer = await client.fetch(f"http://127.0.0.1:{port}/", raise_error=False)
        assert answer.code == 503 and answer.headers["Refresh"] == "1"
        return b"there is no" in answer.body

    try:
        await wait_until(is_said, "the page says why")
    finally:
        client.close()
        await view.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_says_where_it_listens_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    write_hostile(tmp_path / "logs")
    (tmp_path / "tmp").mkdir()
    command = (sys.executable, "-m", "open_llm_proxy.server.commands.cli", "logs", "view")
    run = await asyncio.create_subprocess_exec(
        *command,
        str(tmp_path / "logs"),
        "--port=0",
        f"--cache={tmp_path / 'cache'}",
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
    )
    assert run.stdout is not None
    line = (await run.stdout.readline()).decode()
    address = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert address is not None
    client = AsyncHTTPClient(force_instance=True)

    async def is_there() -> bool:
        return (await client.fetch(address[0], raise_error=False)).code == 200

    await wait_until(is_there, "the page is there")
    run.send_signal(number)
    assert await run.wait() == 0
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--address", "0.0.0.0"], "--key-file"),
        (["--key-file", "none"], "cannot read the key"),
        (["--key-file", "empty"], "is empty"),
        (["nowhere"], "there is no nowhere"),
    ],
)
def test_a_mistake_in_the_command_is_a_sentence(
    tmp_path: Path, options: list[str], sentence: str
) -> None:
    write_hostile(tmp_path / "logs")
    (tmp_path / "empty").write_text("\n")
    source = [] if "nowhere" in options else [str(tmp_path / "logs")]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "open_llm_proxy.server.commands.cli",
            "logs",
            "view",
            *source,
            *options,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


async def test_days_of_the_past_are_compacted_in_the_background(tmp_path: Path) -> None:
    logs, cache = tmp_path / "logs", tmp_path / "cache"
    history = write_history(logs, calls=60)
    opened = opener(logs)
    own = OwnTables(lambda stack: opened(stack)[0], cache)
    view = View(opened, "logs", None, own)
    assert await asyncio.to_thread(view.snapshots.refresh)
    await asyncio.to_thread(own.bring_up_to_date, threading.Event())
    assert view.snapshots.doing == ""
    await view.close()
    assert len(list(cache.rglob("*.parquet"))) == 8

    again = View(opened, "logs", None, OwnTables(lambda stack: opened(stack)[0], cache))
    assert await asyncio.to_thread(again.snapshots.refresh)
    with again.snapshots.present() as snapshot:
        assert snapshot.rows("SELECT count(*) AS n FROM turns") == [{"n": history.calls}]
        assert snapshot.rows("SELECT count(*) AS n FROM loaded") == [{"n": 0}], "nothing is raw"
    await again.close()

    shutil.rmtree(logs / "2026-04-07")
    third = View(opened, "logs", None, OwnTables(lambda stack: opened(stack)[0], cache))
    assert await asyncio.to_thread(third.snapshots.refresh)
    with third.snapshots.present() as snapshot:
        days = snapshot.rows("SELECT DISTINCT day::VARCHAR AS day FROM entries")
        assert days == [{"day": "2026-04-08"}], "what is no longer in the log is not shown"
    await third.close()
