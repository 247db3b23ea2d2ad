"""`open-llm-proxy check`: every mistake that a start or the first call would meet, told before."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from open_llm_proxy.server.commands import cli
from open_llm_proxy.server.preflight import directories
from open_llm_proxy.server.preflight.findings import Level
from open_llm_proxy.server.preflight.store import PROBE_NAME
from open_llm_proxy.server.preflight.variables import edits
from proxy_process import PROVIDER_KEY, PROXY_KEY, ProxyProcess, one_provider
from scripted_provider import ProviderProcess
from store_faults import StubStore
from stores import DirectoryStore, S3Store
from terminal import Terminal
from waiting import wait_until

CLI = (sys.executable, "-m", "open_llm_proxy.server.commands.cli")
NOWHERE = one_provider("http://127.0.0.1:9")
S3 = {
    "LOG_BUCKET": "logs-team",
    "AWS_ACCESS_KEY_ID": "key-id",
    "AWS_SECRET_ACCESS_KEY": "the-secret-itself",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
}

pytestmark = pytest.mark.timeout(seconds=60)


@dataclass(frozen=True, slots=True)
class Report:
    code: int
    findings: list[tuple[str, str, str]]

    def failures(self) -> list[tuple[str, str]]:
        """Area and text of what is wrong, warnings included."""
        good = (Level.OK, Level.NOTE)
        return [(area, text) for area, level, text in self.findings if level not in good]


Check = Callable[..., Report]


@pytest.fixture
def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Check:
    """Runs `check --json` in this process, in an environment of its own."""
    path = tmp_path / "etc" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(NOWHERE))
    monkeypatch.chdir(tmp_path)

    def run(environment: Mapping[str, str | None], *options: str, config: Any = None) -> Report:
        if config is not None:
            path.write_text(json.dumps(config))
        for name in list(os.environ):
            monkeypatch.delenv(name)
        good = {
            "CONFIG": str(path), "PROXY_KEY": PROXY_KEY, "NRP_API_KEY": PROVIDER_KEY,
            "LOG_DIR": "logs", "LOG_QUEUE_MAX_BYTES": "1000000",
            "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        }  # fmt: skip
        if "LOG_BUCKET" in environment:
            del good["LOG_DIR"]
        for name, value in {**good, **environment}.items():
            if value is not None:
                monkeypatch.setenv(name, value)
        code = cli.run(["check", "--json", *options])
        out = capfd.readouterr().out
        printed = json.loads(out)
        assert printed["ok"] == (code == 0)
        assert "the-secret-itself" not in out and PROVIDER_KEY not in out and PROXY_KEY not in out
        return Report(code, [(f["area"], f["level"], f["text"]) for f in printed["findings"]])

    return run


def test_a_good_configuration_has_no_faults(check: Check) -> None:
    for environment in ({}, S3):
        report = check(environment)
        assert (report.code, report.failures()) == (0, [])
        assert {area for area, _, _ in report.findings} == {
            "settings", "config", "provider nrp", "proxy keys", "log", "queue",
        }  # fmt: skip
    assert not Path("logs").exists(), "a check creates nothing"
    assert not Path("log-queue").exists()


@pytest.mark.parametrize(
    ("wrong", "area", "text"),
    [
        ({"PORT": "http"}, "settings", "PORT=http: must be a whole number"),
        ({"LOG_BUKET": "logs"}, "settings", "LOG_BUKET is ignored; did you mean LOG_BUCKET?"),
        ({"LOG_CAPTURES": "full"}, "settings", "LOG_CAPTURES is ignored; did you mean LOG_CAP"),
        ({"CACHE_SALT": "salt"}, "settings", "CACHE_SALT is ignored, because config.json names"),
        (
            {"NRP_API_KEY": None, "NRP_APIKEY": "x"},
            "settings",
            "NRP_APIKEY is ignored; did you mean NRP_API_KEY?",
        ),
        ({"CONFIG": "nowhere.json"}, "config", "Cannot read nowhere.json"),
        ({"NRP_API_KEY": None}, "provider nrp", "no key, so that calls of its models get 503"),
        ({"NRP_API_KEY": "a\nb"}, "provider nrp", "NRP_API_KEY contains a line break"),
        ({"PROXY_KEY": None}, "proxy keys", "none, so that every call is refused"),
        ({"PROXY_KEY": "schlüssel-ohne-ende"}, "proxy keys", "characters that no client can send"),
        ({"LOG_QUEUE_DIR": __file__}, "queue", "is not a directory; use a directory"),
        ({"LOG_QUEUE_DIR": "/proc/queue"}, "queue", "cannot be created in /proc"),
        ({"LOG_DIR": "/proc/logs"}, "log", "cannot be created in /proc"),
        ({"LOG_DIR": "log-queue"}, "queue", "overlap; use separate directories"),
        ({"LOG_DIR": "log-queue/objects"}, "queue", "overlap; use separate directories"),
        ({"LOG_QUEUE_DIR": f"{__file__}/x"}, "queue", f"cannot be created in {__file__}"),
        ({"LOG_QUEUE_DIR": "etc"}, "config", "is inside LOG_QUEUE_DIR"),
        ({"LOG_BUCKET": "logs", "LOG_DIR": "logs"}, "settings", "Set LOG_BUCKET or LOG_DIR"),
        (S3 | {"LOG_BUCKET": "logs-<your-namespace>"}, "log", "is not the name of a bucket"),
        (S3 | {"LOG_BUCKET": "s3://logs"}, "settings", "must be the bare name of a bucket"),
        (
            S3 | {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            "log",
            "has no S3 credentials, so that entries go to stdout only",
        ),
        (S3 | {"AWS_ENDPOINT_URL_S3": "s3.example.org"}, "log", "begins with https:// or http://"),
        (S3 | {"AWS_ACCESS_KEY_ID": None}, "log", "is set without AWS_ACCESS_KEY_ID; set both"),
        (S3 | {"AWS_SECRET_ACCESS_KEY": None}, "log", "is set without AWS_SECRET_ACCESS_KEY"),
        (
            S3 | {"AWS_SECRET_ACCESS_KEY": "the-secret-itself\n"},
            "log",
            "AWS_SECRET_ACCESS_KEY contains a blank or a line break",
        ),
        (S3 | {"AWS_PROFILE": "nope"}, "log", "AWS_PROFILE names a profile that does not exist"),
        (S3 | {"AWS_REGION": "us east"}, "log", "region is not a valid name"),
    ],
)  # fmt: skip
def test_a_mistake_is_found(
    check: Check, wrong: Mapping[str, str | None], area: str, text: str
) -> None:
    report = check(wrong)
    assert report.code == 2
    failures = report.failures()
    assert any(found == area and text in said for found, said in failures), failures
    # One mistake is told once, and these two are two each.
    assert len(failures) == 1 or "NRP_APIKEY" in wrong or wrong == {"LOG_QUEUE_DIR": "etc"}


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        ({"LOG_LEVEL": "debug"}, "LOG_LEVEL is not a setting of this program and is ignored"),
        ({"HTTPS_PROXY": "http://a:the-secret-itself@b"}, "HTTPS_PROXY is ignored for calls"),
        ({"http_proxy": "http://b:3128"}, "http_proxy is ignored for calls: they go to providers"),
        ({"ALL_PROXY": "socks5://b"}, "ALL_PROXY is ignored for calls"),
        ({"PROXY_KEY": "too-short"}, "PROXY_KEY has fewer than 16 characters"),
        ({"LOG_QUEUE_MAX_BYTES": str(2**60)}, "less than LOG_QUEUE_MAX_BYTES"),
        ({"LOG_DIR": None}, "stdout only, entries are not stored"),
        (S3 | {"LOG_BUCKET": "Logs"}, "most stores refuse this name"),
    ],
)
def test_what_works_but_is_odd_is_a_warning(
    check: Check, odd: Mapping[str, str | None], text: str
) -> None:
    report = check(odd)
    ((_, said),) = report.failures()
    assert (report.code, text in said) == (0, True), said


def test_five_mistakes_are_five_findings(check: Check) -> None:
    providers = NOWHERE["providers"]
    wrong = {"providers": {"nrp": providers["nrp"] | {"model": [], "endpoint": 1, "models": 2}}}
    report = check({"LOG_BUKET": "x", "LOG_DIR": "log-queue"}, config=wrong)
    assert (report.code, len(report.failures())) == (2, 5), report.failures()


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"LOG_CAPTURE_MODE": "full"}, "LOG_CAPTURE_MODE is read as LOG_CAPTURE; rename it"),
        ({"FLUSH_INTERVAL": "60"}, "FLUSH_INTERVAL is read as FLUSH_INTERVAL_SECONDS; rename it"),
        (
            {"FLUSH_INTERVAL": "60", "FLUSH_INTERVAL_SECONDS": "300"},
            "FLUSH_INTERVAL is ignored, because FLUSH_INTERVAL_SECONDS is set; remove it",
        ),
        ({"LOG_MAX_BUFFER": "1"}, "LOG_MAX_BUFFER is ignored: no entry is dropped; LOG_QUEUE_MAX"),
        ({"SLOW_COMPLETION_WARN_SECONDS": "1"}, "is ignored: the log has latency_ms, and /metrics"),
    ],
)
def test_names_of_the_original_proxy_are_warnings(
    check: Check, variables: Mapping[str, str], text: str
) -> None:
    report = check(variables)
    ((area, found),) = report.failures()
    assert (report.code, area, text in found) == (0, "settings", True), found


def test_an_entry_that_looks_like_a_prefix_is_a_warning(check: Check) -> None:
    report = check({}, config=one_provider("http://127.0.0.1:9", models=["kimi", "~", "claude-"]))
    ((area, text),) = report.failures()
    assert (report.code, area) == (0, "provider nrp")
    assert text.startswith("models has ~, claude-, taken for whole ids; prefixes belong into")


def test_variables_of_others_are_no_mistakes(check: Check) -> None:
    others = {
        "PROXY_SERVICE_HOST": "10.0.0.1",
        "PROXY_PORT_8002_TCP": "tcp://10.0.0.1:8002",
        "HTTP_PROXY": "",
        "NO_PROXY": "10.0.0.0/8",
        "HOSTNAME": "pod-1",
        "POD_NAMESPACE": "team",
        "AWS_EC2_METADATA_DISABLED": "true",
        "LC_ALL": "C",
    }
    assert check(others).failures() == []


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [("", "", 0), ("a", "", 1), ("LOG_BUKET", "LOG_BUCKET", 1), ("abc", "cba", 2), ("ab", "xy", 2)],
)
def test_edits_are_counted(one: str, other: str, count: int) -> None:
    assert edits(one, other) == edits(other, one) == count


def test_strange_files_in_the_queue_s_directory_and_network_disks_are_warnings(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = tmp_path / "log-queue"
    for name in ("0123456789abcdef", "0123456789abcdef.new", "quarantine", "lost+found"):
        (queue / name).mkdir(parents=True)
    assert check({}).failures() == []
    (queue / "2026-04-07").mkdir()
    ((area, text),) = check({}).failures()
    assert (area, "do not belong to a queue (2026-04-07)" in text) == ("queue", True)
    (queue / "2026-04-07").rmdir()
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(directories, "MOUNTS", mounts)
    ((area, text),) = check({}).failures()
    assert (area, "network file system (nfs4)" in text) == ("queue", True)


def test_a_table_for_people_fits_into_80_columns(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "CONFIG": "/nowhere.json", "LOG_BUKET": "x"}
    done = subprocess.run([*CLI, "check"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert lines[0] == "settings    problem   LOG_BUKET is ignored; did you mean LOG_BUCKET?"
    terminal = Terminal([*CLI, "check"], environment, columns=80)
    assert terminal.ended() == 2
    shown = terminal.text.replace("\r", "").splitlines()
    terminal.close()
    assert max(map(len, shown)) <= 80
    assert " ".join(" ".join(shown).split()) == " ".join(done.stdout.split())


def test_online_a_store_and_a_provider_that_work(
    check: Check, moto_store: S3Store, provider_process: ProviderProcess
) -> None:
    config = one_provider(provider_process.url, models=["kimi", "no-such-model"])
    report = check(moto_store.env() | {"LOG_PREFIX": "team/"}, "--online", config=config)
    texts = [text for _, level, text in report.findings if level == Level.OK]
    for done in ("PUT of a probe object to", "GET of the probe object", "DELETE of the probe"):
        assert any(done in text for text in texts), report
    assert any("accepts the key and lists 3 models" in text for text in texts)
    ((area, text),) = report.failures()
    assert (area, "does not list no-such-model" in text) == ("provider nrp", True)
    assert report.code == 0
    assert list(moto_store.objects()) == []


def test_online_what_does_not_work_is_named(check: Check, moto_store: S3Store) -> None:
    report = check(moto_store.env() | {"LOG_BUCKET": "no-such-bucket"}, "--online")
    assert report.code == 2
    (of_provider, of_store) = report.failures()
    assert of_provider[0] == "provider nrp"
    assert "GET http://127.0.0.1:9/v1/models: " in of_provider[1]
    assert of_store[0] == "log"
    assert "answered 404 NoSuchBucket: the bucket does not exist; create it" in of_store[1]


def test_online_nothing_is_sent_before_the_mistakes_are_corrected(check: Check) -> None:
    report = check({"PORT": "x"}, "--online")
    assert ("online", "not tested; correct the mistakes first") in report.failures()


async def test_a_server_tests_store_and_providers_in_the_background(
    start_proxy: Callable[..., ProxyProcess],
) -> None:
    async with StubStore() as store:
        store.answer_always(403, "AccessDenied")
        proxy = start_proxy(NOWHERE, store.env() | {"ONLINE_CHECKS": "on"})
        await proxy.start()
        for expected in (
            f"ERROR Check of log: PUT s3://{store.env()['LOG_BUCKET']}/{PROBE_NAME}: "
            "answered 403 AccessDenied: no permission; grant",
            "ERROR Check of provider nrp: GET http://127.0.0.1:9/v1/models: ",
        ):
            await wait_until(lambda text=expected: text in proxy.stderr_text(), expected, 20)
        assert await proxy.stop() == 0
        assert "Traceback" not in proxy.stderr_text()


async def test_a_server_s_good_checks_are_silent(
    start_proxy: Callable[..., ProxyProcess],
    directory_store: DirectoryStore,
    provider_process: ProviderProcess,
) -> None:
    settings = directory_store.env() | {"ONLINE_CHECKS": "on"}
    proxy = start_proxy(one_provider(provider_process.url), settings)
    await proxy.start()
    assert await proxy.stop() == 0
    assert "Check of" not in proxy.stderr_text()
