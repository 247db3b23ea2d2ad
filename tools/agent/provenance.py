"""What made a transcript: versions of all that took part, and hashes of what was asked.

The hashes are those of the log: `system_sha256` and `tools_sha256` of the same calls are equal to
them where no credential was redacted.
"""

import hashlib
import importlib.metadata
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DISTRIBUTION = "open-llm-proxy"
LIBRARIES = ("openai", "mcp")


@dataclass(slots=True)
class Provenance:
    """`proxy` and `mcp_server` are None where they do not say what they are."""

    runner: str = field(default_factory=lambda: runner_version())
    libraries: dict[str, str] = field(default_factory=lambda: library_versions())
    proxy: str | None = None
    mcp_server: str | None = None
    system_sha256: str | None = None
    tools_sha256: str | None = None


def runner_version() -> str:
    """The version of this package; in a checkout that is not installed, that of setup.py."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        setup = Path(__file__).resolve().parents[2] / "setup.py"
        found = re.search(r'version="([^"]+)"', setup.read_text()) if setup.exists() else None
        return found[1] if found else "unknown"


def library_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def tools_sha256(functions: list[dict[str, Any]]) -> str | None:
    """The hash of the tools as a request has them, None without any."""
    text = json.dumps(functions, ensure_ascii=False, separators=(",", ":"))
    return sha256(text) if functions else None


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
