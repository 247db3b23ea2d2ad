"""How one call went: filled in by the relay while it goes, written into the closing entry.

Every change of it is a method here, so that one page shows what a call can become.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from open_llm_proxy.archive.entry import Outcome
from open_llm_proxy.server.transcript.transcript import Transcript
from open_llm_proxy.server.transcript.usage import Usage
from open_llm_proxy.server.upstream.request import Attempts


@dataclass(slots=True)
class CallResult:
    """The default is a call that never got an answer.

    `status` is the one that the client sees, or None. `started` and all `…_at` are monotonic times;
    `deadline` names the time-out that ended the call. `token_counts` outlive the transcript;
    `attempts` are counted by the upstream client.
    """

    started: float = field(default_factory=time.monotonic)
    outcome: Outcome = "interrupted"
    status: int | None = None
    deadline: str | None = None
    forwarded_at: float | None = None
    first_content_at: float | None = None
    provider_ended_at: float | None = None
    error: str | None = None
    upstream_headers: Mapping[str, str] | None = None
    upstream_request_id: str | None = None
    transcript: Transcript | None = None
    token_counts: Usage | None = None
    response_bytes: int | None = None
    attempts: Attempts = field(default_factory=Attempts)

    @classmethod
    def rejected(cls, status: int, error: str) -> "CallResult":
        """A call that the proxy itself refused."""
        return cls(outcome="rejected", status=status, error=error)

    def forwarded(self) -> None:
        """The opening entry is durable, and the provider is called now."""
        self.forwarded_at = time.monotonic()

    def provider_ended(self) -> None:
        """Nothing more comes from the provider."""
        self.provider_ended_at = time.monotonic()

    def answered(
        self, status: int, request_id: str | None, headers: Mapping[str, str] | None
    ) -> None:
        """The head of the provider's answer is there; `headers` are those to be logged."""
        self.status = status
        self.upstream_request_id = request_id
        self.upstream_headers = headers

    def bytes_came(self, count: int) -> None:
        """So many more bytes of the provider's body have arrived."""
        self.response_bytes = (self.response_bytes or 0) + count

    def content_came(self) -> None:
        """Content of a stream, or anything of a whole answer, is there; the first time counts."""
        if self.first_content_at is None:
            self.first_content_at = time.monotonic()

    def ended(
        self,
        outcome: Outcome,
        error: str | None = None,
        *,
        status: int | None = None,
        deadline: str | None = None,
    ) -> None:
        """The call is over. `status` is given where the client gets another than the provider's."""
        self.outcome, self.error, self.deadline = outcome, error, deadline
        if status is not None:
            self.status = status

    def forget_texts(self) -> None:
        """The closing entry has the transcript, and may wait for the disk."""
        if (transcript := self.transcript) is not None:
            self.token_counts = Usage(
                transcript.prompt_tokens,
                transcript.completion_tokens,
                transcript.total_tokens,
                transcript.cached_tokens,
                transcript.reasoning_tokens,
            )
        self.transcript = None

    def overhead_seconds(self, closed_at: float) -> float | None:
        """What the proxy added to a call that was forwarded, up to its durable closing entry."""
        if self.forwarded_at is None or self.provider_ended_at is None:
            return None
        after = max(0.0, closed_at - self.provider_ended_at)
        return self.forwarded_at - self.started + after

    def without_texts(self, error: str) -> "CallResult":
        """What can be logged of it in any case; the texts are what may fail."""
        return dataclasses.replace(
            self, error=error, upstream_headers=None, upstream_request_id=None, transcript=None
        )
