"""Rollouts on a real cluster under load: no call is refused, broken off or lost."""

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from cluster import DEPLOYMENT, STATEFUL_SET, Layout, record
from cluster_trial import Trial
from proxy_process import PROXY_KEY
from rollout_load import Clients, RolloutLoad

RESTARTS = int(os.environ.get("CLUSTER_RESTARTS", "20"))
# Idle for longer than the five seconds that a pod takes calls after it was told to leave.
CLIENTS = Clients(busy=4, fresh=6, slow=4, idle=8, idle_seconds=(0.5, 9.0))

NewTrial = Callable[[Layout], Awaitable[Trial]]
each_layout = pytest.mark.parametrize("layout", [DEPLOYMENT, STATEFUL_SET], ids=lambda x: x.name)


async def deployed(trial: Trial, clients: Clients = CLIENTS) -> RolloutLoad:
    """The README's commands; returns clients of the Service, which do not call yet."""
    await trial.cluster.apply()
    await trial.cluster.rolled_out()
    return RolloutLoad([await trial.cluster.url()], PROXY_KEY, clients)


@each_layout
async def test_no_restart_refuses_breaks_or_loses_a_call(
    new_trial: NewTrial, layout: Layout
) -> None:
    trial = await new_trial(layout)
    load = await deployed(trial)
    seconds = []
    async with load:
        for number in range(RESTARTS):
            await load.answered_more(50)
            if number % 2:
                await trial.passage.refuse()
            begun = time.monotonic()
            await trial.cluster.restart()
            seconds.append(round(time.monotonic() - begun, 1))
            if number % 2:
                await trial.passage.accept()
        await load.answered_more(50)
    calls = {"sent": len(load.record.sent), "answered": len(load.record.answered)}
    bad = {"refused": len(load.record.refused), "broken": len(load.record.failed)}
    record("restarts", layout=layout.name, restarts=RESTARTS, seconds=seconds, **calls, **bad)
    assert not load.trouble(), load.trouble()[:20]
    verdict = await trial.all_uploaded(load)
    record("uploaded", layout=layout.name, verdict=str(verdict).splitlines()[0])


@pytest.mark.parametrize("fault", ["Recreate", "no delay"])
async def test_the_same_test_notices(new_trial: NewTrial, fault: str) -> None:
    trial = await new_trial(DEPLOYMENT)
    cluster = trial.cluster
    if fault == "Recreate":
        surge = "\n    rollingUpdate:\n      maxSurge: 1\n      maxUnavailable: 0"
        cluster.edit("deployment.yaml", f"RollingUpdate{surge}", "Recreate")
    else:
        delay = '- name: SHUTDOWN_DELAY_SECONDS\n              value: "'
        cluster.edit("deployment.yaml", f'{delay}5"', f'{delay}0"')
    # Without a delay only what connects in the moment before the Service knows is refused: in some
    # restarts nothing is, where the kubelet is slower to tell the pod.
    load = await deployed(trial, replace(CLIENTS, fresh=24))
    async with load:
        await load.answered_more(50)
        for _ in range(10):
            await cluster.restart()
            if load.trouble():
                break
    bad = {"refused": len(load.record.refused), "broken": len(load.record.failed)}
    record("control", fault=fault, sent=len(load.record.sent), **bad)
    assert load.trouble()


@each_layout
async def test_a_node_that_dies_loses_no_entry(new_trial: NewTrial, layout: Layout) -> None:
    """Every process of a pod is killed at once, and another pod finishes its queue."""
    trial = await new_trial(layout)
    load = await deployed(trial)
    async with load:
        for _ in range(3):
            await load.answered_more(50)
            await trial.cluster.lose(*next(iter((await trial.cluster.pods()).items())))
            await load.answered_more(50, 120)
            await trial.cluster.rolled_out()
    verdict = await trial.all_uploaded(load)
    counts = {"sent": len(load.record.sent), "broken": len(load.record.failed)}
    record("killed", layout=layout.name, kills=3, verdict=str(verdict).splitlines()[0], **counts)


async def test_a_claim_that_moves_to_another_pod_brings_its_entries(new_trial: NewTrial) -> None:
    trial = await new_trial(DEPLOYMENT)
    load = await deployed(trial)
    await trial.passage.refuse()
    async with load:
        await load.answered_more(100)
    await trial.cluster.kubectl("delete", "deployment/open-llm-proxy", "--timeout=200s")
    await trial.cluster.kubectl(
        "wait", "--for=delete", "pod", "-l", "app=open-llm-proxy", "--timeout=200s"
    )
    assert trial.verdict(load).count("lost")
    await trial.passage.accept()
    trial.cluster.edit("deployment.yaml", "name: open-llm-proxy\n", "name: another\n")
    await trial.cluster.kubectl("apply", "-f", "deployment.yaml")
    await trial.cluster.kubectl("rollout", "status", "deployment/another", "--timeout=100s")
    verdict = await trial.all_uploaded(load)
    record("claim moved", verdict=str(verdict).splitlines()[0])


async def test_scaled_down_the_replay_job_uploads_what_a_claim_holds(new_trial: NewTrial) -> None:
    trial = await new_trial(STATEFUL_SET)
    cluster = trial.cluster
    load = await deployed(trial)
    await trial.passage.refuse()
    async with load:
        await load.answered_more(100)
    await cluster.kubectl("scale", "statefulset/open-llm-proxy", "--replicas=0")
    await cluster.kubectl(
        "wait", "--for=delete", "pod", "-l", "app=open-llm-proxy", "--timeout=200s"
    )
    await trial.passage.accept()
    for number in range(2):
        job = f"open-llm-proxy-replay-{number}"
        claim = f"log-queue-open-llm-proxy-{number}"
        text = (cluster.folder / "replay" / "job.yaml").read_text()
        text = text.replace("open-llm-proxy-queue", claim).replace("open-llm-proxy-replay", job)
        await cluster.kubectl("apply", "-f", "-", stdin=text)
        await cluster.kubectl("wait", "--for=condition=complete", f"job/{job}", "--timeout=120s")
    verdict = trial.verdict(load)
    assert not verdict.violations, str(verdict)
    record("replayed", claims=2, verdict=str(verdict).splitlines()[0])
