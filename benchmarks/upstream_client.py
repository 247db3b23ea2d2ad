"""The pooled upstream client against Tornado's own clients, as ratios within one run.

    python benchmarks/upstream_client.py [--seconds 0.6] [--parallel 16]

A server process on loopback answers POSTs with a small JSON body or with an event stream of 200
chunks. Every client does every kind of work in turn, three times round, and the median counts; so
a busy machine moves all figures and hardly the ratios. Loopback has no round-trip time: what a new
connection costs on a real network, two or three round trips for https, comes on top of this.
"""

import argparse
import asyncio
import importlib.util
import json
import multiprocessing
import ssl
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from open_llm_proxy.server.upstream.client import PooledHTTPClient

ROUNDS = 3
QUESTION = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 4000}]})
ANSWER = json.dumps({"choices": [{"message": {"content": "y" * 1000}}]})
EVENT = b'data: {"choices": [{"delta": {"content": "token"}}]}\n\n'

Work = Callable[[AsyncHTTPClient], Awaitable[float]]


class Answer(RequestHandler):
    """A short answer in one piece."""

    def post(self) -> None:
        self.finish(ANSWER)


class Stream(RequestHandler):
    """200 events, each a chunk of its own."""

    async def post(self) -> None:
        for _ in range(200):
            self.write(EVENT)
            await self.flush()


def serve(certificate: Path, ports: Connection) -> None:
    """Run the server; tells its http and its https port."""

    async def main() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        chosen = []
        for options in (None, context):
            socket, port = bind_unused_port()
            HTTPServer(
                Application([("/", Answer), ("/stream", Stream)]), ssl_options=options
            ).add_socket(socket)
            chosen.append(port)
        ports.send(chosen)
        await asyncio.Event().wait()

    asyncio.run(main())


def make_certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that signs itself, in one file."""
    path = folder / "server.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=benchmark -addext subjectAltName=IP:127.0.0.1"
    )
    files = ("-keyout", str(path), "-out", str(folder / "certificate.pem"))
    subprocess.run((*command.split(), *files), check=True, capture_output=True)
    with path.open("a") as file:
        file.write((folder / "certificate.pem").read_text())
    return path


def clients(parallel: int) -> dict[str, Callable[[], AsyncHTTPClient]]:
    """A maker for each implementation that can be imported."""
    makers: dict[str, Callable[[], AsyncHTTPClient]] = {
        "pooled": lambda: PooledHTTPClient(force_instance=True),
        "simple_httpclient": lambda: SimpleAsyncHTTPClient(
            force_instance=True, max_clients=parallel
        ),
    }
    if importlib.util.find_spec("pycurl"):
        from tornado.curl_httpclient import CurlAsyncHTTPClient

        makers["curl_httpclient"] = lambda: CurlAsyncHTTPClient(
            force_instance=True, max_clients=parallel
        )
    return makers


def ignore(_: bytes) -> None:
    """Take a piece of a body."""


def requests_per_second(url: str, authority: Path, parallel: int, seconds: float) -> Work:
    """Work that keeps `parallel` requests under way and measures how many a second are done."""

    async def work(client: AsyncHTTPClient) -> float:
        done, end = 0, time.perf_counter() + seconds

        async def keep_asking() -> None:
            nonlocal done
            while time.perf_counter() < end:
                request = HTTPRequest(
                    url,
                    "POST",
                    {"Content-Type": "application/json"},
                    QUESTION,
                    decompress_response=False,
                    ca_certs=str(authority) if url.startswith("https") else None,
                    streaming_callback=ignore if url.endswith("stream") else None,
                )
                await client.fetch(request)
                done += 1

        await asyncio.gather(*(keep_asking() for _ in range(parallel)))
        return done / seconds

    return work


async def measure(authority: Path, http: int, https: int, parallel: int, seconds: float) -> None:
    """Run all work with all clients and print the table."""
    plain, secure = f"http://127.0.0.1:{http}/", f"https://127.0.0.1:{https}/"
    works = {
        f"http, {parallel} at a time, requests/s": (plain, parallel),
        f"https, {parallel} at a time, requests/s": (secure, parallel),
        "https, one after the other, ms": (secure, 1),
        "http, 200 chunks, streams/s": (plain + "stream", 4),
    }
    makers = clients(parallel)
    print(f"{'':40}" + "".join(f"{name:>20}" for name in makers) + f"{'ratio':>8}")
    for title, (url, at_a_time) in works.items():
        work = requests_per_second(url, authority, at_a_time, seconds)
        rates: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(ROUNDS):
            for name, make in makers.items():
                client = make()
                rates[name].append(await work(client))
                client.close()
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ratio = medians["pooled"] / medians["simple_httpclient"]
        shown = (1000 / rate if title.endswith("ms") else rate for rate in medians.values())
        print(f"{title:40}" + "".join(f"{value:>20.2f}" for value in shown) + f"{ratio:>7.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare HTTP clients on loopback.")
    parser.add_argument("--seconds", type=float, default=0.6, help="per client, work and round")
    parser.add_argument("--parallel", type=int, default=16, help="requests under way at a time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(Path(folder))
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(certificate, theirs), daemon=True)
        server.start()
        http, https = ours.recv()
        authority = certificate.with_name("certificate.pem")
        try:
            asyncio.run(measure(authority, http, https, arguments.parallel, arguments.seconds))
        finally:
            server.terminate()
            server.join()


if __name__ == "__main__":
    main()
