"""The system prompt of an app, from a file or a URL, so that a model behaves as it does there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2

from .settings import InputError, SystemPrompt, public_url

FETCH_TIMEOUT_SECONDS = 30.0
MAX_PROMPT_BYTES = 4 * 1024 * 1024
MAX_REDIRECTS = 5


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
    """The text at a URL: bounded while it is read, in bytes and in time. Raises InputError."""
    where = public_url(url)
    try:
        body, encoding = asyncio.run(_downloaded(url, where))
    except TimeoutError as error:
        text = f"--system-prompt: {where} took longer than {FETCH_TIMEOUT_SECONDS:g} s."
        raise InputError(text) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise InputError(f"--system-prompt: cannot fetch {where}: {error}.") from error
    text = body.decode(encoding, "replace")
    if text.lstrip()[:100].lower().startswith(("<!doctype html", "<html")):
        raise InputError(f"--system-prompt: {where} is a web page; give the link to the raw text.")
    return text


async def _downloaded(url: str, where: str) -> tuple[bytes, str]:
    """The body and its encoding; redirects are followed within the origin only."""
    address = httpx2.URL(url)
    headers = {"Accept-Encoding": "identity"}
    async with (
        asyncio.timeout(FETCH_TIMEOUT_SECONDS),
        httpx2.AsyncClient(timeout=None, headers=headers) as client,
    ):
        for _ in range(MAX_REDIRECTS + 1):
            async with client.stream("GET", address) as response:
                if not response.has_redirect_location:
                    return await _body(response, where), response.encoding or "utf-8"
                target = response.next_request
            if target is None or _origin(target.url) != _origin(address):
                there = public_url(str(target.url)) if target is not None else "nowhere"
                raise InputError(
                    f"--system-prompt: {where} redirects to another origin, {there}; "
                    "give that link if you trust it."
                )
            address = target.url
    raise InputError(f"--system-prompt: {where} redirects more than {MAX_REDIRECTS} times.")


async def _body(response: httpx2.Response, where: str) -> bytes:
    if response.status_code != 200:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        raise InputError(f"--system-prompt: {where} answered {status}.")
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_PROMPT_BYTES:
            raise InputError(f"--system-prompt: {where} is larger than {MAX_PROMPT_BYTES:,} bytes.")
    return bytes(body)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
