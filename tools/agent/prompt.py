"""The system prompt of an app, from a file or a URL, so that a model behaves as it does there."""

from pathlib import Path

import httpx

from .settings import InputError, SystemPrompt, public_url

FETCH_TIMEOUT_SECONDS = 30.0
MAX_PROMPT_BYTES = 4 * 1024 * 1024


def load_system_prompt(source: str) -> SystemPrompt:
    """The prompt at a path (``~`` allowed) or an http(s) URL. Raises InputError."""
    if source.startswith(("http://", "https://")):
        prompt = SystemPrompt(fetched(source), public_url(source))
    else:
        path = Path(source).expanduser()
        prompt = SystemPrompt(file_text(path), str(path))
    if not prompt.text.strip():
        raise InputError(f"--system-prompt: {prompt.source} is empty.")
    return prompt


def file_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--system-prompt: cannot read {path}: {reason}.") from error


def fetched(url: str) -> str:
    where = public_url(url)
    try:
        response = httpx.get(url, follow_redirects=True, timeout=FETCH_TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"--system-prompt: cannot fetch {where}: {error}.") from error
    if response.status_code != 200:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        raise InputError(f"--system-prompt: {where} answered {status}.")
    if len(response.content) > MAX_PROMPT_BYTES:
        raise InputError(f"--system-prompt: {where} is larger than {MAX_PROMPT_BYTES:,} bytes.")
    text = response.text
    if text.lstrip()[:100].lower().startswith(("<!doctype html", "<html")):
        raise InputError(f"--system-prompt: {where} is a web page; give the link to the raw text.")
    return text
