"""The manifests in k8s/ against each other and against what the program needs.

What a cluster would only show as an outage or as lost entries is held here: a rollout without a
pod that takes calls, a kill before the shutdown is over, a queue outside the volume. They are
applied by `make test-cluster`. PyYAML is not asked for in setup.py; it comes with moto.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from open_llm_proxy.server.settings import Settings

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


def workload(name: str) -> dict[str, Any]:
    """The Deployment or StatefulSet of a file, without the claim before it."""
    [only] = [one for one in documents(name) if one["kind"] in ("Deployment", "StatefulSet")]
    return only


def claim() -> dict[str, Any]:
    [only] = [d for d in documents("deployment.yaml") if d["kind"] == "PersistentVolumeClaim"]
    return only


@pytest.fixture(params=["deployment.yaml", "ha/statefulset.yaml"])
def layout(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def deployment(layout: str) -> dict[str, Any]:
    return workload(layout)["spec"]


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


def test_a_rollout_starts_the_new_pod_first_and_beside_the_old_one() -> None:
    deployment = workload("deployment.yaml")["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    # Both pods mount the one volume, which only one node can.
    assert claim()["spec"]["accessModes"] == ["ReadWriteOnce"]
    affinity = deployment["template"]["spec"]["affinity"]["podAffinity"]
    [term] = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    labels = deployment["template"]["metadata"]["labels"]
    assert term["labelSelector"]["matchLabels"].items() <= labels.items()


def test_a_failed_rollout_is_told_within_ninety_seconds() -> None:
    deployment = workload("deployment.yaml")["spec"]
    assert deployment["progressDeadlineSeconds"] <= 80


def test_replicas_have_a_volume_each_and_leave_one_after_the_other() -> None:
    stateful = workload("ha/statefulset.yaml")["spec"]
    assert stateful["replicas"] >= 2
    assert stateful["serviceName"] == document("service.yaml")["metadata"]["name"]
    assert stateful["updateStrategy"] == {"type": "RollingUpdate"}
    [template] = stateful["volumeClaimTemplates"]
    assert template["spec"] == claim()["spec"]
    budget = document("ha/pdb.yaml")["spec"]
    assert budget["maxUnavailable"] == 1
    labels = stateful["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_both_layouts_run_the_same_pod() -> None:
    """But for the volume, where it may run, and how long it may take to leave."""
    first, second = (
        workload(name)["spec"]["template"]["spec"]
        for name in ("deployment.yaml", "ha/statefulset.yaml")
    )
    apart = {"affinity", "topologySpreadConstraints", "terminationGracePeriodSeconds"}
    assert {k for k in first.keys() | second.keys() if first.get(k) != second.get(k)} == (
        apart | {"containers", "volumes"}
    )
    assert [v for v in first["volumes"] if v["name"] != "log-queue"] == second["volumes"]
    [one], [other] = first["containers"], second["containers"]
    assert {k for k in one if one[k] != other[k]} == {"env"}
    assert [
        (mine["name"], mine["value"], theirs["value"])
        for mine, theirs in zip(one["env"], other["env"], strict=True)
        if mine != theirs
    ] == [("SHUTDOWN_GRACE_SECONDS", "120", str(LONGEST_CALL_SECONDS))]


def test_the_pod_is_not_killed_before_its_shutdown_is_over(
    pod: dict[str, Any], environment: dict[str, Any]
) -> None:
    shutdown_seconds = int(environment["SHUTDOWN_DELAY_SECONDS"]) + int(
        environment["SHUTDOWN_GRACE_SECONDS"]
    )
    upload_seconds = 30
    assert pod["terminationGracePeriodSeconds"] >= shutdown_seconds + upload_seconds


def test_the_queue_lies_on_the_claimed_volume(
    deployment: dict[str, Any],
    pod: dict[str, Any],
    container: dict[str, Any],
    environment: dict[str, Any],
) -> None:
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    for template in deployment.get("volumeClaimTemplates", []):
        claims[template["metadata"]["name"]] = template["metadata"]["name"]
    mounted = {mount["mountPath"]: claims.get(mount["name"]) for mount in container["volumeMounts"]}
    assert mounted[environment["LOG_QUEUE_DIR"]] in (claim()["metadata"]["name"], "log-queue")


def test_a_full_queue_leaves_room_on_the_volume(environment: dict[str, Any]) -> None:
    volume_bytes = quantity_bytes(claim()["spec"]["resources"]["requests"]["storage"])
    assert int(environment["LOG_QUEUE_MAX_BYTES"]) <= 0.85 * volume_bytes


def test_the_queue_needs_a_block_volume() -> None:
    assert claim()["spec"]["storageClassName"] == "rook-ceph-block"


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
            place = (
                source / Path(target).relative_to("/src") / (path if target.endswith("/") else "")
            )
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, place, ignore=shutil.ignore_patterns("__pycache__"))
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


def test_every_key_of_the_example_reaches_the_pod(environment: dict[str, Any]) -> None:
    text = (ROOT / "k8s" / "secrets.yaml.example").read_text()
    shown = set(re.findall(r'^  (?:# )?([\w-]+): "', text, re.MULTILINE))
    used = {
        source["secretKeyRef"]["key"]
        for source in environment.values()
        if isinstance(source, dict) and "secretKeyRef" in source
    }
    assert shown == used


def variables_of(provider: dict[str, Any]) -> list[str]:
    """The environment variables that a provider's entry names."""
    return [provider["api_key_env"], *provider.get("extra_body_env", {}).values()]


