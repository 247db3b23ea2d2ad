"""The compaction's CronJob and Indexed Job, against the program and against the deployment."""

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from open_llm_proxy.archive.commands import compact_command
from open_llm_proxy.archive.tables.connection import MEMORY_LIMIT
from open_llm_proxy.archive.tables.plan import FOLLOWING_UNTIL
from test_k8s import ROOT, document, documents, pod_of, quantity_bytes, workload

CRON, BACKFILL = "compact-cronjob.yaml", "compact-backfill.yaml"


@pytest.fixture(params=[CRON, BACKFILL])
def manifest(request: pytest.FixtureRequest) -> dict[str, Any]:
    return document(request.param)


@pytest.fixture
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return pod_of(manifest)


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["containers"]
    return only


def parsed(command: list[str], **variables: str) -> argparse.Namespace:
    """A command as the program takes it, with the variables that Kubernetes puts in."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers().add_parser("logs").add_subparsers()
    compact_command.add(commands, lambda: pytest.fail("nothing is run"), None)
    for name, value in variables.items():
        command = [text.replace(f"$({name})", value) for text in command]
    assert command[0] == "open-llm-proxy" and "$(" not in "".join(command)
    return parser.parse_args(command[1:])


def command_of(name: str) -> list[str]:
    [container] = pod_of(document(name))["containers"]
    command: list[str] = container["command"]
    return command


def test_each_night_is_for_yesterday_after_the_last_answers_and_alone() -> None:
    spec = document(CRON)["spec"]
    assert spec["concurrencyPolicy"] == "Forbid" and spec["timeZone"] == "Etc/UTC"
    minute, hour, *every_day = spec["schedule"].split()
    assert every_day == ["*"] * 3
    assert f"{int(hour):02}-{int(minute):02}-00" > FOLLOWING_UNTIL
    assert 0 < spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 86_400
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    assert parsed(command_of(CRON)).day == yesterday.isoformat()


def test_each_index_of_the_backfill_is_a_day_of_its_own() -> None:
    spec = document(BACKFILL)["spec"]
    assert spec["completionMode"] == "Indexed"
    assert 1 <= spec["parallelism"] <= spec["completions"]
    assert spec["backoffLimitPerIndex"] > 0, "one day that fails must not end the others"
    command = command_of(BACKFILL)
    days = [
        parsed(command, JOB_COMPLETION_INDEX=str(index)).day for index in range(spec["completions"])
    ]
    first = datetime.fromisoformat(days[0])
    assert days == [f"{first + timedelta(days=at):%Y-%m-%d}" for at in range(spec["completions"])]


def test_nothing_is_deleted_unless_somebody_asks_for_it(container: dict[str, Any]) -> None:
    chosen = parsed(container["command"], JOB_COMPLETION_INDEX="0")
    assert not chosen.delete_raw
    assert chosen.source is None and chosen.to is None, "LOG_BUCKET says both"


def test_it_reads_the_deployment_s_bucket_with_a_key_of_its_own(container: dict[str, Any]) -> None:
    [server] = pod_of(workload("deployment.yaml"))["containers"]
    theirs = {entry["name"]: entry for entry in server["env"]}
    ours = {entry["name"]: entry for entry in container["env"]}
    for name in ("LOG_BUCKET", "AWS_ENDPOINT_URL_S3"):
        assert ours.pop(name) == theirs[name]
    example = {one["metadata"]["name"]: one for one in documents("secrets.yaml.example")}
    for name, entry in ours.items():
        reference = entry["valueFrom"]["secretKeyRef"]
        assert reference["name"] != theirs[name]["valueFrom"]["secretKeyRef"]["name"]
        assert reference["key"] == name and name in example[reference["name"]]["stringData"]


def test_it_runs_the_deployment_s_image_as_the_same_user(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    deployed = pod_of(workload("deployment.yaml"))
    [server] = deployed["containers"]
    assert container["image"] == server["image"]
    assert pod["securityContext"] == deployed["securityContext"]
    assert container["securityContext"] == server["securityContext"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_image_has_what_the_command_needs() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "\nduckdb==" in lock
    assert "--extra tables " in (ROOT / "Makefile").read_text(), "`make lock` keeps it there"


def test_what_it_writes_lies_on_a_bounded_volume(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    chosen = parsed(container["command"], JOB_COMPLETION_INDEX="0")
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    [volume] = pod["volumes"]
    assert mounted == {"/tmp": volume["name"]}, "TMPDIR's default, which DuckDB's files go to"
    assert Path("/tmp") in Path(chosen.cache).parents
    limits = container["resources"]["limits"]
    bound = quantity_bytes(volume["emptyDir"]["sizeLimit"])
    assert bound < quantity_bytes(limits["ephemeral-storage"])


def test_memory_has_room_beside_duckdb_s(container: dict[str, Any]) -> None:
    duckdb_bytes = int(MEMORY_LIMIT.removesuffix("GB")) * 10**9
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert quantity_bytes(limits["memory"]) >= 1.5 * duckdb_bytes
    assert requests == limits, "the cluster allows a fifth more; nothing is asked for in vain"


def test_a_failed_run_is_kept_to_be_read(manifest: dict[str, Any], pod: dict[str, Any]) -> None:
    assert pod["restartPolicy"] == "Never"
    job = manifest["spec"].get("jobTemplate", manifest)["spec"]
    assert job.get("backoffLimit", job.get("backoffLimitPerIndex", 0)) > 0


def test_services_do_not_take_it_for_the_server(manifest: dict[str, Any]) -> None:
    job = manifest["spec"].get("jobTemplate", manifest)["spec"]
    selector = document("service.yaml")["spec"]["selector"]
    assert not selector.items() <= job["template"]["metadata"]["labels"].items()
