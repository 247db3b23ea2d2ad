"""What the numbered call N asks and what it is answered, known to every side by N alone.

The client writes the number and the wished behaviour into its user message, the scripted
provider reads them there, and the oracle rebuilds both texts from a log row. So nobody has to
pass contents around between processes, and a changed character is found wherever it happened.

The texts hold what text pipelines stumble over: quotes, backslashes, line ends, U+2028,
characters of two, three and four bytes.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SCRIPT = re.compile(r"call (\d{6,}): (\w+)((?: \w+=\S+)*)")

_WORDS = (
    "reef", "Schutzgebiet", "área", "海洋", "🌊", 'said "here"', "C:\\maps", "first\nsecond",
    "tab\tstop", "tree\u2028line", "hectares", "fraction", "GAP 1+2", "IUCN", "naïve", "Ω",
    "{brace}", "[1, 2]", "<b>", "50 %", "data: x", "h3", "👩‍🚀", "carbon",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Script:
    """What a user message asks of the scripted provider."""

    number: int
    behaviour: str
    options: Mapping[str, str] = field(default_factory=dict)


def question(number: int, behaviour: str = "ok", **options: object) -> str:
    """The user message of call `number`: its script, then a text that only this call has.

    Options may hold no white space; `pace=0.05` is an example, see provider_behaviours.py.
    """
    script = "".join(f" {name}={value}" for name, value in options.items())
    return f"call {number:06d}: {behaviour}{script} | {_prose('question', number)}"


def script_of(text: str) -> Script | None:
    """The script that `text` carries, None where it carries none."""
    match = _SCRIPT.search(text)
    if match is None:
        return None
    options = dict(part.split("=", 1) for part in match[3].split())
    return Script(int(match[1]), match[2], options)


def answer_content(number: int) -> str:
    """The content with which the provider answers call `number`."""
    return f"answer {number:06d}: {_prose('answer', number)}"


def answer_reasoning(number: int) -> str:
    """The reasoning that goes before it under the behaviour `reasoning`."""
    return f"thought {number:06d}: {_prose('reasoning', number)}"


def answer_tool_calls(number: int) -> list[dict[str, str]]:
    """The tool calls of the behaviour `tool_call`, in the form in which they are logged."""
    return [
        {
            "id": f"call_{number:06d}_{index}",
            "name": name,
            "arguments": f'{{"sql": "SELECT {number} AS n", "step": {index}}}',
        }
        for index, name in enumerate(("query", "show_layer"))
    ]


def usage(number: int) -> dict[str, Any]:
    """The usage that the provider reports for call `number`."""
    prompt, completion = 1000 + number % 997, 10 + number % 89
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": number % 7},
        "completion_tokens_details": {"reasoning_tokens": number % 5},
    }


def _prose(kind: str, number: int) -> str:
    digest = hashlib.sha256(f"{kind} {number}".encode()).digest()
    return " ".join(_WORDS[byte % len(_WORDS)] for byte in digest)
