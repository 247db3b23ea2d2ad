"""Documentation that is made from the code is up to date."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import log_contract
from open_llm_proxy.archive.entry import described_fields

ROOT = Path(__file__).resolve().parent.parent


def test_the_rendered_parts_are_up_to_date() -> None:
    command = [sys.executable, "tools/render_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_entry_has_the_contracts_fields_in_order() -> None:
    names = [name for name, _, _ in described_fields()]
    assert ("queue_id", "seq", *names) == log_contract.FIELDS


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_files_that_pages_name_are_there() -> None:
    named = {
        (page.name, path)
        for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
        for path in re.findall(
            r"`((?:server|queue|archive|tests|tools|k8s|docs|benchmarks)/[\w./-]+)`",
            page.read_text(),
        )
    }
    assert named
    assert not [(page, path) for page, path in sorted(named) if not (ROOT / path).exists()]


def test_the_tests_that_pages_name_are_there() -> None:
    pages = [page.read_text() for page in ROOT.glob("docs/*.md")]
    named = {pair for page in pages for pair in re.findall(r"`(tests/[\w./]+)::(\w+)`", page)}
    assert named
    missing = [(f, t) for f, t in named if f"def {t}(" not in (ROOT / f).read_text()]
    assert not missing


def test_the_ten_files_of_the_promise_are_there_and_short() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    files = re.findall(r"^\| \d+ \| `([\w/.]+)` \|", page, re.MULTILINE)
    assert len(files) == len(set(files)) == 10
    assert sum(len((ROOT / name).read_text().splitlines()) for name in files) < 2500
