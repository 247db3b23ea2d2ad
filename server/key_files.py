"""Proxy keys in files, as Kubernetes and Docker mount secrets: read again when they change.

PROXY_KEY_FILE holds the key named `default`. In PROXY_KEYS_DIR each file holds one key and is named
after it; names that begin with a dot are not read, as Kubernetes keeps its own links there. A key
is replaced or revoked by changing the files: no call is dropped and nothing is started anew.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from open_llm_proxy.server.settings import DEFAULT_KEY_NAME, Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
MAX_FILE_BYTES = 4096
# What an HTTP header can carry behind `Bearer `.
SENDABLE = re.compile(r"[!-~]+")
KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class KeyFileError(Exception):
    """The files hold no keys that can be used; the message says which and why, never the key."""


@dataclass(frozen=True, slots=True)
class KeyFiles:
    key_file: Path | None = None
    keys_dir: Path | None = None

    def read(self) -> dict[str, str]:
        """All keys by name; raises `KeyFileError`."""
        keys: dict[str, str] = {}
        for name, path in self._paths():
            if not KEY_NAME.fullmatch(name):
                raise KeyFileError(
                    f"PROXY_KEYS_DIR: {name!r} cannot be a key's name; use letters, digits, . _ -"
                )
            if name in keys:
                raise KeyFileError(
                    f"PROXY_KEYS_DIR: {name} is the name of PROXY_KEY_FILE's key; rename the file"
                )
            keys[name] = _key_in(path)
        return keys

    def state(self) -> object:
        """Something that differs once a file was changed, added or removed."""
        try:
            return [(name, _identity(path)) for name, path in self._paths()]
        except KeyFileError as error:
            return str(error)

    def _paths(self) -> list[tuple[str, Path]]:
        found = [] if self.key_file is None else [(DEFAULT_KEY_NAME, self.key_file)]
        if self.keys_dir is None:
            return found
        try:
            names = sorted(os.listdir(self.keys_dir))
        except OSError as error:
            raise KeyFileError(
                f"PROXY_KEYS_DIR={self.keys_dir} cannot be read: {error.strerror}"
            ) from error
        return found + [(name, self.keys_dir / name) for name in names if name[0] != "."]


def all_keys(settings: Settings) -> dict[str, str]:
    """The keys of the settings and of their files, by name; raises `KeyFileError`."""
    keys = {DEFAULT_KEY_NAME: settings.proxy_key} if settings.proxy_key else {}
    keys |= dict(settings.proxy_keys_extra)
    found = KeyFiles(settings.proxy_key_file, settings.proxy_keys_dir).read()
    for name in found.keys() & keys.keys():
        raise KeyFileError(f"Two keys are named {name}: one in a file, one in a variable")
    return keys | found


async def follow(settings: Settings, on_change: Callable[[Mapping[str, str]], None]) -> None:
    """Call `on_change` with all keys whenever their files have changed; runs until cancelled.

    Files that cannot be used change nothing: the keys stay, and stderr says why.
    """
    files = KeyFiles(settings.proxy_key_file, settings.proxy_keys_dir)
    if files == KeyFiles():
        return
    known = files.state()
    while True:
        await asyncio.sleep(POLL_SECONDS)
        state = files.state()
        if state == known:
            continue
        known = state
        try:
            keys = all_keys(settings)
        except KeyFileError as error:
            log.error("The proxy keys stay as they were: %s", error)
            continue
        on_change(keys)
        log.info("Proxy keys were read again: %s", ", ".join(keys) or "none")


def _key_in(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"The key file {path} cannot be read: {error.strerror}") from error
    key = text.decode("latin-1").strip()
    if not SENDABLE.fullmatch(key) or len(text) > MAX_FILE_BYTES:
        raise KeyFileError(
            f"The key file {path} must hold one key, of visible ASCII characters without blanks"
        )
    return key


def _identity(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
