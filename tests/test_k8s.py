"""The manifests in k8s/ against each other and against what the program needs.

They cannot be applied here, so these tests hold what a cluster would only show as lost entries: two
pods on one volume, a kill before the shutdown is over, a queue outside the volume. PyYAML is not
asked for in setup.py; it comes with moto.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
GIB = 1024**3
LONGEST_CALL_SECONDS = 1200  # the default of UPSTREAM_TIMEOUT_SECONDS


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "k8s" / name).read_text()))


def document(name: str) -> dict[str, Any]:
    [only] = documents(name)
    return only


def quantity_bytes(quantity: str) -> int:
    match = re.fullmatch(r"(\d+)(Mi|Gi)", quantity)
    assert match, f"{quantity} is not in Mi or Gi"
    return int(match[1]) * {"Mi": 1024**2, "Gi": GIB}[match[2]]


@pytest.fixture
def deployment() -> dict[str, Any]:
    return document("deployment.yaml")["spec"]


@pytest.fixture
def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    return deployment["template"]["spec"]


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["containers"]
    return only


@pytest.fixture
def environment(container: dict[str, Any]) -> dict[str, Any]:
    """Each variable's value, or where its value comes from."""
    names = [entry["name"] for entry in container["env"]]
    assert len(names) == len(set(names))
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_the_old_pod_leaves_the_volume_before_the_new_one_starts(
    deployment: dict[str, Any],
) -> None:
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    assert document("pvc.yaml")["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_pod_is_not_killed_before_its_shutdown_is_over(
    pod: dict[str, Any], environment: dict[str, Any]
) -> None:
    shutdown_seconds = int(environment["SHUTDOWN_DELAY_SECONDS"]) + int(
        environment["SHUTDOWN_GRACE_SECONDS"]
    )
    upload_seconds = 30
    assert pod["terminationGracePeriodSeconds"] >= shutdown_seconds + upload_seconds


def test_the_queue_lies_on_the_claimed_volume(
    pod: dict[str, Any], container: dict[str, Any], environment: dict[str, Any]
) -> None:
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    mounted = {mount["mountPath"]: claims.get(mount["name"]) for mount in container["volumeMounts"]}
    assert mounted[environment["LOG_QUEUE_DIR"]] == document("pvc.yaml")["metadata"]["name"]


def test_a_full_queue_leaves_room_on_the_volume(environment: dict[str, Any]) -> None:
    volume_bytes = quantity_bytes(document("pvc.yaml")["spec"]["resources"]["requests"]["storage"])
    assert int(environment["LOG_QUEUE_MAX_BYTES"]) <= 0.85 * volume_bytes


def test_the_queue_needs_a_block_volume() -> None:
    assert document("pvc.yaml")["spec"]["storageClassName"] == "rook-ceph-block"


