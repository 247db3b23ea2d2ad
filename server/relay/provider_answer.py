"""What a provider answers: which of it the client may have now, and what it means for the log.

It is fed the answer's pieces and gives back what may be written to the client; the end stays
here until the closing entry is durable. Nothing here waits or does I/O.
"""

from tornado.httputil import HTTPHeaders

from open_llm_proxy.archive.entry import Outcome
from open_llm_proxy.server.relay import header_policy
from open_llm_proxy.server.relay.held_end import HeldBodyEnd, HeldStreamEnd
from open_llm_proxy.server.transcript.assembly import Transcript
from open_llm_proxy.server.transcript.reader import TranscriptReader, make_transcript_reader

ERROR_BODY_BYTES = 4096
_NO_CODING = ("", "identity")
# The codings that a transcript can be read through.
_READ_CODINGS = (*_NO_CODING, "gzip", "x-gzip", "deflate")
# Redirects only where they name another URL (RFC 9110, sections 15.4.1 and 15.4.5).
_NO_REDIRECT = (300, 304)


class ProviderAnswer:
    """One answer: made from its head, then fed piece by piece.

    `asked_stream`: the client asked for a stream. `hide_usage`: the proxy asked for the usage of
    a stream on its own account.
    """

    def __init__(
        self,
        status: int,
        headers: HTTPHeaders,
        *,
        api_key: str,
        asked_stream: bool,
        hide_usage: bool,
        transcript_max_bytes: int,
    ) -> None:
        content_type = headers.get("Content-Type", "")
        self.status = status
        self.is_complete = False  # a stream has told of its completion: no fault can undo it
        self.content_seen = False  # a stream has brought text, reasoning or a tool call
        self.is_stream = content_type.lower().startswith("text/event-stream")
        self._headers = headers
        self._api_key = api_key
        self._coding = headers.get("Content-Encoding", "").strip().lower()
        self._reader: TranscriptReader | None = make_transcript_reader(
            content_type, self._coding, transcript_max_bytes
        )
        self._error_body = b""
        self._end: HeldStreamEnd | HeldBodyEnd
        if self.is_stream:
            self._end = HeldStreamEnd(hide_usage=hide_usage and not self._is_coded)
        elif self._is_coded:
            self._end = HeldBodyEnd()
        elif status >= 400:
            self._end = HeldBodyEnd(masked_key=api_key)
        else:
            self._end = HeldBodyEnd(HeldStreamEnd() if asked_stream else None)

    @property
    def is_redirect(self) -> bool:
        """Whether the provider sends the client elsewhere, past the proxy and its log."""
        if self.status in _NO_REDIRECT:
            return "Location" in self._headers
        return 300 <= self.status < 400

    @property
    def is_full(self) -> bool:
        """Whether more is held than memory allows: the entry must be made durable now."""
        return self._end.is_full

    def client_headers(self) -> HTTPHeaders:
        """The headers of the client's answer."""
        headers = header_policy.to_client(self._headers, self.status, self._api_key)
        if self.is_stream:
            headers["X-Accel-Buffering"] = "no"
            headers.setdefault("Cache-Control", "no-cache")
            # With a length the last byte would be the end, and there would be nothing to hold.
            headers.pop("Content-Length", None)
        return headers

    def feed(self, data: bytes) -> bytes:
        """Take the next piece; returns what may be written to the client now."""
        is_last_event = False
        if (reader := self._reader) is not None:
            reader.feed(data)
            self.content_seen = reader.first_content_seen
            self.is_complete = self.is_stream and reader.saw_done
            # Where no line tells of the completion in time, the end of its event does.
            is_last_event = self.is_complete and (reader.saw_last_event or self._is_coded)
        if not self._is_success and len(self._error_body) < ERROR_BODY_BYTES:
            self._error_body += data[:ERROR_BODY_BYTES]
        return self._end.pass_on(data, is_complete=is_last_event)

    def held(self) -> bytes:
        """The end of the answer, to be written once the closing entry is durable."""
        return self._end.held()

    def finish(self) -> Transcript | None:
        """What the model said, as far as it has arrived; None when asked again.

        The reader goes with it, which holds the same texts in pieces.
        """
        reader, self._reader = self._reader, None
        return None if reader is None else reader.finish()

    def outcome(self, transcript: Transcript) -> tuple[Outcome, str | None]:
        """How a whole answer is called in the log, and the error that goes with it."""
        if not self._is_success:
            if transcript.error and not self._is_coded:
                # More than its message: codes, and whose limit it was.
                return "upstream_error", self._error_body[:ERROR_BODY_BYTES].decode(
                    "utf-8", "replace"
                )
            return "upstream_error", None
        if transcript.error is not None:
            return "upstream_error", None
        if self.is_stream and not self._is_finished(transcript):
            return "upstream_error", "the stream ended without a finish_reason and without [DONE]"
        return "ok", None

    @property
    def _is_coded(self) -> bool:
        return self._coding not in _NO_CODING

    @property
    def _is_success(self) -> bool:
        return 200 <= self.status < 300

    def _is_finished(self, transcript: Transcript) -> bool:
        """Whether a stream reached its end, as far as its content coding lets us see."""
        if self._coding not in _READ_CODINGS:
            return True
        if isinstance(self._end, HeldStreamEnd) and self._end.saw_completion:
            return True
        return transcript.saw_done or transcript.finish_reason is not None
