"""Mistakes of an operator on a real cluster: each is told where Kubernetes shows it, and soon.

The rollout fails within 90 seconds, `kubectl describe pod` says why, and the pods before go on.
"""

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx
import pytest

from cluster import DEPLOYMENT, Cluster, CommandFailed, record
from cluster_trial import Trial
from waiting import wait_until

TOLD_WITHIN_SECONDS = 90
PORT = '- name: SHUTDOWN_DELAY_SECONDS\n              value: "5"'
NewTrial = Callable[..., Awaitable[Trial]]


@dataclass(frozen=True)
class Mistake:
    """What is wrong, how it comes about, and what must be told."""

    name: str
    make: Callable[[Cluster], Awaitable[None]]
    told: str


async def config_typo(cluster: Cluster) -> None:
    await cluster.set_config(json.dumps(cluster.config).replace('"endpoint"', '"endpont"'))


async def config_no_json(cluster: Cluster) -> None:
    await cluster.set_config(json.dumps(cluster.config)[:-1])


async def no_provider_key(cluster: Cluster) -> None:
    keys = cluster.keys()
    await cluster.secret("open-llm-proxy-secrets", {"proxy-key": keys["proxy-key"]})


async def no_secret(cluster: Cluster) -> None:
    await cluster.kubectl("delete", "secret", "open-llm-proxy-secrets")


async def bad_number(cluster: Cluster) -> None:
    cluster.edit("deployment.yaml", PORT, PORT.replace('"5"', '"5s"'))


async def bad_bucket(cluster: Cluster) -> None:
    cluster.edit("deployment.yaml", "logs-of-the-tests", "logs of the tests")


async def bad_endpoint(cluster: Cluster) -> None:
    cluster.edit("deployment.yaml", '"http://rook-ceph', '"rook-ceph')


async def half_a_pair(cluster: Cluster) -> None:
    await cluster.secret("aws", {"AWS_ACCESS_KEY_ID": "moto-key"})


async def queue_elsewhere(cluster: Cluster) -> None:
    text = "- name: LOG_QUEUE_DIR\n              value: "
    cluster.edit("deployment.yaml", f"{text}/var/lib/open-llm-proxy", f"{text}/var/lib/proxy")


async def no_image(cluster: Cluster) -> None:
    cluster.edit("deployment.yaml", "open-llm-proxy:main", "open-llm-proxy:no-such-tag")


MISTAKES = [
    Mistake("typo in config.json", config_typo, "endpont"),
    Mistake("config.json is no JSON", config_no_json, "config.json"),
    Mistake("no provider key in the secret", no_provider_key, "find key nrp-api-key"),
    Mistake("no secret", no_secret, 'secret "open-llm-proxy-secrets" not found'),
    Mistake("SHUTDOWN_DELAY_SECONDS=5s", bad_number, "SHUTDOWN_DELAY_SECONDS=5s: must be"),
    Mistake("impossible bucket", bad_bucket, "LOG_BUCKET=logs of the tests"),
    Mistake("endpoint without http://", bad_endpoint, "AWS_ENDPOINT_URL_S3"),
    Mistake("half a key pair", half_a_pair, "AWS_SECRET_ACCESS_KEY"),
    Mistake("queue outside the volume", queue_elsewhere, "LOG_QUEUE_DIR"),
    Mistake("no such image", no_image, "no-such-tag"),
]


async def test_each_mistake_is_told_and_the_pods_from_before_go_on(new_trial: NewTrial) -> None:
    trial = await new_trial(DEPLOYMENT, with_store=False)
    cluster = trial.cluster
    await cluster.apply()
    await cluster.rolled_out()
    good = {path: path.read_text() for path in (cluster.folder / "deployment.yaml",)}
    untold = []
    for mistake in MISTAKES:
        await mistake.make(cluster)
        await cluster.kubectl("apply", "-f", "deployment.yaml")
        await cluster.kubectl("rollout", "restart", cluster.layout.workload)
        begun = time.monotonic()
        with pytest.raises(CommandFailed):
            await cluster.rolled_out(TOLD_WITHIN_SECONDS + 30)
        seconds = time.monotonic() - begun
        text = await cluster.kubectl("describe", "pods")
        line = next((line for line in reasons(text) if mistake.told in line), "")
        record("mistake", mistake=mistake.name, seconds=round(seconds, 1), told=line)
        if not line or seconds > TOLD_WITHIN_SECONDS:
            untold.append((mistake.name, seconds, text[-6000:]))
        assert await health(cluster) == 200, mistake.name
        for path, before in good.items():
            path.write_text(before)
        await cluster.secret("open-llm-proxy-secrets", cluster.keys())
        pair = {"AWS_ACCESS_KEY_ID": "moto-key", "AWS_SECRET_ACCESS_KEY": "moto-secret"}
        await cluster.secret("aws", pair)
        await cluster.set_config(json.dumps(cluster.config))
        await cluster.kubectl("rollout", "undo", cluster.layout.workload)
        await cluster.kubectl("apply", "-f", "deployment.yaml")
        await cluster.rolled_out()
    assert not untold, untold


def reasons(description: str) -> list[str]:
    """What `kubectl describe` gives as reasons: ends of containers, and events of warning."""
    lines = (" ".join(line.split()) for line in description.splitlines())
    return [line for line in lines if line.startswith(("Message:", "Warning "))]


async def health(cluster: Cluster) -> int:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        return (await client.get(f"{await cluster.url()}/health")).status_code


async def test_a_mistake_in_config_json_is_a_rollout_that_fails(new_trial: NewTrial) -> None:
    """With `apply -k` the ConfigMap has another name for another content, and so rolls out."""
    trial = await new_trial(DEPLOYMENT, with_store=False)
    cluster = trial.cluster
    await cluster.kubectl("apply", "-k", ".")
    await cluster.rolled_out()
    path = cluster.folder / "config" / "config.json"
    path.write_text(path.read_text().replace('"endpoint"', '"endpont"'))
    await cluster.kubectl("apply", "-k", ".")
    with pytest.raises(CommandFailed):
        await cluster.rolled_out(TOLD_WITHIN_SECONDS)

    async def told() -> bool:
        text = await cluster.kubectl("describe", "pods")
        return any("endpont" in line for line in reasons(text))

    await wait_until(told, "describe says what is wrong", 5)
    assert await health(cluster) == 200
