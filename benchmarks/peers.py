"""Calls per second and a call's delay beside LiteLLM and Portkey, which keep no durable log.

    python benchmarks/peers.py [--rounds N] [--seconds N] [--connections 1,32] [--json FILE]

`make bench-peers` installs both below build/peers first, by pip and npm. Each runs as one process
on one core, without a database, with its log off; the proxy with its durable queue. All take the
same calls in turn, and the floor of relay_throughput.py is the control.
"""

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from relay_throughput import (
    DURABLE,
    FLOOR,
    Proxy,
    floor,
    free_port,
    measure,
    measured_rounds,
    pinned,
    provider,
    proxy,
    show,
    summary,
)

PEERS = Path(__file__).parent.parent / "build" / "peers"
PORTKEY = PEERS / "node_modules" / "@portkey-ai" / "gateway"
START_SECONDS = 180.0
LITELLM_CONFIG = """\
model_list:
  - model_name: kimi
    litellm_params:
      model: openai/kimi
      api_base: http://127.0.0.1:{port}/v1
      api_key: benchmark-provider-key
"""


@contextlib.contextmanager
def server(command: Sequence[str], port: int, folder: Path, headers: str = "{}") -> Iterator[Proxy]:
    """A peer, once it answers whatever it may be."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PORT": str(port)}
    environment |= {
        "TRUSTED_CUSTOM_HOSTS": "localhost,127.0.0.1",
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [*pinned(0), *command], env=environment, cwd=folder, stdout=output, stderr=output
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit((folder / "output.txt").read_text()[-2000:]) from None
                time.sleep(0.5)
        yield Proxy(url, process.pid, headers)
    finally:
        process.kill()
        process.wait()


def litellm(folder: Path, provider_port: int) -> contextlib.AbstractContextManager[Proxy]:
    folder.mkdir()
    port = free_port()
    config = folder / "config.yaml"
    config.write_text(LITELLM_CONFIG.format(port=provider_port))
    command = [str(PEERS / "venv" / "bin" / "litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    return server(command, port, folder)


def portkey(folder: Path, provider_port: int) -> contextlib.AbstractContextManager[Proxy]:
    folder.mkdir()
    port = free_port()
    command = ["node", str(PORTKEY / "build" / "start-server.js"), f"--port={port}", "--headless"]
    headers = {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{provider_port}/v1",
    }
    return server(command, port, folder, json.dumps(headers))


def versions() -> dict[str, str]:
    [packages] = (PEERS / "venv" / "lib").glob("python3*/site-packages")
    found = next(iter(metadata.distributions(name="litellm", path=[str(packages)])))
    package: dict[str, Any] = json.loads((PORTKEY / "package.json").read_text())
    return {"LiteLLM": found.version, "Portkey": package["version"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", default="1,32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = {"versions": versions(), "connections": {}}
    print(record["versions"])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(provider())
        servers = {
            FLOOR: stack.enter_context(floor(port)),
            DURABLE: stack.enter_context(proxy(folder / "durable", port, queue=True)),
            "Portkey": stack.enter_context(portkey(folder / "portkey", port)),
            "LiteLLM": stack.enter_context(litellm(folder / "litellm", port)),
        }
        for each in servers.values():
            measure(each, 8, 2.0)
        for connections in map(int, options.connections.split(",")):
            found = measured_rounds(servers, connections, options.rounds, options.seconds)
            record["connections"][connections] = table = summary(found, FLOOR)
            show(connections, table)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
