"""Proxy keys in files, as Kubernetes and Docker mount secrets: read again when they change.

PROXY_KEY_FILE holds the key named `default`. In PROXY_KEYS_DIR each file holds one key and is named
after it; names that begin with a dot are not read, as Kubernetes keeps its own links there. Such a
file may hold an entry of keys.json instead of a bare key. PROXY_KEYS_JSON names a file of entries
with bounds, by name, see proxy_key.py. A key is replaced or revoked by changing the files: no call
is dropped and nothing is started anew.
"""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_llm_proxy.server.proxy_key import KEY_NAME, SENDABLE, KeyEntryError, ProxyKey
from open_llm_proxy.server.settings import DEFAULT_KEY_NAME, Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
MAX_FILE_BYTES = 4096
MAX_JSON_BYTES = 1 << 20


class KeyFileError(Exception):
    """The files hold no keys that can be used; the message says which and why, never the key."""


@dataclass(frozen=True, slots=True)
class KeyFiles:
    key_file: Path | None = None
    keys_dir: Path | None = None
    keys_json: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> "KeyFiles":
        return cls(settings.proxy_key_file, settings.proxy_keys_dir, settings.proxy_keys_json)

    def read(self) -> dict[str, ProxyKey]:
        """All keys by name; raises `KeyFileError`."""
        keys = {} if self.keys_json is None else read_keys_json(self.keys_json)
        for name, path in self._paths():
            if not KEY_NAME.fullmatch(name):
                raise KeyFileError(
                    f"PROXY_KEYS_DIR: {name!r} cannot be a key's name; use letters, digits, . _ -"
                )
            if name in keys:
                raise KeyFileError(
                    f"PROXY_KEYS_DIR: {name} is the name of another file's key; rename the file"
                )
            keys[name] = _key_in(path)
        return keys

    def state(self) -> object:
        """Something that differs once a file was changed, added or removed."""
        try:
            files = [] if self.keys_json is None else [("", self.keys_json)]
            return [(name, _identity(path)) for name, path in [*files, *self._paths()]]
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


def read_keys_json(path: Path) -> dict[str, ProxyKey]:
    """The keys of a file such as keys.json, by name; raises `KeyFileError`."""
    try:
        entries = json.loads(_content(path, MAX_JSON_BYTES), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        why = error if isinstance(error, _NameTwice) else "it is not valid JSON"
        raise KeyFileError(f"The key file {path} cannot be used: {why}") from error
    if not isinstance(entries, dict):
        raise KeyFileError(f"The key file {path} must hold a JSON object of keys by name")
    keys = {}
    for name, entry in entries.items():
        if not KEY_NAME.fullmatch(name):
            raise KeyFileError(
                f"The key file {path}: {name!r} cannot be a key's name; use letters, digits, . _ -"
            )
        keys[name] = _entry(path, entry, f"{name}: ")
    return keys


def all_keys(settings: Settings) -> dict[str, ProxyKey]:
    """The keys of the settings and of their files, by name; raises `KeyFileError`."""
    keys = {DEFAULT_KEY_NAME: ProxyKey(settings.proxy_key)} if settings.proxy_key else {}
    keys |= {name: ProxyKey(key) for name, key in settings.proxy_keys_extra}
    found = KeyFiles.of(settings).read()
    for name in found.keys() & keys.keys():
        raise KeyFileError(f"Two keys are named {name}: one in a file, one in a variable")
    return keys | found


async def follow(settings: Settings, on_change: Callable[[Mapping[str, ProxyKey]], None]) -> None:
    """Call `on_change` with all keys whenever their files have changed; runs until cancelled.

    Files that cannot be used change nothing: the keys stay, and stderr says why.
    """
    files = KeyFiles.of(settings)
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


class _NameTwice(ValueError):
    """An object of a key file has a name more than once."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NameTwice(f"{twice!r} is in it twice")
    return found


def _content(path: Path, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise KeyFileError(f"The key file {path} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise KeyFileError(
            f"The key file {path} must hold one key, and has more than {max_bytes} bytes"
        )
    return content.decode("latin-1").strip()


def _key_in(path: Path) -> ProxyKey:
    text = _content(path, MAX_FILE_BYTES)
    if text.startswith("{"):
        try:
            return _entry(path, json.loads(text, object_pairs_hook=_no_duplicates))
        except ValueError:
            pass  # a key may begin with a brace, too
    if not SENDABLE.fullmatch(text):
        raise KeyFileError(
            f"The key file {path} must hold one key, of visible ASCII characters without blanks"
        )
    return ProxyKey(text)


def _entry(path: Path, entry: object, where: str = "") -> ProxyKey:
    if not isinstance(entry, dict):
        raise KeyFileError(f'The key file {path}: {where}must be an object, such as {{"key": …}}')
    try:
        return ProxyKey.of(entry)
    except KeyEntryError as error:
        raise KeyFileError(f"The key file {path}: {where}{error}") from error


def _identity(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
