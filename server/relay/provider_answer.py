"""What a provider answers: which of it the client may have now, and what it means for the log.

It is fed the answer's pieces and gives back what may be written to the client; the end stays
here until the closing entry is durable. Nothing here waits or does I/O.
"""

from collections.abc import Iterator

from open_llm_proxy.archive.entry import Outcome
from open_llm_proxy.server.http1.headers import Headers
from open_llm_proxy.server.relay import header_policy
from open_llm_proxy.server.relay.held_end import HeldBodyEnd, HeldStreamEnd
from open_llm_proxy.server.transcript.judgement import judge
from open_llm_proxy.server.transcript.reader import STEP_BYTES, TranscriptReader
from open_llm_proxy.server.transcript.transcript import AnswerKind, Transcript

# Redirects only where they name another URL (RFC 9110, sections 15.4.1 and 15.4.5).
_NO_REDIRECT = (300, 304)


class ProviderAnswer:
    """One answer: made from its head, then fed piece by piece.

    `kind` is what an answer on this route is made of. `hide_usage`: the proxy asked for the usage
    of a stream on its own account.
    """

    def __init__(
        self,
        status: int,
        headers: Headers,
        *,
        kind: AnswerKind,
        hide_usage: bool,
        transcript_max_bytes: int,
    ) -> None:
        self.status = status
        self.is_complete = False  # a stream has told of its completion: no fault can undo it
        # A stream has brought text, reasoning or a tool call; of any other body, the first byte.
        self.content_seen = False
        self._headers = headers
        self._kind: AnswerKind = kind
        self._hide_usage = hide_usage
        reader = TranscriptReader(
            headers.get("Content-Type"), headers.get("Content-Encoding"), transcript_max_bytes
        )
        self._reader: TranscriptReader | None = reader
        self.is_coded = reader.is_coded
        # Whether it is a stream; None while neither its type nor its first bytes tell.
        self.is_stream = reader.is_stream
        self._undecided = b""
        self._is_read_ahead = False
        self._end: HeldStreamEnd | HeldBodyEnd | None = None

    @property
    def is_redirect(self) -> bool:
        """Whether the provider sends the client elsewhere, past the proxy and its log."""
        if self.status in _NO_REDIRECT:
            return "Location" in self._headers
        return 300 <= self.status < 400

    @property
    def is_full(self) -> bool:
        """Whether more is held than memory allows: the entry must be made durable now."""
        return self._end is not None and self._end.is_full

    def client_headers(self) -> Headers:
        """The headers of the client's answer."""
        return header_policy.to_client(self._headers, self.status, is_stream=self.is_stream is True)

    def read_ahead(self, data: bytes) -> Iterator[None]:
        """Read a piece that is fed next, a little work at a time."""
        self._is_read_ahead = True
        if self._reader is not None:
            yield from self._reader.feed_in_steps(data)

    def feed(self, data: bytes) -> bytes:
        """Take the next piece; returns what may be written to the client now.

        That is nothing while `is_stream` is not known.
        """
        is_last_event = False
        if (reader := self._reader) is not None:
            if not self._is_read_ahead:
                reader.feed(data)
            self._is_read_ahead = False
            if (stream := reader.stream) is not None:
                self.is_stream = True
                self.content_seen = stream.content_seen
                self.is_complete = stream.saw_done
                # Where no line tells of the completion in time, the end of its event does.
                is_last_event = self.is_complete and (stream.saw_last_event or self.is_coded)
            elif reader.is_stream is None:
                self._undecided += data
                return b""
            else:
                self.is_stream = False
                self.content_seen = True
        if self._end is None:
            self._end = self._held_end()
            data, self._undecided = self._undecided + data, b""
        return self._end.pass_on(data, is_complete=is_last_event)

    def held(self) -> bytes:
        """The end of the answer, to be written once the closing entry is durable."""
        return self._undecided if self._end is None else self._end.held()

    def finish(self) -> Transcript | None:
        """What the model said, as far as it has arrived; None when asked again.

        The reader goes with it, which holds the same texts in pieces.
        """
        reader, self._reader = self._reader, None
        return None if reader is None else reader.finish()

    def outcome(self, transcript: Transcript) -> tuple[Outcome, str | None]:
        """How a whole answer is called in the log, and the error that goes with it."""
        judgement = judge(self.status, self._kind, transcript)
        return judgement.outcome, judgement.error

    def _held_end(self) -> HeldStreamEnd | HeldBodyEnd:
        if self.is_stream:
            return HeldStreamEnd(hide_usage=self._hide_usage and not self.is_coded)
        return HeldBodyEnd()

    def takes_long(self, data: bytes) -> bool:
        """Whether reading a piece may take long: a few kB of coded zeros can be many MB of lines,
        and 64 kB can be 20,000 values of JSON."""
        return self.is_coded or len(data) > STEP_BYTES
