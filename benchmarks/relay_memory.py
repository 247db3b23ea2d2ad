"""Memory of the proxy while one client takes a long stream slowly.

    python benchmarks/relay_memory.py [MEGABYTES] [MEGABYTES_PER_SECOND] [SLOW_SECONDS]

By default 300 MB, read at 1 MB/s for 60 s and then as fast as it comes. A provider sends as fast
as the proxy takes it, so that memory would grow by what the client does not take if the proxy
read ahead. Idle and peak are resident sizes; the exit code is 1 if they differ by over 40 MB.
"""

import socket
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from relay_streams import check_log, memory_bytes
from relay_throughput import KEY, Proxy, provider, proxy
from streams import request

LIMIT_BYTES = 40_000_000
PIECE_BYTES = 65_536


def take(server: Proxy, megabytes: int, rate: float, slow_seconds: float) -> int:
    """Read one stream, at first at `rate` MB/s; returns its bytes, chunk framing included."""
    parts = urlsplit(server.url)
    started = time.monotonic()
    taken = 0
    end = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as client:
        client.sendall(request(parts.netloc, KEY, {"megabytes": megabytes}))
        head = client.recv(PIECE_BYTES, socket.MSG_PEEK)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(head.decode(errors="replace"))
        while not end.endswith(b"0\r\n\r\n"):
            data = client.recv(PIECE_BYTES)
            if not data:
                raise SystemExit(f"the stream broke off after {taken} bytes")
            taken += len(data)
            end = (end + data)[-5:]
            ahead = taken / (rate * 1e6) - (time.monotonic() - started)
            if ahead > 0 and time.monotonic() - started < slow_seconds:
                time.sleep(ahead)
    return taken


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    rate = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    slow_seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 60.0
    with tempfile.TemporaryDirectory() as name, provider("streams.py") as provider_port:
        folder = Path(name)
        with proxy(folder, provider_port, True) as server:
            take(server, 0, 1.0, 0.0)
            idle = memory_bytes(server, "VmRSS")
            started, cpu = time.monotonic(), server.cpu_seconds()
            taken = take(server, megabytes, rate, slow_seconds)
            seconds, cpu = time.monotonic() - started, server.cpu_seconds() - cpu
            peak = memory_bytes(server, "VmHWM")
        print(f"{taken / 1e6:.0f} MB in {seconds:.0f} s, server CPU {cpu:.1f} s")
        print(f"idle {idle / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB: +{(peak - idle) / 1e6:.1f} MB")
        check_log(folder / "objects")
    if peak - idle > LIMIT_BYTES:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
