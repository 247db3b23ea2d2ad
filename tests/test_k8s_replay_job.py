"""The replay job beside the deployment whose volume it empties: it must find the same queue, be
allowed to finish it, and send it to the same place."""

from typing import Any

import pytest

from test_k8s import document, quantity_bytes, workload

# What an upload may take before it is given up, see the time-outs in queue/sinks.py.
UPLOAD_SECONDS = 70


@pytest.fixture
def job() -> dict[str, Any]:
    return document("replay/job.yaml")["spec"]


@pytest.fixture
def pod(job: dict[str, Any]) -> dict[str, Any]:
    return job["template"]["spec"]


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["containers"]
    return only


@pytest.fixture
def deployed() -> dict[str, Any]:
    return workload("deployment.yaml")["spec"]["template"]["spec"]


def by_name(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry for entry in container["env"]}


def test_it_replays_the_folder_on_the_deployment_s_volume(
    pod: dict[str, Any], container: dict[str, Any], deployed: dict[str, Any]
) -> None:
    [server] = deployed["containers"]
    queue_folder = by_name(server)["LOG_QUEUE_DIR"]["value"]
    assert container["command"] == ["open-llm-proxy", "replay", queue_folder]
    assert {"name": "log-queue", "mountPath": queue_folder} in container["volumeMounts"]
    [claim] = [volume for volume in pod["volumes"] if volume["name"] == "log-queue"]
    assert claim in deployed["volumes"]


def test_it_has_the_deployment_s_sink(container: dict[str, Any], deployed: dict[str, Any]) -> None:
    [server] = deployed["containers"]
    theirs = by_name(server)
    for name, entry in by_name(container).items():
        if "valueFrom" in entry:
            # Without them a replay has nothing to do; the deployment can run without.
            entry["valueFrom"]["secretKeyRef"].setdefault("optional", True)
        assert entry == theirs[name]
    assert {"LOG_BUCKET", "AWS_ENDPOINT_URL_S3"} < by_name(container).keys()


def test_it_runs_the_same_image_as_the_same_user(
    pod: dict[str, Any], container: dict[str, Any], deployed: dict[str, Any]
) -> None:
    [server] = deployed["containers"]
    assert container["image"] == server["image"]
    assert pod["securityContext"] == deployed["securityContext"]
    assert container["securityContext"] == server["securityContext"]


def test_a_failed_run_is_kept_to_be_read_and_a_stopped_one_ends_in_order(
    job: dict[str, Any], pod: dict[str, Any]
) -> None:
    assert pod["restartPolicy"] == "Never"
    assert job["backoffLimit"] > 0
    assert pod["terminationGracePeriodSeconds"] >= UPLOAD_SECONDS


def test_limits_keep_the_cluster_s_rule_of_a_fifth(container: dict[str, Any]) -> None:
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert requests.keys() == limits.keys() == {"cpu", "memory", "ephemeral-storage"}
    assert int(requests["cpu"]) <= int(limits["cpu"]) <= 1.2 * int(requests["cpu"])
    for name in ("memory", "ephemeral-storage"):
        requested = quantity_bytes(requests[name])
        assert requested <= quantity_bytes(limits[name]) <= 1.2 * requested


def test_services_do_not_take_it_for_the_server(job: dict[str, Any]) -> None:
    selector = document("service.yaml")["spec"]["selector"]
    assert not selector.items() <= job["template"]["metadata"]["labels"].items()
