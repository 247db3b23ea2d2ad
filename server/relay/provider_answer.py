"""What a provider answers: which of it the client may have now, and what it means for the log.

It is fed the answer's pieces and gives back what may be written to the client; the end stays
here until the closing entry is durable. Nothing here waits or does I/O.
"""

from tornado.httputil import HTTPHeaders

from open_llm_proxy.archive.entry import Outcome
from open_llm_proxy.server.relay import header_policy
from open_llm_proxy.server.relay.held_end import HeldBodyEnd, HeldStreamEnd
from open_llm_proxy.server.transcript.assembly import Transcript
from open_llm_proxy.server.transcript.reader import make_transcript_reader

ERROR_BODY_BYTES = 4096
_NO_CODING = ("", "identity")
# The codings that a transcript can be read through.
_READ_CODINGS = (*_NO_CODING, "gzip", "x-gzip", "deflate")
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
        self.is_stream = content_type.lower().startswith("text/event-stream")
        self._headers = headers
        self._api_key = api_key
        self._coding = headers.get("Content-Encoding", "").strip().lower()
        self._reader = make_transcript_reader(content_type, self._coding, transcript_max_bytes)
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
        return 300 <= self.status < 400 and self.status not in _NO_REDIRECT

    @property
    def content_seen(self) -> bool:
        """Whether a stream has brought text, reasoning or a tool call yet."""
        return self._reader.first_content_seen

    @property
    def is_complete(self) -> bool:
        """Whether a stream has told of its completion, so that no fault can undo it."""
        return self.is_stream and self._reader.saw_done

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
        reader = self._reader
        reader.feed(data)
        if not self._is_success and len(self._error_body) < ERROR_BODY_BYTES:
            self._error_body += data[:ERROR_BODY_BYTES]
        # Where no line tells of the completion in time, the end of its event does.
        is_complete = self.is_complete and (reader.saw_last_event or self._is_coded)
        return self._end.pass_on(data, is_complete=is_complete)

    def held(self) -> bytes:
        """The end of the answer, to be written once the closing entry is durable."""
        return self._end.held()

    def transcript(self) -> Transcript:
        """What the model said, as far as it has arrived."""
        return self._reader.finish()

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
