"""The one chunk of a stream that is left out where only the proxy asked for it."""

from open_llm_proxy.server.json_text import NotJSON, decode_json
from open_llm_proxy.server.transcript.event_reader import EventReader

_CHUNK_FRAME = {"id", "object", "created", "model", "choices", "usage"}
_FRAME = _CHUNK_FRAME | {"system_fingerprint", "service_tier", "provider", "obfuscation"}


def holds_only_usage(event: bytes) -> bool:
    """Whether an event, with its blank line or without, is a usage chunk and nothing else.

    That is empty ``choices`` and a ``usage`` object, with nothing beside them but what every chunk
    repeats: an error, citations or the name of an event are for the client.
    """
    reader = EventReader(len(event) + 1)
    events = reader.feed(event) + reader.finish()
    if len(events) != 1:
        return False
    found = events[0]
    if not isinstance(found.data, bytes) or found.name or found.comments or found.stray is not None:
        return False
    try:
        chunk = decode_json(found.data, replace_invalid_utf8=True)
    except NotJSON:
        return False
    if not isinstance(chunk, dict) or chunk.get("choices") != []:
        return False
    usage = chunk.get("usage")
    rest = [value for name, value in chunk.items() if name not in _FRAME]
    return isinstance(usage, dict) and not any(rest)
