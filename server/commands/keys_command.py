"""``open-llm-proxy keys new NAME``: a strong proxy key under a name that the log will show."""

import argparse
import secrets
import sys

from open_llm_proxy.server.commands.console import ExitCode
from open_llm_proxy.server.key_files import KEY_NAME
from open_llm_proxy.server.settings import DEFAULT_KEY_NAME

KEY_BYTES = 32
PREFIX = "olp-"  # so that scanners for secrets can know one


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``keys`` to the program's commands."""
    parser = commands.add_parser("keys", help="make proxy keys", description=__doc__)
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="print a new key", description="Print a new key.")
    new.add_argument("name", metavar="NAME", type=_name, help="name in the log, such as an app's")
    new.set_defaults(run=_new)


def _name(text: str) -> str:
    if not KEY_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("must be letters, digits, . _ - and at most 64 of them")
    return text


def _new(chosen: argparse.Namespace) -> ExitCode:
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    if chosen.name == DEFAULT_KEY_NAME:
        print(key)
        hint = "Set PROXY_KEY to it, or write it to the file that PROXY_KEY_FILE names."
    else:
        print(f"{chosen.name}:{key}")
        hint = (
            "Append the line to PROXY_KEYS_EXTRA, after a comma, or write the key, which is the "
            f"part behind the colon, to a file {chosen.name} in PROXY_KEYS_DIR."
        )
    print(hint, file=sys.stderr)
    return ExitCode.DONE
