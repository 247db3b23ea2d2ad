"""openai-python's own tests: through the proxy they end as they do without it.

What differs is in `known_differences.py`, test by test, and each of these tests meets the error
code that is named there. The log is asked too: the mock provider's answers are whole ones, so each
2xx is `ok` and every call has its two rows.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from known_differences import KNOWN_DIFFERENCES, why_different
from proxy_process import ProxyProcess, one_provider
from stores import DirectoryStore
from suite import CLIENT_KEY, Missing, MockProvider, OpenAISuite, Outcome

# The SDK as old as the mock provider's document, and a newer one, some of whose tests fail without
# the proxy too.
VERSIONS = ("2.38.0", "3.57.0")
LEAST_TESTS = 400


@pytest.fixture(params=VERSIONS)
def suite(request: pytest.FixtureRequest) -> OpenAISuite:
    suite = OpenAISuite(request.param)
    try:
        suite.fetch()
    except Missing as missing:
        pytest.skip(str(missing))
    return suite


async def test_the_suite_ends_through_the_proxy_as_without_it(
    suite: OpenAISuite,
    mock_provider: MockProvider,
    start_proxy: Callable[..., ProxyProcess],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = DirectoryStore(tmp_path / "objects")
    # Every model goes to the mock provider.
    config = one_provider(
        mock_provider.url, endpoint=f"{mock_provider.url}/chat/completions", models=[]
    )
    proxy = start_proxy(config, {**store.env(), "PROXY_KEY": CLIENT_KEY})
    await proxy.start()
    straight = await asyncio.to_thread(suite.run, mock_provider.url, "straight")
    relayed = await asyncio.to_thread(suite.run, f"{proxy.url}/v1", "through-the-proxy")
    await proxy.stop()

    assert straight.keys() == relayed.keys() and len(straight) >= LEAST_TESTS
    with capsys.disabled():
        print(summary(straight, relayed))
    if found := [*unexplained(straight, relayed), *wrong_rows(store)]:
        pytest.fail("\n".join(found), pytrace=False)


def summary(straight: dict[str, Outcome], relayed: dict[str, Outcome]) -> str:
    """The counts, and those of the known differences by reason."""
    counts = [sum(outcome.passed for outcome in run.values()) for run in (straight, relayed)]
    known: Counter[str] = Counter()
    for test, outcome in straight.items():
        if (difference := why_different(test)) and outcome.passed and not relayed[test].passed:
            known[f"{', '.join(difference.calls)}: {difference.code}"] += 1
    lines = (f"    {count:4} {reason}" for reason, count in known.items())
    return (
        f"\n{len(straight)} tests: {counts[0]} pass without the proxy, {counts[1]} through it; "
        f"{known.total()} known differences:\n" + "\n".join(lines)
    )


def unexplained(straight: dict[str, Outcome], relayed: dict[str, Outcome]) -> list[str]:
    """A line for each test that differs without a known reason, or does not where it should."""
    lines = []
    for test, without in straight.items():
        through, difference = relayed[test], why_different(test)
        if difference is not None:
            if through.code != difference.code:
                lines.append(f"{test}: not {difference.code}, but {through}")
        elif without.passed != through.passed:
            lines.append(f"{test}: {without} without the proxy, through it {through}")
    unused = [known for known in KNOWN_DIFFERENCES if not any(map(known.covers, straight))]
    return [*lines, *(f"no test any more for {known}" for known in unused)]


def wrong_rows(store: DirectoryStore) -> list[str]:
    """A line for each 2xx that is not `ok`, and for each call without its two rows."""
    rows = [json.loads(line) for _, data in store.objects() for line in data.splitlines()]
    kinds: dict[str, list[str]] = {}
    lines = []
    for row in rows:
        if row["type"] in ("request", "response"):
            kinds.setdefault(row["request_id"], []).append(row["type"])
        if row["type"] == "response" and row["status"] == 200 and row["outcome"] != "ok":
            lines.append(json.dumps(row))
    lines += [f"{call}: {found}" for call, found in kinds.items() if len(found) != 2]
    return lines if kinds else ["there are no rows"]
