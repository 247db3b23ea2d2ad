"""A namespace of a cluster with its provider and its store, and the verdict on both."""

from dataclasses import dataclass

import oracle
from cluster import Cluster
from rollout_load import RolloutLoad
from scripted_provider import ProviderProcess
from store_faults import FaultyProxy
from stores import S3Store
from waiting import DeadlinePassed, wait_until


@dataclass
class Trial:
    """`passage` leads to the store, and can be closed."""

    cluster: Cluster
    provider: ProviderProcess
    store: S3Store
    passage: FaultyProxy
    window_seconds: int = 300

    async def all_uploaded(
        self, load: RolloutLoad, timeout_seconds: float = 120.0
    ) -> oracle.Verdict:
        """Have everything uploaded and return the oracle's verdict, without violations."""

        async def right() -> oracle.Verdict | None:
            await self.cluster.upload_now()
            verdict = self.verdict(load)
            return verdict if not verdict.violations else None

        try:
            return await wait_until(right, "every row is in the store", timeout_seconds, 2.0)
        except DeadlinePassed as error:
            raise DeadlinePassed(f"{error}\n{self.verdict(load)}") from None

    def verdict(self, load: RolloutLoad) -> oracle.Verdict:
        return load.verdict(self.store.objects(), self.provider.seen(), self.window_seconds)
