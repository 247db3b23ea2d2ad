"""The manifests against the API's schemas, and as `kubectl kustomize` renders them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import ROOT, make_renderable

# Not of the API, but of the Prometheus operator.
CUSTOM_KINDS = ("Kustomization", "ServiceMonitor", "PrometheusRule")
OLDEST = "1.25"
NEEDS = {"compact-backfill.yaml": "1.29"}  # backoffLimitPerIndex


def manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted((ROOT / "k8s").rglob("*.yaml*")):
        yield from ((path, one) for one in yaml.safe_load_all(path.read_text()))


def schema_versions() -> list[str]:
    """The oldest version that is promised and the newest of which there are schemas."""
    validate = pytest.importorskip(
        "kubernetes_validate", reason="make test-cluster installs kubernetes-validate"
    )
    return [OLDEST, validate.latest_version()]


def test_every_manifest_is_valid_from_the_oldest_to_the_newest_api() -> None:
    import kubernetes_validate as validate

    checked = 0
    for each in schema_versions():
        for path, manifest in manifests():
            if manifest["kind"] not in CUSTOM_KINDS:
                version = NEEDS.get(path.name, each) if each == OLDEST else each
                validate.validate(manifest, version, strict=True)
                checked += 1
                print(f"{path.relative_to(ROOT)}: {manifest['kind']} is valid in {version}")
    assert checked > 15


def test_the_same_test_notices_a_misspelt_field() -> None:
    import kubernetes_validate as validate

    [deployment] = [m for p, m in manifests() if m["kind"] == "Deployment"]
    deployment["spec"]["progressDeadlineSecond"] = 75
    for version in schema_versions():
        with pytest.raises(validate.ValidationError):
            validate.validate(deployment, version, strict=True)


@pytest.mark.parametrize(
    ("folder", "kinds"),
    [
        (".", ["ConfigMap", "Deployment", "Ingress", "PersistentVolumeClaim", "Service"]),
        ("ha", ["ConfigMap", "PodDisruptionBudget", "StatefulSet"]),
    ],
)
def test_kustomize_renders_it(tmp_path: Path, folder: str, kinds: list[str]) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl here")
    copy = tmp_path / "k8s"
    shutil.copytree(ROOT / "k8s", copy)
    version = json.loads(
        subprocess.check_output([kubectl, "version", "--client", "-o", "json"], timeout=60)
    )["clientVersion"]
    if int(version["minor"].rstrip("+")) < 21:
        make_renderable(copy)
    text = subprocess.check_output([kubectl, "kustomize", str(copy / folder)], timeout=60)
    rendered = {one["kind"]: one for one in yaml.safe_load_all(text)}
    assert sorted(rendered) == kinds
    # The pods mount the very ConfigMap that was made, whose name changes with its content.
    name = rendered["ConfigMap"]["metadata"]["name"]
    assert name != "open-llm-proxy-config" and name.startswith("open-llm-proxy-config-")
    [workload] = [rendered[kind] for kind in rendered if kind in ("Deployment", "StatefulSet")]
    volumes = workload["spec"]["template"]["spec"]["volumes"]
    [config] = [volume["configMap"] for volume in volumes if volume["name"] == "config"]
    assert config == {"name": name, "optional": True}
