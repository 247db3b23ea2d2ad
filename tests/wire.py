"""HTTP/1.1 by hand, for servers that must be able to break it, and certificates for them."""

import asyncio
import socket
import ssl
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came off the socket: header names, order and doubles are kept."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first value of header `name`, compared without case."""
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)


async def read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | None:
    """The next request of the connection, None where it ends before a whole one came.

    Answers `Expect: 100-continue`, for which boto3 waits before it sends a body.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        headers = tuple((name, value.strip(" \t")) for name, _, value in pairs)
        request = Request(method, target, headers, b"")
        if (request.header("Expect") or "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return Request(method, target, headers, await _read_body(reader, request))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def _read_body(reader: asyncio.StreamReader, request: Request) -> bytes:
    if "chunked" not in (request.header("Transfer-Encoding") or "").lower():
        return await reader.readexactly(int(request.header("Content-Length") or 0))
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return body


def head(status: int, headers: Sequence[tuple[str, str]], reason: str = "Scripted") -> bytes:
    """A response's status line and headers, written exactly as given."""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def reset(writer: asyncio.StreamWriter) -> None:
    """Close the connection with a TCP reset: lingering for 0 s throws the FIN away."""
    raw: socket.socket | None = writer.get_extra_info("socket")
    if raw is not None and not writer.transport.is_closing():
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def free_port() -> int:
    """A loopback port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Certificates:
    """A certificate authority and a server certificate that it signed, as PEM files."""

    authority: Path
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        return context


def make_certificates(
    folder: Path, names: str = "IP:127.0.0.1,DNS:localhost", days: int = 2
) -> Certificates:
    """Make a new authority and a server certificate for `names` with the openssl command."""
    authority, authority_key = folder / "ca.pem", folder / "ca.key"
    certificate, key, request = folder / "server.pem", folder / "server.key", folder / "server.csr"
    extensions = folder / "server.ext"
    extensions.write_text(
        f"subjectAltName={names}\nbasicConstraints=CA:FALSE\n"
        "authorityKeyIdentifier=keyid\nextendedKeyUsage=serverAuth\n"
    )
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for command in (
        ("req", "-x509", *new_key, "-days", str(days), "-subj", "/CN=Test authority",
         "-addext", "keyUsage=critical,keyCertSign", "-keyout", authority_key, "-out", authority),
        ("req", "-new", *new_key, "-subj", "/CN=Test server", "-keyout", key, "-out", request),
        ("x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key,
         "-CAcreateserial", "-days", str(days), "-extfile", extensions, "-out", certificate),
    ):  # fmt: skip
        subprocess.run(("openssl", *command), check=True, capture_output=True)
    return Certificates(authority, certificate, key)