def test_whatever_is_secret_comes_from_a_secret(environment: dict[str, Any]) -> None:
    """Secret settings, the store's keys, and the key of each provider of config.json."""
    secret = {field.metadata["variable"] for field in fields(Settings) if not field.repr}
    secret |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    providers = json.loads((ROOT / "config.json").read_text())["providers"]
    secret |= {name for provider in providers.values() for name in variables_of(provider)}
    assert {n for n, v in environment.items() if "secretKeyRef" in v} == secret


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
    hidden = {name for name in written_out if "KEY" in name or "SECRET" in name}
    assert hidden == {"PROXY_KEYS_DIR"}


def test_named_keys_are_mounted_where_their_absence_harms_nothing(
    pod: dict[str, Any], container: dict[str, Any], environment: dict[str, Any]
) -> None:
    [keys] = [volume for volume in pod["volumes"] if volume["name"] == "keys"]
    assert keys["secret"]["optional"] is True
    [mount] = [one for one in container["volumeMounts"] if one["name"] == "keys"]
    assert mount["mountPath"] == environment["PROXY_KEYS_DIR"]
    assert (
        f"secret generic {keys['secret']['secretName']} "
        in (ROOT / "k8s" / "secrets.yaml.example").read_text()
    )


def test_log_lines_name_the_pod(environment: dict[str, Any]) -> None:
    assert environment["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_bucket_is_the_placeholder_of_the_instructions(environment: dict[str, Any]) -> None:
    assert environment["LOG_BUCKET"] == "logs-<your-namespace>"


def test_ingress_service_and_pod_lead_to_each_other(
    deployment: dict[str, Any], container: dict[str, Any]
) -> None:
    ingress, service = document("ingress.yaml"), document("service.yaml")
    [rule] = ingress["spec"]["rules"]
    [port] = service["spec"]["ports"]
    for path in rule["http"]["paths"]:
        assert path["backend"]["service"]["name"] == service["metadata"]["name"]
        assert path["backend"]["service"]["port"]["name"] == port["name"]
    assert [path["path"] for path in rule["http"]["paths"]] == ["/v1", "/chat", "/health"]
    # As the API server demands of a host: RFC 1123, no placeholder in angle brackets.
    assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", rule["host"])
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


def manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted((ROOT / "k8s").rglob("*.yaml*")):
        if path.name != "kustomization.yaml":
            yield from ((path, one) for one in yaml.safe_load_all(path.read_text()))


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest.get("spec", {})
    spec = spec.get("jobTemplate", {}).get("spec", spec)  # a CronJob's
    pod: dict[str, Any] = spec.get("template", {}).get("spec", {})
    return pod


def test_no_manifest_fixes_the_namespace() -> None:
    for path, manifest in manifests():
        assert "namespace" not in manifest["metadata"], path


def test_every_image_name_is_one_that_a_cluster_can_pull() -> None:
    containers = [
        container
        for _, manifest in manifests()
        for container in pod_of(manifest).get("containers", [])
    ]
    names = {container["image"] for container in containers}
    assert len(names) == 1
    assert re.fullmatch(r"[a-z0-9.-]+(/[a-z0-9._-]+)+:[A-Za-z0-9._-]+", names.pop())


def test_the_config_map_is_the_shipped_configuration() -> None:
    shipped = (ROOT / "config.json").read_text()
    assert (ROOT / "k8s" / "config" / "config.json").read_text() == shipped


def test_the_config_map_is_mounted_where_its_absence_harms_nothing(
    pod: dict[str, Any], container: dict[str, Any], environment: dict[str, Any]
) -> None:
    [config] = [volume for volume in pod["volumes"] if volume["name"] == "config"]
    generated = yaml.safe_load((ROOT / "k8s" / "config" / "kustomization.yaml").read_text())
    [generator] = generated["configMapGenerator"]
    assert config["configMap"] == {"name": generator["name"], "optional": True}
    [mount] = [one for one in container["volumeMounts"] if one["name"] == "config"]
    first, second = environment["CONFIG"].split(":")
    assert first == f"{mount['mountPath']}/{generator['files'][0]}"
    assert f"CONFIG={second} " in (ROOT / "Dockerfile").read_text()


def test_kustomizations_name_what_is_there() -> None:
    for path in sorted((ROOT / "k8s").rglob("kustomization.yaml")):
        kustomization = yaml.safe_load(path.read_text())
        files = [
            *kustomization.get("resources", []),
            *(f for one in kustomization.get("configMapGenerator", []) for f in one["files"]),
        ]
        assert files
        for name in files:
            assert (path.parent / name).exists(), (path, name)


def test_every_variable_of_a_manifest_is_a_setting_or_named_by_the_configuration() -> None:
    known = {field.metadata["variable"] for field in fields(Settings)}
    known |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    providers = json.loads((ROOT / "config.json").read_text())["providers"]
    known |= {name for provider in providers.values() for name in variables_of(provider)}
    for path, manifest in manifests():
        for container in pod_of(manifest).get("containers", []):
            assert {entry["name"] for entry in container["env"]} <= known, path
