"""The answers of the responses API: a whole response, or its stream of typed events.

A stream says everything up to three times: in deltas, in the item that they build, and in the
response that ends it. The deltas are collected, as they are all there is of a broken stream; the
later forms only fill what no delta told. Some gateways leave out the deltas, the items or the
output of the last response.
"""

from dataclasses import replace

from open_llm_proxy.server.json_text import encode_json
from open_llm_proxy.server.transcript.assembly import Assembly, ChoiceParts
from open_llm_proxy.server.transcript.content_parts import content_text, describe_part, thought_text
from open_llm_proxy.server.transcript.errors_in_answers import error_text
from open_llm_proxy.server.transcript.tool_calls import CallParts, CallPiece

_CALL_TYPES = ("function_call", "custom_tool_call", "mcp_call")
_CALL_TEXTS = (
    "response.function_call_arguments",
    "response.custom_tool_call_input",
    "response.mcp_call_arguments",
)
_CONTENT_TEXTS = ("response.output_text", "response.refusal", "response.audio.transcript")
# Members of the event that ends such a text.
_WHOLE_TEXTS = ("text", "refusal", "arguments", "input")
_FINAL_EVENTS = ("response.completed", "response.incomplete", "response.failed")


class ResponseParts:
    """Adds responses and their events to an assembly, as its one choice."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._choice: ChoiceParts | None = None
        self._last_content_part: object = None
        self._last_reasoning_part: object = None
        self._had_content = False  # told by deltas, or by the events that end a text
        self._had_reasoning = False
        self._had_delta = False
        self._calls: dict[object, CallParts] = {}  # by the ids of their items

    def add_event(self, event: dict[str, object]) -> bool:
        """Take one event of a stream; False if it is none of this API."""
        kind = event.get("type")
        if not isinstance(kind, str) or not kind.startswith("response."):
            return False
        response, item = event.get("response"), event.get("item")
        if isinstance(response, dict):
            if kind in _FINAL_EVENTS:
                self.add_response(response)
            self._set_id(response)
        if kind in _FINAL_EVENTS:
            self._assembly.saw_done = self._assembly.saw_last_event = True
        elif kind == "response.output_item.added" and isinstance(item, dict):
            if item.get("type") in _CALL_TYPES:
                self._begin_call(item, event.get("output_index"))
        elif kind == "response.output_item.done" and isinstance(item, dict):
            self._add_item(item, event.get("output_index"))
        elif kind.endswith(".delta"):
            delta = event.get("delta")
            self._add_text(
                kind[:-6], event, delta.get("text") if isinstance(delta, dict) else delta
            )
        elif kind.endswith(".done"):
            whole = next((event[name] for name in _WHOLE_TEXTS if name in event), None)
            self._add_text(kind[:-5], event, whole, is_whole=True)
        return True

    def add_response(self, response: dict[str, object]) -> None:
        """Take a whole response; its output only where no delta has told it."""
        self._set_id(response)
        output = response.get("output")
        if output or isinstance(response.get("status"), str):
            self._assembly.find("response")
        choice = self._only_choice()
        if isinstance(output, list) and not choice:
            for index, item in enumerate(output):
                if isinstance(item, dict):
                    self._add_item(item, index)
        details = response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        reason = reason or response.get("status")
        if isinstance(reason, str):
            self._assembly.set_finish_reason(choice, reason)
        if response.get("usage"):
            self._assembly.add_usage(encode_json(response["usage"]).encode())
        error = error_text(response.get("error"))
        if error is not None:
            self._assembly.set_error(error)

    def _set_id(self, response: dict[str, object]) -> None:
        self._assembly.set_response_id(_text(response.get("id")) or "")

    def _only_choice(self) -> ChoiceParts:
        if self._choice is None:
            choice = self._assembly.choice(0)
            # None only where a stream mixes in as many chat choices as are kept.
            self._choice = self._assembly.new_choice() if choice is None else choice
        return self._choice

    def _add_text(
        self, name: str, event: dict[str, object], text: object, *, is_whole: bool = False
    ) -> None:
        """Take a delta of a text, or the whole text where no delta has told of it."""
        if not isinstance(text, str) or not text:
            return
        self._had_delta |= not is_whole
        index = event.get("output_index")
        part = (index, event.get("content_index"), event.get("summary_index"))
        if name in _CALL_TEXTS:
            call = self._call_at(event.get("item_id"), index)
            if not (is_whole and call is not None and call.arguments):
                self._add_call(
                    index, call, CallPiece(name=_text(event.get("name")), arguments=text)
                )
        elif is_whole and self._had_delta:
            return
        elif name in _CONTENT_TEXTS:
            self._had_content = True
            self._add_content(part, text)
        elif name.startswith("response.reasoning"):
            self._had_reasoning = True
            self._add_reasoning(part, text)

    def _add_item(self, item: dict[str, object], index: object) -> None:
        """Take a finished item of the output: a message, a call, a reasoning, an image."""
        kind = item.get("type")
        if kind in _CALL_TYPES:
            self._fill_call(item, index)
        elif kind == "message" and not self._had_content:
            for number, part in enumerate(_parts(item.get("content"))):
                text = content_text(part)
                if text:
                    self._add_content((index, number), text)
        elif kind == "reasoning" and not self._had_reasoning:
            parts = [*_parts(item.get("summary")), *_parts(item.get("content"))]
            for number, part in enumerate(parts):
                text = thought_text(part)
                if text:
                    self._add_reasoning((index, number), text)
        elif kind == "image_generation_call":
            self._add_content((index, "image"), describe_part(item))

    def _add_content(self, part: object, text: str) -> None:
        choice = self._found_choice()
        if choice.content and part != self._last_content_part:
            self._assembly.add_content(choice, "\n\n")
        self._last_content_part = part
        self._assembly.add_content(choice, text)

    def _add_reasoning(self, part: object, text: str) -> None:
        choice = self._found_choice()
        if choice.reasoning and part != self._last_reasoning_part:
            self._assembly.add_reasoning(choice, "\n\n")
        self._last_reasoning_part = part
        self._assembly.add_reasoning(choice, text)

    def _found_choice(self) -> ChoiceParts:
        self._assembly.find("response")
        return self._only_choice()

    def _call_at(self, item_id: object, index: object) -> CallParts | None:
        """Return the call of that item; where nobody says which, the last one."""
        calls = self._only_choice().calls
        return self._calls.get(item_id) if item_id in self._calls else calls.at(index)

    def _begin_call(self, item: dict[str, object], index: object) -> None:
        piece = CallPiece(None, _call_id(item), _text(item.get("name")))
        call, item_id = self._add_call(index, None, piece), item.get("id")
        if call is not None and isinstance(item_id, str):
            self._calls[item_id] = call

    def _fill_call(self, item: dict[str, object], index: object) -> None:
        """Take a finished call: what no delta has told of it."""
        call_id, call = _call_id(item), self._call_at(_text(item.get("id")), index)
        if call is not None and not isinstance(index, int) and call.id not in (None, call_id):
            call = None  # the last one, where no index is given, is another
        arguments = item.get("arguments") or item.get("input")
        told = call is not None and bool(call.arguments)
        text = None if told or not arguments else _text(arguments)
        self._add_call(index, call, CallPiece(None, call_id, _text(item.get("name")), text))

    def _add_call(
        self, index: object, call: CallParts | None, piece: CallPiece
    ) -> CallParts | None:
        number = index if isinstance(index, int) else None
        is_cut = self._assembly.reads_reduced
        piece = replace(piece, index=number)
        return self._found_choice().calls.add(call, piece, is_cut=is_cut)


def _parts(content: object) -> list[object]:
    if isinstance(content, list):
        return content
    return [] if content is None else [content]


def _call_id(item: dict[str, object]) -> str | None:
    return _text(item.get("call_id") or item.get("id"))


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else encode_json(value)
