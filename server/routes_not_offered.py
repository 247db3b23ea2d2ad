"""Routes of OpenAI's API that this proxy does not have, and why: clients need not guess.

The proxy relays single calls and keeps nothing that a later call could ask for. docs/clients.md
lists these routes for readers.
"""

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class NotOffered:
    """`routes` begin with a method where not all are meant; a path that ends in a slash stands for
    all below it, another one for itself, too."""

    routes: tuple[str, ...]
    why: str


NOT_OFFERED = (
    NotOffered(
        ("/v1/responses/", "/v1/conversations"),
        "it keeps no responses and no conversations. Send what came before in `input`.",
    ),
    NotOffered(
        ("GET /v1/chat/completions", "/v1/chat/completions/"),
        "it keeps no completions, whatever `store` says. Keep the answer of POST "
        "/v1/chat/completions.",
    ),
    NotOffered(("DELETE /v1/models/",), "its models are those of its configuration."),
    NotOffered(
        ("/v1/files", "/v1/uploads", "/v1/vector_stores", "/v1/containers", "/v1/skills"),
        "it keeps no files. Send their content in the messages.",
    ),
    NotOffered(
        ("/v1/batches", "/v1/fine_tuning", "/v1/evals"),
        "it runs no jobs. Send the calls one by one.",
    ),
    NotOffered(
        ("/v1/assistants", "/v1/threads", "/v1/chatkit"),
        "it keeps no state of agents. Use POST /v1/chat/completions or /v1/responses.",
    ),
    NotOffered(
        ("/v1/audio", "/v1/images", "/v1/videos", "/v1/realtime", "/v1/moderations", "/v1/edits"),
        "it relays chat completions, completions, embeddings and responses only.",
    ),
    NotOffered(
        ("/v1/organization", "/v1/projects", "/v1/engines"),
        "it has no accounts of OpenAI's kind. Its keys are its operator's.",
    ),
    NotOffered(
        ("/v1/messages", "/v1/complete"),
        "it speaks OpenAI's API and not Anthropic's. Use POST /v1/chat/completions.",
    ),
)


@lru_cache(maxsize=128)
def why_not_offered(method: str, path: str) -> str | None:
    """Why this route of OpenAI's API is none of ours; None where it is, or nobody's."""
    if method == "OPTIONS":
        return None
    for group in NOT_OFFERED:
        for route in group.routes:
            needed, _, start = route.rpartition(" ")
            if needed in ("", method) and _stands_for(start, path, bool(needed)):
                return group.why
    return None


def _stands_for(start: str, path: str, only_itself: bool) -> bool:
    if start.endswith("/"):
        return path.startswith(start) and path != start
    return path == start or (not only_itself and path.startswith(f"{start}/"))
