"""Debian's HAProxy in front of two servers, as an ingress and as a Service in front of pods.

It balances twice: on `http_url` request by request, as an ingress controller does, and on `tcp_url`
connection by connection, as kube-proxy does for clients inside a cluster, whose connections stay
with one server. It never tries a call again: whatever a server refuses is seen by a client.
"""

import asyncio
import csv
import io
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import wire
from waiting import wait_until

CHECK_MILLISECONDS = 200
CONFIGURATION = """\
global
    stats socket {socket} level operator
    maxconn 2000
defaults
    retries 0
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    default-server inter {check}ms fall 2 rise 1
frontend ingress
    mode http
    bind 127.0.0.1:{http_port}
    default_backend pods
backend pods
    mode http
    option httpchk GET /ready
    http-check expect status 200
{servers}
listen service
    mode tcp
    bind 127.0.0.1:{tcp_port}
{tracking}
"""


class HAProxy:
    """`haproxy` under `folder`, balancing over `ports`, each under a name."""

    def __init__(self, folder: Path, ports: Mapping[str, int]) -> None:
        http_port, tcp_port = wire.free_port(), wire.free_port()
        self.http_url = f"http://127.0.0.1:{http_port}"
        self.tcp_url = f"http://127.0.0.1:{tcp_port}"
        self._socket = folder / "haproxy.sock"
        self._log = folder / "haproxy.log"
        path = folder / "haproxy.cfg"
        names = ports.items()
        text = CONFIGURATION.format(
            socket=self._socket,
            check=CHECK_MILLISECONDS,
            http_port=http_port,
            tcp_port=tcp_port,
            servers="\n".join(f"    server {n} 127.0.0.1:{p} check" for n, p in names),
            tracking="\n".join(f"    server {n} 127.0.0.1:{p} track pods/{n}" for n, p in names),
        )
        path.write_text(text)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                (str(haproxy_program()), "-db", "-f", str(path)), stdout=log, stderr=log
            )

    async def sees(self, name: str, state: str, timeout_seconds: float = 20.0) -> None:
        """Return once the server `name` is `UP` or `DOWN` for HAProxy."""

        async def seen() -> bool:
            return state in await self._states(name)

        await wait_until(seen, f"HAProxy sees {name} {state}", timeout_seconds)

    def close(self) -> None:
        """End HAProxy and wait for its end."""
        self._process.kill()
        self._process.wait()

    async def _states(self, name: str) -> list[str]:
        assert self._process.poll() is None, self._log.read_text()
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            return []  # it starts
        writer.write(b"show stat\n")
        text = (await reader.read()).decode().removeprefix("# ")
        writer.close()
        await writer.wait_closed()
        rows = csv.DictReader(io.StringIO(text))
        return [row["status"] for row in rows if (row["pxname"], row["svname"]) == ("pods", name)]


def haproxy_program() -> Path | None:
    """Where `haproxy` is; Debian keeps it where only root looks."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None
