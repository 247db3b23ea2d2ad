"""What the model answered, assembled from the provider's bytes while they pass to the client.

A `TranscriptReader` is fed the same chunks that the client gets and gives a `Transcript` at the
end, or whenever the call ends. It promises that nothing a provider sends raises out of `feed` or
`finish`; that what is understood is in the transcript and what is not is in its ``raw_text``;
and that it keeps no more than the cap and a constant. A stream is assembled event by event. Any
other body is collected and read at the end; one that broke off, or was longer than the cap, is
read as far as it goes.

Decoded JSON can take many times the room of its text for a moment, where a provider sends an
odd shape; ordinary shapes do not.
"""

import re

from open_llm_proxy.archive.text import cut_mark
from open_llm_proxy.server.json_text import (
    NotJSON,
    decode_cut_json,
    decode_json,
    decode_leading_json,
    encode_json,
    whole_characters,
)
from open_llm_proxy.server.transcript.assembly import Assembly, Transcript
from open_llm_proxy.server.transcript.chat import add_answer, fit_answer, read_answer
from open_llm_proxy.server.transcript.content_coding import Inflation
from open_llm_proxy.server.transcript.event_reader import EventReader
from open_llm_proxy.server.transcript.responses import ResponseParts

_MIN_EVENT_BYTES = 1 << 20  # a last event repeats the whole answer in the responses API
_MIN_DECODED_BYTES = 64 << 20
_TAIL_BYTES = 16384
_EVENT_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
_FINISH_REASON = re.compile(rb'"finish_reason"\s*:\s*"(\w{1,64})"')
_LAST_EVENT = re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed)"')
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')


class TranscriptReader:
    """Reads one answer. Make it with `make_transcript_reader`."""

    def __init__(
        self, body: "_StreamBody | _WholeBody", inflation: Inflation | None, coding: str | None
    ) -> None:
        self._body = body
        self._inflation = inflation
        self._unknown_coding = coding
        self._bytes = 0
        self._transcript: Transcript | None = None

    @property
    def first_content_seen(self) -> bool:
        """Whether a stream has brought text, reasoning or a tool call yet."""
        return self._body.assembly.content_seen

    @property
    def saw_done(self) -> bool:
        """Whether a stream has brought ``[DONE]``, or the last event of the responses API."""
        return self._body.assembly.saw_done

    @property
    def saw_last_event(self) -> bool:
        """Whether a stream has brought the last event of the responses API."""
        return self._body.assembly.saw_last_event

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body, still in their content coding."""
        self._bytes += len(chunk)
        if self._unknown_coding is not None:
            return
        if self._inflation is None:
            self._body.feed(chunk)
        else:
            for piece in self._inflation.feed(chunk):
                self._body.feed(piece)

    def finish(self) -> Transcript:
        """Return the transcript of what has arrived; the same one when asked again."""
        if self._transcript is None:
            self._transcript = self._finish()
        return self._transcript

    def _finish(self) -> Transcript:
        if self._unknown_coding is not None:
            coding = encode_json(self._unknown_coding[:100])
            note = f"[{self._bytes} bytes in content coding {coding}, which is not decoded here]"
            return Transcript(raw_text=note if self._bytes else None)
        transcript = self._body.finish()
        if self._inflation is not None and self._inflation.problem is not None:
            transcript.truncated = True
            note = f"[{self._inflation.problem}]"
            transcript.raw_text = "\n".join(filter(None, [transcript.raw_text, note]))
        return transcript


def make_transcript_reader(
    content_type: str | None, content_encoding: str | None, max_bytes: int
) -> TranscriptReader:
    """Make the reader for a body with these two headers.

    ``max_bytes`` caps all texts of the transcript together, counted as UTF-8. Codings other than
    gzip and deflate are not decoded; ``raw_text`` then says so.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    is_stream = media_type == "text/event-stream"
    body = _StreamBody(max_bytes) if is_stream else _WholeBody(max_bytes)
    coding = (content_encoding or "").strip().lower()
    if coding in ("", "identity"):
        return TranscriptReader(body, None, None)
    if coding in ("gzip", "x-gzip", "deflate"):
        inflation = Inflation(max(16 * max_bytes, _MIN_DECODED_BYTES))
        return TranscriptReader(body, inflation, None)
    return TranscriptReader(body, None, coding)


