"""k8s/monitoring: alerts that fire on what a real server says, and a board of metrics it has.

A real server is scraped, brought into trouble, and scraped again. Both pages become the series of a
`promtool test rules`, so an alert on a metric or a label that is not there can not fire.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from proxy_process import PROXY_KEY, ProxyProcess, one_provider
from store_faults import StubStore

ROOT = Path(__file__).resolve().parent.parent
MONITORING = ROOT / "k8s" / "monitoring"
PROMTOOL = shutil.which("promtool")
NOWHERE = one_provider("http://127.0.0.1:9")
NO_PATIENCE = {"UPSTREAM_CONNECT_TIMEOUT_SECONDS": "0.1"}  # with it
METRIC = re.compile(r"open_llm_proxy_\w+")
# The pages follow each other after so many minutes, and the second stays.
MINUTES_BEFORE, MINUTES_AFTER = 10, 12

# What cannot be brought about within a test, in the series of a real server.
FAULTS: list[tuple[str, dict[str, float]]] = [
    ("OpenLlmProxyRefusing", {"refusing{}": 1}),
    ("OpenLlmProxyLogWaits", {"queue_oldest_age_seconds{}": 1801}),
    ("OpenLlmProxyQueueHalfFull", {"queue_bytes{}": 3e9}),
    ("OpenLlmProxyRowsLeft", {"log_left_queues{}": 1}),
    ("OpenLlmProxyDamage", {"damaged_rows_total{}": 1}),
    ("OpenLlmProxyDamage", {"quarantined_queues_total{}": 1}),
    ("OpenLlmProxyStdoutDropped", {"stdout_dropped_lines_total{}": 7}),
    (
        "OpenLlmProxySlow",
        {f'overhead_seconds_bucket{{le="{le}"}}': 50 for le in ("0.5", "1.0", "5.0", "+Inf")},
    ),
]

Samples = dict[str, float]

pytestmark = pytest.mark.timeout(seconds=60)
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool; apt-get install prometheus"
)


def rules() -> dict[str, Any]:
    text = (MONITORING / "prometheusrule.yaml").read_text()
    spec: dict[str, Any] = yaml.safe_load(text)["spec"]
    return spec


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in rules()["groups"] for rule in group["rules"]}


async def scraped(proxy: ProxyProcess) -> Samples:
    """Each series, as `name{label="value"}`, and its value."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        headers = {"Authorization": f"Bearer {PROXY_KEY}"}
        answer = await client.get(f"{proxy.url}/metrics", headers=headers)
    return {
        sample.name
        + "{"
        + ",".join(f"{key}={json.dumps(value)}" for key, value in sample.labels.items())
        + "}": sample.value
        for family in text_string_to_metric_families(answer.raise_for_status().text)
        for sample in family.samples
    }


def fired(folder: Path, before: Samples, after: Samples) -> set[str]:
    """The alerts that fire at the end, as promtool sees it."""
    assert PROMTOOL is not None
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules()))
    series = [
        {
            "series": name,
            "values": f"{before.get(name, 0.0)!r}x{MINUTES_BEFORE} {value!r}x{MINUTES_AFTER}",
        }
        for name, value in after.items()
    ]
    # promtool shows what it gets only where that is not what is expected: here, nothing.
    asked = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{MINUTES_BEFORE + 4}m",
        "exp_samples": [],
    }
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}
    page = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "test.yaml").write_text(yaml.safe_dump(page))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", "test.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
    )
    told = done.stdout + done.stderr
    firing = set(re.findall(r'alertname="(\w+)"', told))
    assert (done.returncode == 0) == (not firing), told
    return firing


async def calls(proxy: ProxyProcess, count: int, key: str = PROXY_KEY) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        for _ in range(count):
            body = {"model": "kimi", "messages": [{"role": "user", "content": "x" * 2000}]}
            headers = {"Authorization": f"Bearer {key}"}
            await client.post(f"{proxy.url}/v1/chat/completions", json=body, headers=headers)


@needs_promtool
async def test_alerts_fire_on_what_a_server_in_trouble_says(
    tmp_path: Path, start_proxy: Callable[..., ProxyProcess]
) -> None:
    async with StubStore() as store:
        proxy = start_proxy(
            NOWHERE, {**store.env(), **NO_PATIENCE, "LOG_QUEUE_MAX_BYTES": "33554432"}
        )
        await proxy.start()
        quiet = await scraped(proxy)
        assert fired(tmp_path, quiet, quiet) == set()
        store.answer_always(403, "AccessDenied")
        await calls(proxy, 20)  # a provider that is not there, and a store that refuses
        await store.put(5)
        await calls(proxy, 120, "a-wrong-key-of-somebody")
        troubled = await scraped(proxy)
    assert fired(tmp_path, quiet, troubled) == {
        "OpenLlmProxyUploadsFail",
        "OpenLlmProxyProviderFails",
        "OpenLlmProxyWrongKeys",
    }


@needs_promtool
async def test_alerts_fire_on_series_of_the_server_with_other_values(
    tmp_path: Path, start_proxy: Callable[..., ProxyProcess]
) -> None:
    async with StubStore() as store:
        proxy = start_proxy(NOWHERE, store.env() | NO_PATIENCE)
        await proxy.start()
        quiet = await scraped(proxy)
    wrong = {}
    for alert, changes in FAULTS:
        series = {f"open_llm_proxy_{name}": value for name, value in changes.items()}
        assert series.keys() <= quiet.keys()
        if (seen := fired(tmp_path, quiet, quiet | series)) != {alert}:
            wrong[alert] = seen
    assert not wrong


@needs_promtool
def test_a_proxy_that_is_not_scraped_is_told(tmp_path: Path) -> None:
    assert fired(tmp_path, {}, {"up{}": 0.0}) == {"OpenLlmProxyAbsent"}


async def test_board_and_rules_ask_for_metrics_that_there_are(
    start_proxy: Callable[..., ProxyProcess],
) -> None:
    async with StubStore() as store:
        proxy = start_proxy(NOWHERE, store.env() | NO_PATIENCE)
        await proxy.start()
        there = {name.partition("{")[0] for name in await scraped(proxy)}
    board = json.loads((MONITORING / "board.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])] + [
        str(rule["expr"]) for rule in alerts().values()
    ]
    assert len(asked) > 30
    named = {name for expression in asked for name in METRIC.findall(expression)}
    assert named <= there, named - there
    shown = {
        name
        for p in board["panels"]
        for t in p.get("targets", [])
        for name in METRIC.findall(t["expr"])
    }
    families = {
        re.sub(r"_(bucket|sum|count|created)$", "", name)
        for name in there
        if name.startswith("open_llm_proxy_")
    }
    assert {re.sub(r"_bucket$", "", name) for name in shown} >= families - {
        "open_llm_proxy_dropped_headers_total"
    }


def test_the_documentation_has_each_alert_s_condition() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for name, rule in alerts().items():
        assert name in page, name
        assert rule["annotations"]["summary"].endswith(".")


def test_prometheus_is_given_a_key_that_there_is() -> None:
    monitor = yaml.safe_load((MONITORING / "servicemonitor.yaml").read_text())["spec"]
    service = yaml.safe_load((ROOT / "k8s" / "service.yaml").read_text())
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [endpoint] = monitor["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    secret = endpoint["authorization"]["credentials"]
    example = (ROOT / "k8s" / "secrets.yaml.example").read_text()
    [named] = [
        one for one in yaml.safe_load_all(example) if one["metadata"]["name"] == secret["name"]
    ]
    assert secret["key"] in named["stringData"]
