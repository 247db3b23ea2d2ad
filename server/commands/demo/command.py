"""``open-llm-proxy demo``: the whole system without any configuration.

It starts a built-in provider on loopback and the real server in front of it, prints a key, and
uploads the log to a local directory every few seconds. It also makes the first call, so that within
seconds there is an answer, an object to query, and lines to paste that do it. Each call is one
line; with ``--json`` stdout and stderr are those of a server.
"""

import argparse
import asyncio
import json
import logging
import os
import secrets
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from open_llm_proxy.queue.messages import counted
from open_llm_proxy.server.commands.console import ExitCode
from open_llm_proxy.server.commands.demo import paste
from open_llm_proxy.server.commands.demo.call_lines import CallLines
from open_llm_proxy.server.commands.demo.history import write_history
from open_llm_proxy.server.commands.demo.log_page import LogPage
from open_llm_proxy.server.commands.demo.provider import make_demo_provider
from open_llm_proxy.server.config import Config, parse_config
from open_llm_proxy.server.entries.stdout import StdoutLines
from open_llm_proxy.server.serve import PortUnavailable, serve
from open_llm_proxy.server.settings import Settings

WINDOW_SECONDS = 5
LOG_DIR = Path("logs")
MAX_HISTORY_DAYS = 366
MAX_CONNECTIONS = 1000
QUERY = (
    "SELECT model, outcome, latency_ms, total_tokens, content_preview "
    "FROM read_ndjson_auto('{folder}/*/*.jsonl') WHERE type = 'response'"
)
QUESTION = "Why does a log entry survive a crash here?"


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", epilog: str
) -> None:
    """Add ``demo`` to the program's commands; `epilog` lists the settings."""
    text = "run the proxy with a built-in provider; no configuration needed"
    parser = commands.add_parser(
        "demo",
        help=text,
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--history",
        metavar="DAYS",
        type=_days,
        help="write a made-up log of so many past days, such as 30d, to LOG_DIR (./logs), and end",
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="another N, another history; default 1"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the log's lines and messages as `serve` does"
    )
    parser.set_defaults(run=_demo)


def _days(text: str) -> int:
    number = text.removesuffix("d")
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= MAX_HISTORY_DAYS):
        raise argparse.ArgumentTypeError(
            f"must be a number of days from 1d to {MAX_HISTORY_DAYS}d, such as 30d"
        )
    return int(number)


def _demo(chosen: argparse.Namespace) -> ExitCode:
    # On this machine only, unless HOST says otherwise, as it does in the image.
    settings = Settings.from_environment({"HOST": "127.0.0.1", **os.environ})
    if chosen.history is not None:
        _write_history(settings.log_dir or LOG_DIR, chosen.history, chosen.seed)
    else:
        if not chosen.json:
            logging.getLogger("open_llm_proxy").setLevel(logging.WARNING)
        asyncio.run(demo(settings, StdoutLines if chosen.json else CallLines))
    return ExitCode.DONE


def _write_history(folder: Path, days: int, seed: int) -> None:
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    written = write_history(folder, yesterday, days, seed)
    _say(
        f"Wrote {counted(written.sessions, 'session')} with {counted(written.calls, 'call')}, "
        f"{written.first} to {written.last}, to {counted(written.objects, 'object')} in {folder}"
    )


async def demo(settings: Settings, lines: Callable[[], StdoutLines]) -> None:
    """Run until Ctrl-C, on PORT or, if that is in use, on a free port."""
    provider_key = f"demo-{secrets.token_hex(8)}"
    listening, provider_port = bind_unused_port()
    provider = HTTPServer(make_demo_provider(provider_key))
    provider.add_socket(listening)
    settings = replace(
        settings,
        proxy_key=settings.proxy_key or f"demo-{secrets.token_hex(8)}",
        log_bucket="",
        log_dir=settings.log_dir or LOG_DIR,
        flush_interval_seconds=WINDOW_SECONDS,
        shutdown_delay_seconds=0.0,
        max_connections=min(settings.max_connections, MAX_CONNECTIONS),
    )
    config = _config(provider_port)
    environment = {"DEMO_PROVIDER_KEY": provider_key}
    page = LogPage()
    tour = Tour(settings, page)
    try:
        await serve(settings, config, environment, tour.walk, lines)
    except PortUnavailable:
        await serve(replace(settings, port=0), config, environment, tour.walk, lines)
    finally:
        provider.stop()
        await page.close()


def _config(provider_port: int) -> Config:
    document = {
        "default_provider": "demo",
        "providers": {
            "demo": {
                "endpoint": f"http://127.0.0.1:{provider_port}/v1/chat/completions",
                "api_key_env": "DEMO_PROVIDER_KEY",
                "models": ["demo", "kimi", "qwen3", "glm-4.7"],
                "thinking_models": {"kimi": "thinking", "qwen3": "enable_thinking"},
            }
        },
    }
    return parse_config(json.dumps(document).encode())


class Tour:
    """A first call, what to paste to see more of it, and the log's pages."""

    def __init__(self, settings: Settings, page: LogPage) -> None:
        self._settings = settings
        self._page = page

    async def walk(self, port: int) -> None:
        host = f"http://127.0.0.1:{port}"
        url, key = f"{host}/v1/chat/completions", self._settings.proxy_key
        program = f"open-llm-proxy {version('open-llm-proxy')}"
        _say(f"{program} on {host}, a made-up provider behind it; Ctrl-C ends the demo")
        _say("Each call is a line here. A first one:")
        request_id = await self._ask(url)
        body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "Hello!"}]})
        _say("Make one yourself; it is any OpenAI endpoint, with streams and tools:")
        _say(f"  curl -s {url} -H 'Authorization: Bearer {key}' -d '{body}'")
        await self._object_with(request_id)
        folder = str(self._settings.log_dir)
        where = f"The log is in {folder}, each call within {WINDOW_SECONDS} s."
        if paste.has_duckdb():
            _say(f"{where} Read the first, or all:")
            _say(f"  {paste.program()} logs show {request_id} {shlex.quote(folder)}")
            _say(f"  {paste.duckdb(QUERY.format(folder=folder))}")
        else:
            _say(f"{where} To read it: pip install 'open-llm-proxy[archive]'")
        if (pages := await self._page.start(Path(folder))) is not None:
            _say(f"As web pages: {pages}")
        _say(f"A made-up month beside it: {paste.program()} demo --history 30d")

    async def _ask(self, url: str) -> str:
        """Make the first call; returns the id of its two log entries."""
        call = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}]}
        answer = await AsyncHTTPClient().fetch(
            url,
            method="POST",
            headers={"Authorization": f"Bearer {self._settings.proxy_key}"},
            body=json.dumps(call),
        )
        return answer.headers["X-Proxy-Request-Id"]

    async def _object_with(self, request_id: str) -> Path:
        """The object with the lines of the call, once it is there; other queues may be first."""
        folder = self._settings.log_dir or LOG_DIR
        seen = set(folder.glob("*/*.jsonl"))
        while True:
            for path in sorted(set(folder.glob("*/*.jsonl")) - seen):
                if f'"request_id":"{request_id}"' in path.read_text():
                    return path
                seen.add(path)
            await asyncio.sleep(0.2)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
