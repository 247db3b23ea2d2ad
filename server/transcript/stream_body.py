"""The body of an event stream, assembled event by event."""

import re
from collections.abc import Iterable, Iterator

from open_llm_proxy.archive.text import cut_mark
from open_llm_proxy.server.transcript.answer_parts import AnswerParts
from open_llm_proxy.server.transcript.assembly import Assembly
from open_llm_proxy.server.transcript.errors_in_answers import (
    event_error,
    is_error_name,
    is_keep_alive,
    line_error,
)
from open_llm_proxy.server.transcript.event_reader import Document, Event, EventReader
from open_llm_proxy.server.transcript.reduced_json import ReducedJSON
from open_llm_proxy.server.transcript.text_frame import TextFrame, frame_of
from open_llm_proxy.server.transcript.transcript import Transcript

_EVENT_BYTES = 1 << 18  # a longer one is reduced while it comes
_WORDS_CHARACTERS = 4000  # of a longer error, so that none of the caps behind cuts its mark
_MOST_PATIENCE = 64  # chunks between two looks, each of which costs as much as some of them
_ERROR_COMMENT = re.compile(r"\W*(?:error|exception|failed|fatal)\b", re.IGNORECASE)


class StreamBody:
    """Assembles a stream; `finish` may be called at any moment."""

    def __init__(self, max_bytes: int) -> None:
        self.assembly = Assembly(max_bytes)
        self.assembly.evidence.is_stream = True
        self._parts = AnswerParts(self.assembly)
        self._events = EventReader(_EVENT_BYTES, max_bytes)
        self._frame: TextFrame | None = None  # of the events that have come last
        self._others = 0  # chunks since, that were not in it
        self._patience = 1

    def feed(self, chunk: bytes) -> Iterable[None]:
        """Take the next bytes; what is returned does the rest of the work, a little at a time."""
        frame = self._frame
        if frame is not None and self._events.is_between_events and frame.take(chunk):
            return ()
        was_long = self._events.is_long
        events = self._events.feed(chunk)
        if was_long or self._events.is_long or any(event.is_long for event in events):
            return self._work(events)
        for event in events:
            self._take(event)
        self._others += 1
        if self._others >= self._patience and events:
            self._look_for_frame(chunk, events[-1])
        return ()

    def _look_for_frame(self, chunk: bytes, event: Event) -> None:
        """See whether more events like this one may come; less and less often, if none do."""
        self._others, self._patience = 0, min(2 * self._patience, _MOST_PATIENCE)
        if isinstance(event.data, bytes) and chunk.endswith(b"data: %b\n\n" % event.data):
            self._frame = frame_of(event.data, self.assembly) or self._frame

    def _work(self, events: list[Event]) -> Iterator[None]:
        for event in events:
            for document in (event.data, event.stray):
                if isinstance(document, ReducedJSON):
                    yield from document.work()
            self._take(event)
        yield from self._events.work()

    def finish(self) -> Transcript:
        for _ in self._work(self._events.finish()):
            pass
        return self.assembly.build()

    def _take(self, event: Event) -> None:
        if event.name and is_error_name(event.name):
            texts = map(_error_words, (event.data, event.stray, event.comments))
            text = next((text for text in texts if text.strip()), "")
            self.assembly.set_error(event_error(text) if text else event.name.decode("latin-1"))
            return
        if event.comments:
            self._take_comments(event.comments)
        if event.stray is not None:
            self._take_stray(event.stray)
        data = event.data
        if data is not None and not self._parts.add_event(data, event.name):
            self._take_unknown(data, event.name)

    def _take_comments(self, comments: bytes) -> None:
        """Remember a comment that tells of an error, in case that no whole answer comes."""
        text = comments.decode("utf-8", "replace")
        if _ERROR_COMMENT.match(text):
            self.assembly.set_doubt(text)

    def _take_stray(self, stray: Document) -> None:
        """Take lines that are no field of an event: bare JSON, or words."""
        if isinstance(stray, ReducedJSON) or stray.lstrip().startswith((b"{", b"[")):
            if self._parts.add_event(stray, b""):
                return
            if not isinstance(stray, ReducedJSON) and self._add_documents(stray):
                return
        head, size = document_head(stray)
        text = head.decode("utf-8", "replace")
        for line in text.split("\n"):
            error = line_error(line)
            if error is not None:
                self.assembly.set_error(event_error(error))
        if text.strip() and self.assembly.error is None:
            self.assembly.add_raw(head, size)
            self.assembly.evidence.has_stray_text = True

    def _add_documents(self, lines: bytes) -> bool:
        """Take several documents, one a line; False where one of them is none."""
        documents = lines.split(b"\n")
        return len(documents) > 1 and all(
            [self._parts.add_event(document, b"") for document in documents]
        )

    def _take_unknown(self, data: Document, name: bytes) -> None:
        """Keep an event that holds nothing known, but for signs of life."""
        head, size = document_head(data)
        text = head.decode("utf-8", "replace")
        if is_keep_alive(text) or (name and is_keep_alive(name.decode("latin-1"))):
            return
        self.assembly.add_raw(head, size)
        if not text.lstrip().startswith("{"):
            self.assembly.evidence.has_stray_text = True


def _error_words(reason: Document | None) -> str:
    """Return the reason that an error event gives, of a long one what is left of it."""
    if isinstance(reason, ReducedJSON) and reason.is_json:
        return reason.document().decode("utf-8", "replace")
    head, size = document_head(reason)
    text = head.decode("utf-8", "replace")
    return text if size == len(head) else text[:_WORDS_CHARACTERS] + cut_mark(size, "bytes")


def document_head(document: Document | None) -> tuple[bytes, int]:
    """Return a document and its size; of one that is too long the beginning."""
    if isinstance(document, ReducedJSON):
        return document.head, document.size
    return document or b"", len(document or b"")
