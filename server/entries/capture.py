"""What of a call's texts is logged: the mode, the caps, and what ``metadata`` leaves of a row.

``full`` and ``summary`` store texts, redacted and then cut to the caps. ``metadata`` is for data
that must not be stored anywhere: no text of a client or a provider is left in any field. What
each field keeps then is said in its definition, and a field that says nothing keeps nothing, so
that a new one cannot leak by being forgotten.
"""

import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from open_llm_proxy.archive.entry import (
    IdentityFields,
    RequestFields,
    ResponseFields,
    described_fields,
    in_metadata,
)
from open_llm_proxy.archive.text import cut_mark, shortened, split_mark, whole_pairs
from open_llm_proxy.server.entries.line import MAX_LINE_BYTES
from open_llm_proxy.server.entries.stored_texts import StoredTexts, TextHashes
from open_llm_proxy.server.redaction.redactor import TextRedactor
from open_llm_proxy.server.settings import CaptureMode, Settings

_RULES = {name: in_metadata(meta) for name, _, meta in described_fields()}
# Names of models, of clients, of reasons: one word without spaces, too short to tell anything.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+~-]{0,79}")
_SITE_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:.]{2,45}\]")
_HASH_DIGITS = 16
LABEL_MAX_CHARACTERS = 500
_MAX_LABELS = 2048
MAX_TEXT_CHARACTERS = MAX_LINE_BYTES // 2
# How much behind a cut is still redacted, so that no half of a credential is left before it.
REDACTED_BEYOND = 8192

P = TypeVar("P", IdentityFields, RequestFields, ResponseFields)


@dataclass(frozen=True, slots=True)
class Caps:
    """The longest texts that are logged, in characters; 0 is no cap of its own."""

    content: int = 0
    reasoning: int = 0
    tool_result: int = 20_000
    user_question: int = 4_000


class Labels:
    """Names and ids from outside, redacted and cut; most of them come again and again."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def logged(self, value: str | None, redactor: TextRedactor) -> str | None:
        """What is logged of a label; None, never empty, where there is none."""
        if not value:
            return None
        known = self._known.get(value)
        if known is None:
            text = value.strip()
            known = logged_text(text, redactor, LABEL_MAX_CHARACTERS) if text else ""
            if len(value) <= LABEL_MAX_CHARACTERS:
                if len(self._known) >= _MAX_LABELS:
                    self._known.clear()
                self._known[value] = known
        return known or None


@dataclass(frozen=True, slots=True)
class Capture:
    """``LOG_CAPTURE`` and its caps, and what is known of texts and labels that come again."""

    mode: CaptureMode = "summary"
    caps: Caps = field(default_factory=Caps)
    texts: StoredTexts = field(default_factory=StoredTexts)
    hashes: TextHashes = field(default_factory=TextHashes)
    labels: Labels = field(default_factory=Labels)
    _hash_key: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)

    @property
    def keeps_text(self) -> bool:
        return self.mode != "metadata"

    @property
    def keeps_messages(self) -> bool:
        return self.mode == "full"

    def kept(self, part: P) -> P:
        """What of a part of a row may be stored."""
        if self.keeps_text:
            return part
        fields = msgspec.structs.asdict(part).items()
        rules = ((name, _RULES[name], value) for name, value in fields if value is not None)
        changes = {name: self._kept(rule, value) for name, rule, value in rules if rule != "kept"}
        return msgspec.structs.replace(part, **changes)

    def _kept(self, rule: str, value: Any) -> str | None:
        if not isinstance(value, str):
            return None
        if rule == "name":
            return value if _PLAIN_NAME.fullmatch(value) else None
        if rule == "site":
            return _site(value)
        if rule == "hash":
            return self._hashed(value)
        return None

    def _hashed(self, value: str) -> str:
        """Equal for equal values of this process, and of no use to anybody who would guess."""
        digest = hmac.digest(self._hash_key, value.encode("utf-8", "surrogatepass"), "sha256")
        return digest.hex()[:_HASH_DIGITS]


def capture_of(settings: Settings) -> Capture:
    """What the settings say."""
    return Capture(
        mode=settings.log_capture,
        caps=Caps(
            content=settings.log_content_max,
            reasoning=settings.log_reasoning_max,
            tool_result=settings.log_tool_result_max,
            user_question=settings.log_user_question_max,
        ),
        texts=StoredTexts(settings.flush_interval_seconds),
    )


def logged_text(
    text: str, redactor: TextRedactor, max_characters: int = 0, length: str | None = None
) -> str:
    """A text redacted, then cut to `max_characters`, with a mark that tells its length, and with
    every NUL as the six characters of its escape.

    0 is no cap of its own: then it is what two such texts may take of a line. `length` is the
    mark of a text that was cut before, and goes behind what is left of it in any case.
    """
    limit = max_characters or MAX_TEXT_CHARACTERS
    if len(text) <= limit and length is None:
        logged = shortened(redactor.text(text), limit)
    else:
        redacted = redactor.text(text[: limit + REDACTED_BEYOND])
        logged = whole_pairs(redacted[:limit]) + (
            length or cut_mark(split_mark(text)[2], "characters")
        )
    return logged if "\0" not in logged else logged.replace("\0", "\\u0000")


def _site(url: str) -> str | None:
    """Scheme, host and port of a URL; a page's path and query may say what was asked."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not _SITE_HOST.fullmatch(host):
        return None
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")
