"""``open-llm-proxy keys new NAME``: a strong proxy key under a name that the log will show.

    open-llm-proxy keys new my-app
    open-llm-proxy keys new workshop --models kimi,anthropic/ --expires 2026-12-31 \\
        --requests-per-minute 60 --file keys.json

With bounds the key is an entry of keys.json (PROXY_KEYS_JSON); `--file` writes it there.
"""

import argparse
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from open_llm_proxy.queue.durable_files import write_file
from open_llm_proxy.server.commands.console import ExitCode, complain
from open_llm_proxy.server.key_files import KeyFileError, read_keys_json
from open_llm_proxy.server.proxy_key import KEY_NAME, KeyEntryError, ProxyKey
from open_llm_proxy.server.settings import DEFAULT_KEY_NAME

KEY_BYTES = 32
PREFIX = "olp-"  # so that scanners for secrets can know one


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``keys`` to the program's commands."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "keys", help="make proxy keys", description=__doc__, formatter_class=raw
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    new = actions.add_parser(
        "new", help="print a new key", description=__doc__, formatter_class=raw
    )
    new.add_argument("name", metavar="NAME", type=_name, help="name in the log, such as an app's")
    new.add_argument(
        "--models", metavar="LIST", help="models that it may call: ids, and prefixes with / or *"
    )
    new.add_argument("--expires", metavar="DATE", help="last day (or time) at which it is valid")
    new.add_argument(
        "--requests-per-minute", metavar="N", type=int, help="limit, for each server process"
    )
    new.add_argument(
        "--file", metavar="FILE", type=Path, help="add the entry to this file, such as keys.json"
    )
    new.add_argument("--json", action="store_true", help="print the entry as JSON")
    new.set_defaults(run=_new)


def _name(text: str) -> str:
    if not KEY_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("must be letters, digits, . _ - and at most 64 of them")
    return text


def _new(chosen: argparse.Namespace) -> ExitCode:
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    entry: dict[str, Any] = {"key": key}
    if chosen.models is not None:
        entry["models"] = [model.strip() for model in chosen.models.split(",") if model.strip()]
    if chosen.expires is not None:
        entry["expires"] = chosen.expires
    if chosen.requests_per_minute is not None:
        entry["requests_per_minute"] = chosen.requests_per_minute
    try:
        ProxyKey.of(entry)
        if chosen.file is not None:
            _add(chosen.file, chosen.name, entry)
    except (KeyEntryError, KeyFileError) as error:
        return complain(str(error), ExitCode.USAGE)
    _print(chosen, entry)
    return ExitCode.DONE


def _print(chosen: argparse.Namespace, entry: dict[str, Any]) -> None:
    key, name = entry["key"], chosen.name
    if chosen.json:
        print(json.dumps({name: entry}))
        hint = ""
    elif chosen.file is not None:
        print(key)
        hint = f"Added to {chosen.file}; a server with PROXY_KEYS_JSON={chosen.file} reads it soon."
    elif len(entry) > 1:
        print(json.dumps({name: entry}, indent=2))
        hint = (
            "Put the entry into keys.json, the file that PROXY_KEYS_JSON names (--file does that), "
            f"or the inner object into a file {name} in PROXY_KEYS_DIR."
        )
    elif name == DEFAULT_KEY_NAME:
        print(key)
        hint = "Set PROXY_KEY to it, or write it to the file that PROXY_KEY_FILE names."
    else:
        print(f"{name}:{key}")
        hint = (
            "Append the line to PROXY_KEYS_EXTRA, after a comma, or write the key, which is the "
            f"part behind the colon, to a file {name} in PROXY_KEYS_DIR."
        )
    print(hint, end="\n" if hint else "", file=sys.stderr)


def _add(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Add an entry to a file of keys, whole or not at all; raises `KeyFileError`."""
    entries: dict[str, Any] = {}
    if path.exists():
        if name in read_keys_json(path):
            raise KeyFileError(f"{path} has a key {name} already; remove it first")
        entries = json.loads(path.read_bytes())
    text = json.dumps(entries | {name: entry}, indent=2, ensure_ascii=False) + "\n"
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_file(temporary, [text.encode()])
    os.replace(temporary, path)
