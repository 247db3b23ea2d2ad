"""A bucket's name that was corrected: what no byte was ever sent to holds no row back."""

from collections.abc import Callable

import pytest

import calls
import oracle
import wire
from proxy_process import PROXY_KEY, ProxyProcess, one_provider
from scripted_provider import ProviderProcess
from stores import S3Store
from waiting import wait_until

CALLS = 6

pytestmark = pytest.mark.timeout(seconds=120)


@pytest.mark.parametrize("wrong", ["no-bucket", "nobody-there", "tls-to-plain-http"])
async def test_rows_of_a_wrong_bucket_are_uploaded_once_its_name_is_corrected(
    wrong: str,
    start_proxy: Callable[..., ProxyProcess],
    provider_process: ProviderProcess,
    moto_store: S3Store,
) -> None:
    right = moto_store.env()
    mistakes: dict[str, dict[str, str | None]] = {
        "no-bucket": {},
        "nobody-there": {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{wire.free_port()}"},
        "tls-to-plain-http": {
            "AWS_ENDPOINT_URL_S3": moto_store.server.endpoint.replace("http:", "https:")
        },
    }
    settings = {**right, "LOG_BUCKET": "logs-placeholder", **mistakes[wrong]}
    proxy = start_proxy(one_provider(provider_process.url), settings)
    record = calls.CallRecord()

    async def upload_failed() -> bool:
        log = (await proxy.health())["log"]
        return bool(log["upload_failures"]) and not log["open_calls"]

    await proxy.start()
    await calls.Caller(proxy.url, PROXY_KEY).send_all(range(CALLS), record)
    await wait_until(upload_failed, "an upload fails", 30)
    assert await proxy.stop() == 0
    assert list(moto_store.objects()) == []
    proxy.settings.update(right)
    await proxy.start()
    await proxy.drained()
    assert await proxy.stop() == 0
    assert len(record.answered) == CALLS
    verdict = oracle.judge(
        moto_store.objects(),
        answered=record.answered,
        seen=provider_process.seen(),
        sent=record.sent,
        window_seconds=1,
    )
    assert not verdict.violations, str(verdict)