class _AnswerParts:
    """Adds JSON documents of every known shape to one assembly."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._responses = ResponseParts(assembly)

    def add_event(self, document: bytes) -> bool:
        """Take the data of one stream event; False if it could not be understood."""
        if document.startswith(b"[DONE]"):
            self._assembly.saw_done = True
            return True
        try:
            answer = read_answer(document)
            if answer.type is not None and answer.type.startswith(("response.", "error")):
                event = decode_json(document, replace_invalid_utf8=True)
                if isinstance(event, dict) and not event.get("error"):
                    return self._responses.add_event(event)
            return add_answer(self._assembly, answer, document)
        except NotJSON:
            return False

    def add_body(self, document: bytes) -> bool:
        """Take a whole body; False if it could not be understood."""
        try:
            answer = read_answer(document)
            if answer.object == "response":
                return self.add_value(decode_json(document, replace_invalid_utf8=True))
            return add_answer(self._assembly, answer, document)
        except NotJSON:
            return False

    def add_value(self, value: object) -> bool:
        """Take a decoded body; False if it could not be understood."""
        if isinstance(value, dict) and value.get("object") == "response":
            self._responses.add_response(value)
            return True
        try:
            return add_answer(self._assembly, fit_answer(value), encode_json(value).encode())
        except NotJSON:
            return False


class _StreamBody:
    """Assembles a stream; one that holds no event at all is read as an ordinary body."""

    def __init__(self, max_bytes: int) -> None:
        self.assembly = Assembly(max_bytes)
        self._parts = _AnswerParts(self.assembly)
        self._events = EventReader(max(max_bytes, _MIN_EVENT_BYTES))
        self._dropped_events = 0
        self._body_instead: _WholeBody | None = _WholeBody(max_bytes, may_be_stream=False)

    def feed(self, chunk: bytes) -> None:
        self._take(self._events.feed(chunk))
        if self._events.dropped_events > self._dropped_events:
            self._dropped_events = self._events.dropped_events
            if _LAST_EVENT.search(self._events.dropped_head):
                # What it repeats may be left out, but not that it came.
                self.assembly.saw_done = self.assembly.saw_last_event = True
        if self._body_instead is not None:
            self._body_instead.feed(chunk)

    def finish(self) -> Transcript:
        self._take(self._events.finish())
        if self._events.dropped_events:
            self.assembly.budget.is_exceeded = True
        elif self._body_instead is not None:
            return self._body_instead.finish()
        return self.assembly.build()

    def _take(self, events: list[bytes]) -> None:
        for event in events:
            self._body_instead = None
            if not self._parts.add_event(event):
                if self.assembly.raw:
                    self.assembly.raw.add("\n")
                self.assembly.raw.add(event.decode("utf-8", "replace"))


class _WholeBody:
    """Collects a body up to the cap, and its last bytes, and reads it at the end."""

    def __init__(self, max_bytes: int, *, may_be_stream: bool = True) -> None:
        self.assembly = Assembly(max_bytes)
        self._max_bytes = max_bytes
        self._may_be_stream = may_be_stream
        self._head = bytearray()
        self._tail = bytearray()
        self._bytes = 0

    def feed(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        room = self._max_bytes - len(self._head)
        if room > 0:
            self._head += chunk[:room]
        if len(chunk) > room:
            self._tail += chunk[max(room, len(chunk) - _TAIL_BYTES) :]
            if len(self._tail) > 2 * _TAIL_BYTES:
                del self._tail[:-_TAIL_BYTES]

    def finish(self) -> Transcript:
        head = bytes(self._head)
        is_cut = self._bytes > len(head)
        self.assembly.budget.is_exceeded = is_cut
        parts = _AnswerParts(self.assembly)
        if not is_cut and parts.add_body(head):
            return self.assembly.build()
        start = head[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
        if start.startswith(_EVENT_FIELDS):
            if not self._may_be_stream:
                return self.assembly.build()  # comments and fields without an event
            transcript = self._read_as_stream(head, is_cut)
            if transcript != Transcript(truncated=transcript.truncated):
                return transcript
        if self._add_beginning(parts, head, is_cut):
            return self.assembly.build()
        text = whole_characters(head) if is_cut else head.decode("utf-8", "replace")
        if head.strip() or is_cut:
            self.assembly.raw.add(text)
        transcript = self.assembly.build()
        if is_cut:
            mark = cut_mark(self._bytes, "bytes")
            transcript.raw_text = (transcript.raw_text or "") + mark
        return transcript

    def _add_beginning(self, parts: _AnswerParts, head: bytes, is_cut: bool) -> bool:
        """Read a body that ends too early, by the cap or by itself."""
        try:
            value = decode_cut_json(head, cut_mark(self._bytes, "bytes") if is_cut else "")
        except NotJSON:
            return False
        if not value or not parts.add_value(value):
            return False
        if is_cut:
            self._add_end(bytes(self._tail))
        return True

    def _add_end(self, tail: bytes) -> None:
        """Read what stands behind the text: usage and finish reason, if they are near the end."""
        finish_reasons = _FINISH_REASON.findall(tail)
        choice = self.assembly.choices.get(0)
        if finish_reasons and choice is not None and choice.finish_reason is None:
            self.assembly.set_finish_reason(choice, finish_reasons[-1].decode())
        usages = list(_USAGE.finditer(tail))
        if usages and self.assembly.usage is None:
            try:
                usage = decode_leading_json(tail[usages[-1].end() :])
            except NotJSON:
                return
            self.assembly.usage = encode_json(usage).encode()

    def _read_as_stream(self, head: bytes, is_cut: bool) -> Transcript:
        """Read a stream that came without its content type."""
        stream = _StreamBody(self._max_bytes)
        stream.feed(head)
        transcript = stream.finish()
        transcript.truncated |= is_cut
        return transcript
