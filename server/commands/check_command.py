"""``open-llm-proxy check``: find every mistake before a start does.

    open-llm-proxy check             settings, config.json, directories, keys; sends nothing
    open-llm-proxy check --online    and a probe object to the store, and a request to each provider

Exit codes: 0 nothing is wrong (warnings are possible), 2 something is.
"""

import argparse
import asyncio
import json
import os

from rich.console import Console
from rich.table import Table
from rich.text import Text

from open_llm_proxy.server.commands.console import ExitCode
from open_llm_proxy.server.commands.serve_command import add_config_option
from open_llm_proxy.server.preflight.checks import Preflight, check_offline, check_online
from open_llm_proxy.server.preflight.findings import FAILED, Finding, Level
from open_llm_proxy.server.routing import Router
from open_llm_proxy.server.upstream.client import PooledHTTPClient

STYLES = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow"}
FAILED_STYLE = "bold red"


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", epilog: str
) -> None:
    """Add ``check`` to the program's commands; `epilog` lists the settings."""
    parser = commands.add_parser(
        "check",
        help="check settings, config.json, directories and keys",
        description=__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_option(parser)
    parser.add_argument(
        "--online", action="store_true", help="also test the store and the providers"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_check)


def _check(chosen: argparse.Namespace) -> ExitCode:
    preflight = check_offline(os.environ, chosen.config)
    findings = preflight.findings
    if chosen.online:
        findings += asyncio.run(_online(preflight))
    is_ok = not any(finding.level in FAILED for finding in findings)
    if chosen.json:
        fields = [{"area": f.area, "level": f.level, "text": f.text} for f in findings]
        print(json.dumps({"ok": is_ok, "findings": fields}, ensure_ascii=False))
    else:
        _print(findings)
    return ExitCode.DONE if is_ok else ExitCode.USAGE


async def _online(preflight: Preflight) -> list[Finding]:
    if preflight.config is None or any(f.level in FAILED for f in preflight.findings):
        text = "not tested; correct the mistakes first"
        return [Finding("online", Level.WARNING, text)]
    client = PooledHTTPClient(force_instance=True)
    try:
        router = Router(preflight.config, os.environ)
        return await check_online(preflight.settings, router, client)
    finally:
        client.close()


def _print(findings: list[Finding]) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    wide = max(len(finding.area) for finding in findings)
    if not console.is_terminal:
        for finding in findings:
            print(f"{finding.area:<{wide}}  {finding.level:<8}  {finding.text}")
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name in ("area", "level", "text"):
        table.add_column(name, overflow="fold", no_wrap=name != "text")
    for finding in findings:
        style = STYLES.get(finding.level, FAILED_STYLE)
        table.add_row(finding.area, Text(finding.level, style), Text(finding.text))
    console.print(table)
