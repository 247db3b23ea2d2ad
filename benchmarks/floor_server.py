"""The floor: the least that a Tornado relay does. No key, no log, no time-outs, no checks.

    python benchmarks/floor_server.py PROVIDER_PORT        prints its port

A `RequestHandler` passes a request on over pooled asyncio streams and the answer back as it comes.
What the proxy costs above it is the price of all that it promises.
"""

import asyncio
import sys

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEAD = (
    "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "Content-Length: {}\r\n\r\n"
)
idle: list[Connection] = []


class Relay(RequestHandler):
    async def post(self) -> None:
        port = self.settings["provider_port"]
        reader, writer = (
            idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        )
        body = self.request.body
        writer.write(HEAD.format(self.request.path, len(body)).encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(
            line.lower().split(b": ", 1) for line in head[:-4].split(b"\r\n")[1:] if b": " in line
        )
        self.set_header("Content-Type", fields[b"content-type"])
        if b"content-length" in fields:
            self.write(await reader.readexactly(int(fields[b"content-length"])))
        else:
            while size := int(await reader.readline(), 16):
                self.write((await reader.readexactly(size + 2))[:-2])
                await self.flush()
            await reader.readexactly(2)
        idle.append((reader, writer))


async def serve(provider_port: int) -> None:
    application = Application(
        [(r"/v1/.*", Relay)], provider_port=provider_port, log_function=lambda _: None
    )
    sockets = bind_sockets(0, "127.0.0.1", backlog=4096)
    HTTPServer(application).add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
