"""Events of a stream that differ in nothing but a text, read by comparing their bytes.

A stream is hundreds of events that are alike but for the few characters of a token. Of one that was
read like any other, the bytes on both sides of its text are kept; whatever comes in the same frame
then holds the same, but for the text. That takes no decoding, and one step for all events that
arrive together.

What the frame is, is proved and not guessed: the event with another text in it has to decode to
the same answer with that other text.
"""

import re
from collections.abc import Callable
from functools import partial

import msgspec

from open_llm_proxy.server.json_text import NotJSON
from open_llm_proxy.server.transcript.answer_parts import AnswerParts
from open_llm_proxy.server.transcript.assembly import Assembly
from open_llm_proxy.server.transcript.chat import read_answer
from open_llm_proxy.server.transcript.transcript import Transcript

_START, _END = b"data: ", b"\n\n"
_LF, _CR, _QUOTE, _BACKSLASH = b'\n\r"\\'  # a number is looked for faster than a byte
_OTHER_TEXT = "another text"
_SIMPLE_TEXT = re.compile(r"[ !#-\[\]-~]{1,200}")  # which JSON writes as it is
_STRING = re.compile(rb'(?:[^"\\\r\n]++|\\[^\r\n])*+')
_STRINGS = msgspec.json.Decoder(list[str])


class TextFrame:
    """The bytes on both sides of a text; `add` takes the text in between."""

    __slots__ = ("_add", "_after", "_before", "_between")

    def __init__(self, before: bytes, after: bytes, add: Callable[[str], None]) -> None:
        self._before, self._after, self._between = before, after, after + before
        self._add = add

    def take(self, events: bytes) -> bool:
        """Take whole events that are all in this frame; False where one of them is not."""
        before, after = self._before, self._after
        if not (events.startswith(before) and events.endswith(after)):
            return False
        pieces = events[len(before) : -len(after)].split(self._between)
        text = b"".join(pieces)
        if _LF in text or _CR in text or len(events) < len(self._between):
            return False
        try:
            if _QUOTE not in text and _BACKSLASH not in text:
                self._add(text.decode())
                return True
            if all(map(_STRING.fullmatch, pieces)):
                self._add("".join(_STRINGS.decode(b'["%b"]' % b'","'.join(pieces))))
                return True
        except (UnicodeDecodeError, msgspec.DecodeError):
            pass  # whoever reads the events one by one makes the best of it
        return False


def frame_of(event: bytes, assembly: Assembly) -> TextFrame | None:
    """The frame of an event with this data, if all that it does is to bring a text.

    The texts of later ones go into the first choice of `assembly`.
    """
    text = _text_in(event)
    if text is None or not _SIMPLE_TEXT.fullmatch(text):
        return None
    before, _, after = event.partition(b'"%b"' % text.encode())
    before, after = before + b'"', b'"' + after
    alone = Assembly(len(event) + len(_OTHER_TEXT))
    AnswerParts(alone).add_event(before + _OTHER_TEXT.encode() + after)
    read = alone.build()
    is_reasoning = read.content is None
    expected = Transcript(response_id=read.response_id)
    if is_reasoning:
        expected.reasoning_content = _OTHER_TEXT
    else:
        expected.content = _OTHER_TEXT
    if read != expected:
        return None
    choice = assembly.choice(0)  # `read` would tell of a gap where it was another one
    if choice is None:
        return None
    add = assembly.add_reasoning if is_reasoning else assembly.add_content
    return TextFrame(_START + before, after + _END, partial(add, choice))


def _text_in(event: bytes) -> str | None:
    try:
        choices = read_answer(event).choices
    except NotJSON:
        return None
    delta = choices[0].delta if choices else None
    if delta is None:
        return None
    return delta.content or delta.reasoning_content or delta.reasoning