def test_the_probes_ask_the_two_routes_that_mean_different_things(
    container: dict[str, Any],
) -> None:
    paths = {
        name: container[name]["httpGet"]["path"]
        for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {
        "startupProbe": "/health",
        "livenessProbe": "/health",
        "readinessProbe": "/ready",
    }


def test_the_shutdown_delay_is_long_enough_for_readiness_to_be_seen(
    container: dict[str, Any], environment: dict[str, Any]
) -> None:
    probe = container["readinessProbe"]
    seen_after = probe["periodSeconds"] * probe["failureThreshold"]
    assert seen_after <= int(environment["SHUTDOWN_DELAY_SECONDS"])


def test_limits_keep_the_cluster_s_rule_of_a_fifth(container: dict[str, Any]) -> None:
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert requests.keys() == limits.keys() == {"cpu", "memory", "ephemeral-storage"}
    assert int(requests["cpu"]) <= int(limits["cpu"]) <= 1.2 * int(requests["cpu"])
    for name in ("memory", "ephemeral-storage"):
        requested = quantity_bytes(requests[name])
        assert requested <= quantity_bytes(limits[name]) <= 1.2 * requested


def test_the_pod_runs_without_root_and_owns_its_volume(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert (
        f"USER {context['runAsUser']}:{context['fsGroup']}\n" in (ROOT / "Dockerfile").read_text()
    )
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_manifests_and_image_agree_on_port_and_folders(
    container: dict[str, Any], environment: dict[str, Any]
) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    [port] = container["ports"]
    assert f"EXPOSE {port['containerPort']}\n" in dockerfile
    assert f"PORT={port['containerPort']} " in dockerfile
    assert f"LOG_QUEUE_DIR={environment['LOG_QUEUE_DIR']}\n" in dockerfile


def test_what_the_image_copies_is_all_that_the_installation_needs(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        match line.split():
            case ["COPY", *given, target] if target.startswith("/src"):
                pass
            case _:
                continue
        for path in given:
            place = source / Path(target).relative_to("/src") / ("" if len(given) == 1 else path)
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, place)
            else:
                shutil.copy(ROOT / path, place)
    built = tmp_path / "built"
    build = [sys.executable, "setup.py", "--quiet", "build", f"--build-lib={built}"]
    subprocess.run(build, cwd=source, check=True, timeout=60, capture_output=True)
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "from open_llm_proxy.server.commands import cli; print(cli.__file__)",
        ],
        env={"PYTHONPATH": str(built), "PATH": ""},
        cwd=tmp_path,
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert told.stdout.startswith(str(built))


def test_every_secret_that_the_pod_names_is_in_the_example(environment: dict[str, Any]) -> None:
    text = (ROOT / "k8s" / "secrets.yaml.example").read_text()
    example = {secret["metadata"]["name"]: secret for secret in documents("secrets.yaml.example")}
    for source in environment.values():
        if isinstance(source, dict) and "secretKeyRef" in source:
            reference = source["secretKeyRef"]
            keys = example[reference["name"]]["stringData"]
            if not reference.get("optional"):
                assert reference["key"] in keys
            assert re.search(rf"^  (# )?{re.escape(reference['key'])}: ", text, re.MULTILINE)


def test_only_the_two_keys_that_everybody_needs_are_required(environment: dict[str, Any]) -> None:
    required = {
        name
        for name, source in environment.items()
        if isinstance(source, dict)
        and "secretKeyRef" in source
        and not source["secretKeyRef"].get("optional")
    }
    assert required == {"NRP_API_KEY", "PROXY_KEY"}


def test_no_secret_stands_in_a_manifest(environment: dict[str, Any]) -> None:
    written_out = {name for name, value in environment.items() if isinstance(value, str)}
    assert not {name for name in written_out if "KEY" in name or "SECRET" in name}


def test_log_lines_name_the_pod(environment: dict[str, Any]) -> None:
    assert environment["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_bucket_is_the_placeholder_of_the_instructions(environment: dict[str, Any]) -> None:
    assert environment["LOG_BUCKET"] == "logs-<your-namespace>"


def test_ingress_service_and_pod_lead_to_each_other(
    deployment: dict[str, Any], container: dict[str, Any]
) -> None:
    ingress, service = document("ingress.yaml"), document("service.yaml")
    [rule] = ingress["spec"]["rules"]
    [path] = rule["http"]["paths"]
    [port] = service["spec"]["ports"]
    assert path["backend"]["service"]["name"] == service["metadata"]["name"]
    assert path["backend"]["service"]["port"]["name"] == port["name"]
    assert port["targetPort"] == container["ports"][0]["name"]
    labels = deployment["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert ingress["spec"]["tls"] == [{"hosts": [rule["host"]]}]


def test_the_ingress_waits_longer_than_the_longest_call_and_holds_nothing_back() -> None:
    ingress = document("ingress.yaml")
    annotations = ingress["metadata"]["annotations"]
    assert ingress["spec"]["ingressClassName"] == "haproxy"
    for name in (
        "haproxy-ingress.github.io/timeout-server",
        "haproxy-ingress.github.io/timeout-tunnel",
    ):
        assert int(annotations[name].removesuffix("s")) > LONGEST_CALL_SECONDS
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > LONGEST_CALL_SECONDS
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"


def test_no_manifest_fixes_the_namespace() -> None:
    for path in sorted((ROOT / "k8s").iterdir()):
        for manifest in documents(path.name):
            assert "namespace" not in manifest["metadata"], path.name
