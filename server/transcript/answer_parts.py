"""JSON documents of every known shape, added to one assembly."""

from collections.abc import Callable

from open_llm_proxy.server.json_text import NotJSON, decode_json, encode_json
from open_llm_proxy.server.transcript.assembly import Assembly
from open_llm_proxy.server.transcript.chat import add_answer, fit_answer, read_answer
from open_llm_proxy.server.transcript.errors_in_answers import error_in, event_error
from open_llm_proxy.server.transcript.event_reader import Document
from open_llm_proxy.server.transcript.reduced_json import ReducedJSON
from open_llm_proxy.server.transcript.responses import ResponseParts

# Of JSON that may mean something, with white space or a byte order mark in front.
_BEGINNINGS = frozenset([b"[", b" ", b"\t", b"\r", b"\n", b"\xef"])


class AnswerParts:
    """Adds what documents say. All methods return False for what they could not understand."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._responses = ResponseParts(assembly)

    def add_event(self, document: Document, name: bytes = b"") -> bool:
        """Take the data of one stream event of that name."""
        if isinstance(document, ReducedJSON):
            return self._add_reduced(document, lambda text: self.add_event(text, name))
        first = document[:1]
        if first != b"{":
            if document.lstrip(b" \t").startswith(b"[DONE]"):
                self._assembly.saw_done = True
                return True
            if first not in _BEGINNINGS:
                return False
        try:
            answer = read_answer(document)
            kind = answer.type
            if kind is None and name.startswith(b"response."):
                kind = name.decode("latin-1")
            if kind is not None and kind.startswith(("response.", "error")):
                event = decode_json(document, replace_invalid_utf8=True)
                if isinstance(event, dict) and not event.get("error"):
                    return self._add_typed(event, kind)
            if answer.object == "response":
                return self.add_value(decode_json(document, replace_invalid_utf8=True))
            return add_answer(self._assembly, answer, document)
        except NotJSON:
            return self._add_array(document)

    def add_body(self, document: Document) -> bool:
        """Take a whole body."""
        if isinstance(document, ReducedJSON):
            return self._add_reduced(document, self.add_body)
        try:
            answer = read_answer(document)
            if answer.choices is None and answer.data is None:
                return self.add_value(decode_json(document, replace_invalid_utf8=True))
            return add_answer(self._assembly, answer, document)
        except NotJSON:
            return self._add_array(document)

    def add_value(self, value: object) -> bool:
        """Take a decoded document."""
        if isinstance(value, dict) and (
            value.get("object") == "response" or isinstance(value.get("output"), list)
        ):
            self._responses.add_response(value)
            return True
        try:
            return add_answer(self._assembly, fit_answer(value), encode_json(value).encode())
        except NotJSON:
            return False

    def _add_typed(self, event: dict[str, object], kind: str) -> bool:
        if kind.startswith("error"):
            self._assembly.set_error(event_error(encode_json(event)))
            return True
        return self._responses.add_event({**event, "type": kind})

    def _add_array(self, document: bytes) -> bool:
        """Take an array that holds an error, which is how Gemini sends one."""
        try:
            error = error_in(decode_json(document, replace_invalid_utf8=True))
        except NotJSON:
            return False
        if error is not None:
            self._assembly.set_error(error)
        return error is not None

    def _add_reduced(self, reduced: ReducedJSON, add: Callable[[bytes], bool]) -> bool:
        if not reduced.is_json:
            return False
        assembly = self._assembly
        assembly.reads_reduced = True
        is_understood = add(reduced.document())
        assembly.reads_reduced = False
        assembly.budget.is_exceeded |= reduced.is_cut
        if reduced.has_gaps:
            assembly.mark_gaps(reduced.size)
        return is_understood
