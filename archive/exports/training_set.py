"""Examples as lines of a format, each content once."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from open_llm_proxy.archive.exports.examples import Example, Left, Unusable, examples
from open_llm_proxy.archive.exports.openai_format import openai_line
from open_llm_proxy.archive.exports.sharegpt_format import sharegpt_line
from open_llm_proxy.archive.tables.connection import Tables

FORMATS: dict[str, Callable[[Example], dict[str, Any]]] = {
    "openai": openai_line,
    "sharegpt": sharegpt_line,
}


def training_set(
    tables: Tables,
    format_name: str,
    per: str,
    redact: Callable[[object], object] | None,
    left: Left,
    limit: int | None = None,
) -> Iterator[bytes]:
    """The lines of a training set; what is left out is counted in `left`.

    `redact` takes the credentials out of a decoded JSON value.
    """
    line_of = FORMATS[format_name]
    seen: set[bytes] = set()
    for example in examples(tables, per, left):
        try:
            line: object = line_of(example)
        except Unusable as reason:
            left.reasons[str(reason)] += 1
            continue
        text = json.dumps(redact(line) if redact else line, ensure_ascii=False)
        data = text.encode("utf-8", "backslashreplace")
        digest = hashlib.sha256(data).digest()
        if digest in seen:
            left.reasons["that are equal to another"] += 1
            continue
        seen.add(digest)
        left.written += 1
        yield data
        if left.written == limit:
            return
