"""Proxy keys in a secret of their own, on a real cluster: mounted, and followed as they change."""

from collections.abc import Awaitable, Callable

import httpx

from cluster import DEPLOYMENT
from cluster_trial import Trial
from proxy_process import PROXY_KEY
from waiting import wait_until

# A kubelet looks at mounted secrets once a minute or so.
FOLLOWED_WITHIN_SECONDS = 180.0


async def test_a_named_key_is_followed_without_a_restart(
    new_trial: Callable[..., Awaitable[Trial]],
) -> None:
    cluster = (await new_trial(DEPLOYMENT, with_store=False)).cluster
    await cluster.apply()
    await cluster.rolled_out()
    pods = await cluster.pods()
    url = await cluster.url()

    async def status(key: str) -> int:
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            headers = {"Authorization": f"Bearer {key}"}
            return (await client.get(f"{url}/v1/models", headers=headers)).status_code

    async def known() -> bool:
        return await status("key-of-alice") == 200

    async def unknown() -> bool:
        return await status("key-of-alice") == 401

    assert await unknown()
    await cluster.secret("open-llm-proxy-keys", {"alice": "key-of-alice"})
    await wait_until(known, "the new key is taken", FOLLOWED_WITHIN_SECONDS, 1.0)
    await cluster.secret("open-llm-proxy-keys", {"bob": "key-of-bob"})
    await wait_until(unknown, "the revoked key is refused", FOLLOWED_WITHIN_SECONDS, 1.0)
    assert await status("key-of-bob") == await status(PROXY_KEY) == 200
    assert await cluster.pods() == pods
