"""A real cluster, and a copy of k8s/ as a user edits it: LOG_BUCKET and the host, nothing else.

    KUBECONFIG            the cluster; it needs a StorageClass rook-ceph-block, and no namespace
                          `rook`, which is made and removed here
    CLUSTER_LOAD_IMAGE    a command that brings the checkout's image to the nodes under the name
                          that {image} stands for, or `true` where it is there already. The pull
                          policy is then IfNotPresent: Always would ask a registry
    CLUSTER_HOST          the address of this machine for pods; else the one that leads to the API
    CLUSTER_URL           where the Service answers this machine; else http://<its ClusterIP>
    CLUSTER_KILL          a command that kills all processes of the pod with uid {uid} at once by
                          SIGKILL. Without it pods are deleted by force, which gives them 2 s
    CLUSTER_RESTARTS      how often each layout is restarted (20)
    CLUSTER_RECORD        a file for what was counted, a line of JSON for each test

The provider and the store run on this machine. The store has the name inside the cluster that the
manifests give it, through a Service without pods.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import socket
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from proxy_process import PROVIDER_KEY, PROXY_KEY, one_provider
from waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "open-llm-proxy"
STORE_NAMESPACE, STORE_NAME = "rook", "rook-ceph-rgw-nautiluss3"
BUCKET = "logs-of-the-tests"


class CommandFailed(AssertionError):
    """A command ended with another status than 0; the message is its output."""


async def run(*command: str, cwd: Path = ROOT, stdin: str = "", seconds: float = 400.0) -> str:
    """The output of a command; raises `CommandFailed`."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(stdin.encode()), seconds)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise CommandFailed(f"{shlex.join(command)}: {output.decode()}")
    return output.decode()


async def load_image(name: str) -> bool:
    """Run CLUSTER_LOAD_IMAGE; returns whether there is such a command."""
    command = os.environ.get("CLUSTER_LOAD_IMAGE", "")
    if command:
        await run("sh", "-c", command.replace("{image}", shlex.quote(name)), seconds=1800)
    return bool(command)


def own_address() -> str:
    """This machine's address for pods."""
    if "CLUSTER_HOST" in os.environ:
        return os.environ["CLUSTER_HOST"]
    settings = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    server = urllib.parse.urlsplit(settings["clusters"][0]["cluster"]["server"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server.hostname, server.port or 443))
        address: str = probe.getsockname()[0]
        return address


@dataclass(frozen=True)
class Layout:
    """One of the two ways to run the proxy, and the commands that apply it."""

    name: str
    workload: str
    commands: Sequence[str]
    file: str
    claim: str


DEPLOYMENT = Layout(
    "Deployment",
    f"deployment/{NAME}",
    ("apply -f service.yaml", "apply -f ingress.yaml", "apply -f deployment.yaml"),
    "deployment.yaml",
    "open-llm-proxy-queue",
)
STATEFUL_SET = Layout(
    "StatefulSet",
    f"statefulset/{NAME}",
    ("apply -f service.yaml", "apply -f ingress.yaml", "apply -k ha"),
    "ha/statefulset.yaml",
    "log-queue-open-llm-proxy-1",
)


