"""Object stores for tests: a directory, moto as a server process, and the real Ceph RGW.

Each gives the environment that points the proxy at it (`env()`) and what it holds
(`objects()`), read past every faulty piece that a test put in between. moto is quick and does
not check MD5, signatures or clocks; where that matters only the RGW counts.
"""

import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import boto3
from botocore.config import Config

import wire

RGW_SCRIPT = Path(__file__).with_name("rgw.sh")


class StoreUnavailable(Exception):
    """This machine cannot run the store; the message is the reason to skip a test."""


class Store(Protocol):
    """What a test needs of a store."""

    def env(self) -> dict[str, str]: ...

    def objects(self) -> Iterator[tuple[str, bytes]]: ...


class DirectoryStore:
    """The directory sink: objects are the `*.jsonl` files under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def env(self) -> dict[str, str]:
        return {"LOG_DIR": str(self.folder)}

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """(key, bytes) of every object, in the order of the keys."""
        for path in sorted(self.folder.rglob("*.jsonl")):
            yield path.relative_to(self.folder).as_posix(), path.read_bytes()


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where an S3 server listens and how one signs in."""

    endpoint: str
    access_key: str
    secret_key: str
    authority: Path | None = None  # what signed the server's certificate, for https

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for a TCP proxy in front of it."""
        host, _, port = self.endpoint.partition("://")[2].partition(":")
        return host, int(port)


class S3Store:
    """One bucket, made here and removed with its objects by `close(remove=True)`."""

    def __init__(self, server: S3Server, bucket: str) -> None:
        self.server = server
        self.bucket = bucket
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            region_name="us-east-1",
            verify=str(server.authority) if server.authority else None,
            config=Config(
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
                retries={"max_attempts": 2},
                connect_timeout=5,
                read_timeout=20,
            ),
        )
        self.client.create_bucket(Bucket=bucket)

    def env(self, endpoint: str | None = None) -> dict[str, str]:
        """The proxy's settings for this bucket; `endpoint` leads through something else."""
        settings = {
            "LOG_BUCKET": self.bucket,
            "AWS_ACCESS_KEY_ID": self.server.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": endpoint or self.server.endpoint,
        }
        if self.server.authority:
            settings["AWS_CA_BUNDLE"] = str(self.server.authority)
        return settings

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """(key, bytes) of every object, in the order of the keys."""
        for key in self._keys():
            yield key, self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def keep_versions(self) -> None:
        """Turn on versioning, under which a PUT never replaces anything."""
        self.client.put_bucket_versioning(
            Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"}
        )

    def versions(self) -> dict[str, int]:
        """How many versions each key has."""
        counts: dict[str, int] = {}
        for page in self._pages("list_object_versions"):
            for version in page.get("Versions", ()):
                counts[version["Key"]] = counts.get(version["Key"], 0) + 1
        return counts

    def close(self, remove: bool = False) -> None:
        """Close the client; with `remove` the bucket and everything in it goes first."""
        if remove:
            for page in list(self._pages("list_object_versions")):
                for version in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                    self.client.delete_object(
                        Bucket=self.bucket, Key=version["Key"], VersionId=version["VersionId"]
                    )
            self.client.delete_bucket(Bucket=self.bucket)
        self.client.close()

    def _keys(self) -> Iterator[str]:
        for page in self._pages("list_objects_v2"):
            yield from (entry["Key"] for entry in page.get("Contents", ()))

    def _pages(self, operation: str) -> Iterator[dict[str, Any]]:
        yield from self.client.get_paginator(operation).paginate(Bucket=self.bucket)


class MotoProcess:
    """moto's S3 as a server process; takes any credentials."""

    def __init__(self, log: Path) -> None:
        port = wire.free_port()
        self.server = S3Server(f"http://127.0.0.1:{port}", "moto-key", "moto-secret")
        command = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
        with log.open("wb") as output:
            # Whatever the host is called: else moto takes a part of its name for the bucket.
            environment = os.environ | {"S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"}
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            _wait_for_http(self.server.endpoint, 30.0, self._process)
        except StoreUnavailable:
            self.close()
            raise

    def close(self) -> None:
        """End the process and wait for its end."""
        self._process.kill()
        self._process.wait()


class Rgw:
    """The real RGW: the one that RGW_ENDPOINT names, else one that `tests/rgw.sh` runs.

    The variables that describe it are those that the script prints. `close` stops it if it was
    started here. Raises `StoreUnavailable` with the script's last words where it does not start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = False
        # Ports of its own: two test runs on one machine must not stop each other's gateway.
        self._environment = dict(os.environ)
        if "RGW_HTTP_PORT" not in os.environ:
            names = ("RGW_HTTP_PORT", "RGW_HTTPS_PORT", "RGW_MON_PORT")
            self._environment |= {name: str(wire.free_port()) for name in names}
        self._variables = dict(os.environ) if "RGW_ENDPOINT" in os.environ else self._start()
        self.server = self._server("RGW_ENDPOINT", None)
        if not _answers(self.server.endpoint):
            raise StoreUnavailable(f"nothing answers at {self.server.endpoint}")

    @property
    def process_id(self) -> int | None:
        """The gateway's process, None for one that only RGW_ENDPOINT names."""
        path = self._variables.get("RGW_PID_FILE")
        return int(Path(path).read_text()) if path else None

    def tls_server(self) -> S3Server:
        """The same RGW over https, where its own self-signed certificate is trusted."""
        if "RGW_ENDPOINT_TLS" not in self._variables:
            raise StoreUnavailable("RGW_ENDPOINT is set and RGW_ENDPOINT_TLS is not")
        if authority := self._variables.get("RGW_CA_FILE"):
            return self._server("RGW_ENDPOINT_TLS", Path(authority))
        path = self._folder / "rgw.pem"
        server = self._server("RGW_ENDPOINT_TLS", path)
        try:
            path.write_text(ssl.get_server_certificate(server.address, timeout=5))
        except OSError as error:
            raise StoreUnavailable(f"no TLS at {server.endpoint}: {error}") from error
        return server

    def close(self) -> None:
        """Stop the RGW if it was started here."""
        if self._started:
            command = ("bash", RGW_SCRIPT, "stop")
            subprocess.run(command, env=self._environment, capture_output=True, timeout=60)

    def _server(self, variable: str, authority: Path | None) -> S3Server:
        key = self._variables.get("AWS_ACCESS_KEY_ID", "AK")
        secret = self._variables.get("AWS_SECRET_ACCESS_KEY", "SK")
        return S3Server(self._variables[variable], key, secret, authority)

    def _start(self) -> dict[str, str]:
        command = ("bash", RGW_SCRIPT, "start")
        port = self._environment["RGW_HTTP_PORT"]
        self._started = not _answers(f"http://127.0.0.1:{port}")
        try:
            done = subprocess.run(
                command, env=self._environment, capture_output=True, text=True, timeout=240
            )
        except subprocess.TimeoutExpired:
            self.close()
            raise StoreUnavailable("tests/rgw.sh start took more than 240 s") from None
        if done.returncode != 0:
            raise StoreUnavailable(done.stderr.strip().rpartition("\n")[2])
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def _answers(endpoint: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(endpoint, timeout=5):
            return True
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return True
    except OSError:
        return False


def _wait_for_http(endpoint: str, timeout_seconds: float, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not _answers(endpoint):
        if process.poll() is not None or time.monotonic() > deadline:
            raise StoreUnavailable(f"{process.args!r} does not answer at {endpoint}")
        time.sleep(0.05)
