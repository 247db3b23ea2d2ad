"""What is installed: bounded where a major version would break, and in the image by hashes."""

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

LOCK = Path(__file__).parent.parent / "requirements.lock"
NEEDED = [Requirement(line) for line in requires("open-llm-proxy") or () if "extra ==" not in line]


def test_a_major_version_that_would_break_is_not_installed() -> None:
    assert NEEDED
    for needed in NEEDED:
        assert "<" in {bound.operator for bound in needed.specifier}, needed


def test_the_image_gets_a_version_that_fits_of_each_and_checks_its_hash() -> None:
    entries = re.split(r"\n(?=[a-z0-9])", LOCK.read_text())
    locked = {}
    for entry in entries:
        name, version = entry.split()[0].split("==")
        assert "--hash=sha256:" in entry, name
        locked[name.replace("_", "-")] = version
    for needed in NEEDED:
        assert needed.specifier.contains(locked[needed.name.replace("_", "-")]), needed