@dataclass
class Cluster:
    """A namespace of the cluster and `folder`, the edited copy of k8s/."""

    namespace: str
    folder: Path
    provider_url: str
    layout: Layout
    never_pulls: bool
    config: dict[str, Any] = field(default_factory=dict)

    async def kubectl(self, *arguments: str, stdin: str = "", seconds: float = 400.0) -> str:
        command = ("kubectl", "-n", self.namespace, *arguments)
        return await run(*command, cwd=self.folder, stdin=stdin, seconds=seconds)

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.kubectl(*arguments, "-o", "json"))

    async def prepare(self) -> None:
        """Make the namespace, the secrets, the configuration and the edits."""
        shutil.copytree(ROOT / "k8s", self.folder)
        self.edit("deployment.yaml", "logs-<your-namespace>", BUCKET)
        self.edit("ha/statefulset.yaml", "logs-<your-namespace>", BUCKET)
        self.edit("replay/job.yaml", "logs-<your-namespace>", BUCKET)
        host = f"{self.namespace}.example.org"
        self.edit("ingress.yaml", "open-llm-proxy-example.nrp-nautilus.io", host)
        if self.never_pulls:
            for name in ("deployment.yaml", "ha/statefulset.yaml", "replay/job.yaml"):
                self.edit(name, "imagePullPolicy: Always", "imagePullPolicy: IfNotPresent")
        if "policy/v1\n" not in await run("kubectl", "api-versions"):
            self.edit("ha/pdb.yaml", "policy/v1", "policy/v1beta1")
        make_renderable(self.folder)
        await run("kubectl", "create", "namespace", self.namespace)
        await self.secret("open-llm-proxy-secrets", self.keys())
        pair = {"AWS_ACCESS_KEY_ID": "moto-key", "AWS_SECRET_ACCESS_KEY": "moto-secret"}
        await self.secret("aws", pair)
        self.config = one_provider(self.provider_url)
        await self.set_config(json.dumps(self.config))

    def keys(self) -> dict[str, str]:
        return {"nrp-api-key": PROVIDER_KEY, "proxy-key": PROXY_KEY}

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text of a file in `folder`, which must be there."""
        path = self.folder / name
        text = path.read_text()
        assert old in text, f"{old} is not in {name}"
        path.write_text(text.replace(old, new))

    async def secret(self, name: str, values: Mapping[str, str]) -> None:
        await self.kubectl("delete", "secret", name, "--ignore-not-found")
        pairs = (f"--from-literal={key}={value}" for key, value in values.items())
        await self.kubectl("create", "secret", "generic", name, *pairs)

    async def set_config(self, text: str) -> None:
        """Make `text` the configuration, of the next pods and of the next `apply -k`."""
        (self.folder / "config" / "config.json").write_text(text)
        name = "open-llm-proxy-config"
        await self.kubectl("delete", "configmap", name, "--ignore-not-found")
        await self.kubectl("create", "configmap", name, "--from-file=config/config.json")

    async def apply(self) -> None:
        """The commands of the README, word for word."""
        for command in self.layout.commands:
            await self.kubectl(*shlex.split(command))

    async def rolled_out(self, timeout_seconds: int = 300) -> str:
        """`rollout status`, which fails where the rollout does or takes too long."""
        return await self.kubectl(
            "rollout", "status", self.layout.workload, f"--timeout={timeout_seconds}s"
        )

    async def restart(self) -> None:
        """`rollout restart`, and its end: no pod of the former kind is left."""
        before = await self.pods()
        await self.kubectl("rollout", "restart", self.layout.workload)
        await self.rolled_out()

        async def gone() -> bool:
            return not set(before) & set(await self.pods())

        await wait_until(gone, "the former pods have left", 200, poll_seconds=0.5)

    async def lose(self, uid: str, name: str) -> None:
        """Have a pod gone as if its node were: without a word, and for good."""
        if command := os.environ.get("CLUSTER_KILL"):
            await run("sh", "-ec", command.replace("{uid}", shlex.quote(uid)))
        await self.kubectl("delete", "pod", name, "--force", "--grace-period=0")

    async def pods(self) -> dict[str, str]:
        """The name of each pod that there is, by its uid."""
        items = (await self.json("get", "pods", "-l", f"app={NAME}"))["items"]
        return {item["metadata"]["uid"]: item["metadata"]["name"] for item in items}

    async def url(self) -> str:
        """Where the Service answers this machine."""
        if "CLUSTER_URL" in os.environ:
            return os.environ["CLUSTER_URL"]
        service = await self.json("get", "service", NAME)
        return f"http://{service['spec']['clusterIP']}"

    async def upload_now(self) -> None:
        """SIGUSR1 to process 1 of every pod."""
        for name in (await self.pods()).values():
            script = "import os; os.kill(1, 10)"
            await self.kubectl("exec", name, "--", "python", "-c", script)

    async def remove(self) -> None:
        await run(
            *("kubectl", "delete", "namespace", self.namespace, "--wait=false"),
            "--ignore-not-found",
        )


def make_renderable(folder: Path) -> None:
    """Put folders among `resources` under `bases`, where kubectl before 1.21 wants them."""
    for path in folder.rglob("kustomization.yaml"):
        document = yaml.safe_load(path.read_text())
        resources = document.get("resources", [])
        folders = [name for name in resources if (path.parent / name).is_dir()]
        if folders:
            document["resources"] = [name for name in resources if name not in folders]
            document["bases"] = folders
            path.write_text(yaml.safe_dump(document))


def image_name() -> str:
    """The image of the manifests."""
    match = re.search(r"image: (\S+)", (ROOT / "k8s" / "deployment.yaml").read_text())
    assert match is not None
    return match[1]


async def make_store_name(address: str, port: int) -> None:
    """The store's name in the manifests leads to `port` of this machine; its namespace is there."""
    metadata = {"name": STORE_NAME, "namespace": STORE_NAMESPACE}
    ports = [{"name": "http", "port": port}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": port}]},
    }
    endpoints = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": metadata,
        "subsets": [{"addresses": [{"ip": address}], "ports": ports}],
    }
    both = {"apiVersion": "v1", "kind": "List", "items": [service, endpoints]}
    await run("kubectl", "apply", "-f", "-", stdin=json.dumps(both))


def record(test: str, **figures: object) -> None:
    """Keep what a test counted, if CLUSTER_RECORD names a file for it."""
    line = json.dumps({"test": test, **figures})
    print(line)
    if "CLUSTER_RECORD" in os.environ:
        with Path(os.environ["CLUSTER_RECORD"]).open("a") as file:
            file.write(line + "\n")
