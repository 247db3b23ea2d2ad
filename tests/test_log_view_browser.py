"""The pages of ``logs view`` in a real browser: clicked through, under their policy, hostile texts.

Chromium does what a person does; what its console says of the policy fails the test. Skipped where
there is no Chromium.
"""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from log_history import write_history
from test_log_view import SESSION, serving, write_hostile

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --enable-logging=stderr --v=0"
)


async def browsed(url: str, profile: Path) -> tuple[str, list[str]]:
    """A page as Chromium has built it, and what its console said."""
    assert CHROMIUM is not None
    run = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *FLAGS.split(),
        f"--user-data-dir={profile}",
        "--timeout=20000",
        "--dump-dom",
        url,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await run.communicate()
    said = [line for line in err.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return out.decode(), said


@needs_chromium
async def test_every_page_is_reached_and_keeps_to_its_policy(tmp_path: Path) -> None:
    write_history(tmp_path / "logs", calls=120)
    write_hostile(tmp_path / "logs")
    async with serving(tmp_path / "logs") as get:
        base = (await get("/")).effective_url.rstrip("/")
        waiting, seen = ["/"], {"/"}
        pages = 0
        while waiting and pages < 12:
            path = waiting.pop(0)
            dom, said = await browsed(f"{base}{path}", tmp_path / "profile")
            pages += 1
            assert said == [], f"{path}: the browser complains"
            assert "<h1>" in dom and "alert(1)</script>" not in dom
            kinds = {re.sub(r"\?.*", "", known) for known in seen}
            for link in re.findall(r'<a [^>]*href="(/[^"#]*)"', dom):
                link = link.replace("&amp;", "&")
                if "format=" not in link and re.sub(r"\?.*", "", link) not in kinds:
                    seen.add(link)
                    waiting.append(link)
                    kinds.add(re.sub(r"\?.*", "", link))
        kinds = {re.sub(r"\?.*", "", path) for path in seen}
        assert kinds >= {"/", "/usage", "/search", "/integrity", "/session", "/rows"}


@needs_chromium
async def test_a_hostile_session_runs_nothing(tmp_path: Path) -> None:
    write_hostile(tmp_path / "logs")
    async with serving(tmp_path / "logs") as get:
        base = (await get("/")).effective_url.rstrip("/")
        dom, said = await browsed(f"{base}/session?id={quote(SESSION, safe='')}", tmp_path / "p")
        assert said == []
        assert not re.search(r"<(script|iframe|img|object|i)[\s>]", dom)
