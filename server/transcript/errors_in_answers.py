"""Errors in whatever dress a provider gives them, inside of answers that say 200.

OpenAI's shape has a member ``error``. vLLM, FastAPI and gateways send the bare object, Gemini an
array with one in it, MiniMax a ``base_resp`` beside empty choices, others a code and a message
under names of their own. An event stream may say it by the event's name, or in a bare line.
"""

import re

from open_llm_proxy.archive.text import cut_mark, split_mark, whole_pairs
from open_llm_proxy.server.json_text import NotJSON, decode_json, encode_json

# Words of a name are apart by a sign or by a capital. `response.….failed` is told by its data.
_ERROR_NAME = re.compile(
    rb"(?:.*[._-]|.*[a-z](?=[A-Z]))?(?i:errors?|exception|abort|aborted|failure|fatal)"
    rb"|(?!response\.)(?:.*[._-]|.*[a-z](?=[A-Z]))?(?i:fail|failed)"
)
_LONG_CHARACTERS = 4096
_CLIPPED_CHARACTERS = 1024
_ERROR_LINE = re.compile(r"error\s*:\s*", re.IGNORECASE)
_KEEP_ALIVES = frozenset(["ping", "pong", "heartbeat", "keepalive", "keep-alive", "keep_alive"])
# Members that make an object an error where it has no answer in it; each may say "none".
_DOUBTFUL_WORDS = ("message", "detail", "fault")
_WORDS = ("errors", "error_msg", "error_message", "errmsg", "err_msg")
_CODES = ("error_code", "errcode", "err_code")
_NO_ERROR: tuple[object, ...] = (None, False, 0, "", "0", "ok", "OK", "success", "Success", {}, [])


def is_error_name(event_name: bytes) -> bool:
    """Whether the name of an event says that it is an error."""
    return _ERROR_NAME.fullmatch(event_name) is not None


def error_text(value: object) -> str | None:
    """Return the text of a member ``error``, None where it says that there is none."""
    if isinstance(value, dict) and all(_says_none(inner) for inner in value.values()):
        return None
    if _says_none(value):
        return None
    return value if isinstance(value, str) else _words(value)


def error_in(value: object) -> str | None:
    """Return the error that a decoded document without an answer is, None if it is none."""
    if isinstance(value, list):
        return next(filter(None, map(error_in, value[:1])), None)
    if not isinstance(value, dict):
        return None
    error = error_text(value.get("error"))
    if error is not None:
        return _words(value) if error == "true" else error
    base = value.get("base_resp")
    if isinstance(base, dict) and not _says_none(base.get("status_code")):
        return _words(base)
    is_error = _says_error(value) or any(not _says_none(value.get(n)) for n in _DOUBTFUL_WORDS)
    return _words(value) if is_error else None


def is_doubtful(value: object) -> bool:
    """Whether such a document has only words that a notice may have, too."""
    return isinstance(value, dict) and not (
        error_text(value.get("error")) or value.get("base_resp") or _says_error(value)
    )


def _says_error(value: dict[str, object]) -> bool:
    return bool(
        any(not _says_none(value.get(name)) for name in (*_WORDS, *_CODES))
        or value.get("success") is False
        or value.get("status") in ("error", "failed", "fail")
        or value.get("object") == "error"
        or ((value.get("msg") or value.get("message")) and not _says_none(value.get("code")))
    )


def event_error(text: str) -> str:
    """Return the error that the data of an error event tells, which may be JSON or words."""
    try:
        value = decode_json(text.encode("utf-8", "surrogatepass"), replace_invalid_utf8=True)
    except NotJSON:
        return text
    if isinstance(value, dict):
        return error_text(value.get("error")) or _words(value)
    return value if isinstance(value, str) else text


def line_error(line: str) -> str | None:
    """Return what a bare line ``error: …`` says."""
    found = _ERROR_LINE.match(line)
    return line[found.end() :] if found else None


def is_keep_alive(value: object) -> bool:
    """Whether a decoded document, a text or the name of an event says nothing at all."""
    if isinstance(value, str):
        return value.strip().lower() in _KEEP_ALIVES or not value.strip()
    if isinstance(value, dict):
        kind = value.get("type", value.get("event", value.get("object")))
        return not value or (isinstance(kind, str) and kind.lower() in _KEEP_ALIVES)
    return not value


def _words(value: object) -> str:
    """Return an error as JSON; of a long one each long text is cut, so that none hides the rest."""
    text = encode_json(value)
    return text if len(text) <= _LONG_CHARACTERS else encode_json(_clipped(value))


def _clipped(value: object) -> object:
    if isinstance(value, dict):
        return {name: _clipped(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_clipped(inner) for inner in value]
    if not isinstance(value, str):
        return value
    text, _, length = split_mark(value)
    if len(text) <= _CLIPPED_CHARACTERS:
        return value
    return whole_pairs(text[:_CLIPPED_CHARACTERS]) + cut_mark(length, "characters")


def _says_none(value: object) -> bool:
    return any(value == none and type(value) is type(none) for none in _NO_ERROR)
