"""What the model answered, assembled from the provider's bytes while they pass to the client.

A `TranscriptReader` is fed the same chunks that the client gets and gives a `Transcript` at the
end, or whenever the call ends. It promises that nothing a provider sends raises out of `feed` or
`finish`; that the facts of an answer (usage, finish reason, its end, that there was text, a tool
call, reasoning) are read from whatever size; that what is not understood is in ``raw_text``; and
that it keeps no more than a few times the cap. A stream is assembled event by event. Any other
body is collected and read at the end; one that broke off is read as far as it goes.

Decoded JSON can take many times the room of its text for a moment, where a provider sends an
odd shape; ordinary shapes do not.
"""

from collections.abc import Iterable, Iterator

from open_llm_proxy.server.json_text import encode_json
from open_llm_proxy.server.transcript.assembly import Assembly
from open_llm_proxy.server.transcript.body_kind import kind_by_bytes, kind_by_type
from open_llm_proxy.server.transcript.content_coding import DECODED_CODINGS, Inflation, coding_of
from open_llm_proxy.server.transcript.document_body import DocumentBody
from open_llm_proxy.server.transcript.stream_body import StreamBody
from open_llm_proxy.server.transcript.transcript import Evidence, Transcript

_MIN_DECODED_BYTES = 64 << 20
STEP_BYTES = 16_384
"""So much is read at a time; of JSON it can be 5,000 values."""


class TranscriptReader:
    """Reads the body of an answer with these two headers.

    ``max_bytes`` caps all texts of the transcript together, counted as UTF-8. Codings other than
    gzip and deflate are not decoded; the transcript then says so.
    """

    def __init__(
        self, content_type: str | None, content_encoding: str | None, max_bytes: int
    ) -> None:
        coding = coding_of(content_encoding)
        self.is_coded = coding != ""
        self._max_bytes = max_bytes
        self._bytes = 0
        self._head = b""  # while it is not known what the body is
        self._body: StreamBody | DocumentBody | None = None
        self.stream: Assembly | None = None  # what has come of an event stream
        self._inflation: Inflation | None = None
        self._unknown_coding: str | None = None
        self._transcript: Transcript | None = None
        if coding in DECODED_CODINGS:
            self._inflation = Inflation(coding, max(16 * max_bytes, _MIN_DECODED_BYTES))
        elif coding:
            self._unknown_coding = coding
        kind = kind_by_type(content_type)
        if kind is None and self._unknown_coding is not None:
            kind = "document"
        if kind is not None:
            self._begin(kind == "stream")

    @property
    def is_stream(self) -> bool | None:
        """Whether the body is an event stream; None while neither header nor bytes tell."""
        return None if self._body is None else self.stream is not None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body, still in their content coding.

        What comes after `finish` is not read any more.
        """
        if not self.is_coded and len(chunk) <= STEP_BYTES and self._transcript is None:
            self._bytes += len(chunk)
            body = self._body
            for _ in self._feed(chunk) if body is None else body.feed(chunk):
                pass
            return
        for _ in self.feed_in_steps(chunk):
            pass

    def feed_in_steps(self, chunk: bytes) -> Iterator[None]:
        """The same, a little work at a time."""
        self._bytes += len(chunk)
        if self._unknown_coding is not None:
            return
        for piece in self._inflation.feed(chunk) if self._inflation else _slices(chunk):
            if self._transcript is not None:
                return
            yield from self._feed(piece)
            yield

    def finish(self) -> Transcript:
        """Return the transcript of what has arrived; the same one when asked again."""
        if self._transcript is None:
            self._transcript = self._finish()
        return self._transcript

    def _begin(self, is_stream: bool) -> StreamBody | DocumentBody:
        if not is_stream:
            self._body = DocumentBody(self._max_bytes)
            return self._body
        self._body = body = StreamBody(self._max_bytes)
        self.stream = body.assembly
        return body

    def _feed(self, data: bytes) -> Iterable[None]:
        if self._body is not None:
            return self._body.feed(data)
        data = self._head + data
        kind = kind_by_bytes(data)
        if kind is None:
            self._head = data
            return ()
        self._head = b""
        return self._begin(kind == "stream").feed(data)

    def _finish(self) -> Transcript:
        if self._unknown_coding is not None:
            coding = encode_json(self._unknown_coding[:100])
            note = f"[{self._bytes} bytes in content coding {coding}, which is not decoded here]"
            evidence = Evidence(is_stream=self.is_stream is True, is_unread=True)
            return Transcript(content=note if self._bytes else None, evidence=evidence)
        if self._body is None:
            self._begin(is_stream=False).feed(self._head)
        assert self._body is not None, "it has begun"
        transcript = self._body.finish()
        inflation = self._inflation
        if inflation is not None and inflation.is_mislabelled and transcript.error is None:
            transcript.error = "the body is not compressed, although its Content-Encoding says so"
        if inflation is not None and inflation.problem is not None:
            transcript.truncated = True
            transcript.evidence.is_unread = inflation.is_too_large
            note = f"[{inflation.problem}]"
            transcript.raw_text = "\n".join(filter(None, [transcript.raw_text, note]))
        return transcript


def _slices(chunk: bytes) -> Iterator[bytes]:
    if len(chunk) <= STEP_BYTES:
        return iter((chunk,))
    return (chunk[start : start + STEP_BYTES] for start in range(0, len(chunk), STEP_BYTES))
