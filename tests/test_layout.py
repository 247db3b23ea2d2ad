"""The layout's rules: queue/ beside Python's own module, and the arrows between the packages.

Each of them fails far from its cause when it is broken (an AttributeError in urllib3, a module that
is missing from the wheel), so they are stated here.
"""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = {
    "open_llm_proxy.server": ROOT / "server",
    "open_llm_proxy.queue": ROOT / "queue",
    "open_llm_proxy.archive": ROOT / "archive",
    "open_llm_proxy.agent": ROOT / "tools" / "agent",
}
LONGEST_FILE_LINES = 400


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported_names(path: Path, package: str) -> Iterator[str]:
    """The full dotted names that a file of `package` imports, relative imports resolved."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) + 1 - node.level] if node.level else []
            start = ".".join(base + ([node.module] if node.module else []))
            yield from (f"{start}.{alias.name}" for alias in node.names)


def setup_argument(name: str) -> object:
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.keyword) and node.arg == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py gives no {name}")


def files_in_git() -> list[Path]:
    """What git tracks or would track; skips where there is no git or no checkout."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    # A checkout may belong to another user than the one who tests it.
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others"]
    listing = subprocess.run(
        [*command, "--exclude-standard"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_queue_has_no_init_file() -> None:
    assert not (ROOT / "queue" / "__init__.py").exists()


def test_the_standard_queue_wins_in_the_repository_root() -> None:
    code = (
        "import sys, queue; assert sys.path[0] == '', sys.path;"
        "assert hasattr(queue, 'SimpleQueue'), queue; import urllib3, boto3;"
        "import open_llm_proxy.server, open_llm_proxy.queue"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_setup_maps_every_folder() -> None:
    assert setup_argument("package_dir") == {
        name: str(folder.relative_to(ROOT)) for name, folder in PRODUCT.items()
    }


def test_every_folder_with_python_files_is_a_listed_package() -> None:
    expected = {
        ".".join([name, *path.parent.relative_to(folder).parts])
        for name, folder in PRODUCT.items()
        for path in [folder / "py.typed", *python_files(folder)]
    }
    packages = setup_argument("packages")
    assert isinstance(packages, list)
    assert set(packages) == expected


@pytest.mark.parametrize("folder", ["server", "queue", "archive", "tests", "tools", "benchmarks"])
def test_no_file_takes_a_name_of_the_standard_library(folder: str) -> None:
    names = {
        name
        for path in (ROOT / folder).rglob("*")
        if path.is_dir() or path.suffix == ".py"
        for name in [path.stem]
    }
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.parametrize("package", ["open_llm_proxy.queue", "open_llm_proxy.archive"])
def test_what_the_server_uses_imports_nothing_of_ours(package: str) -> None:
    for path in python_files(PRODUCT[package]):
        ours = [name for name in imported_names(path, package) if name.startswith("open_llm_proxy")]
        assert not [name for name in ours if not name.startswith(package)], path


def modules() -> dict[str, Path]:
    """All modules of the product, by dotted name."""
    found = {}
    for package, folder in PRODUCT.items():
        for path in python_files(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def import_graph() -> dict[str, set[str]]:
    """Which module of the product imports which others, wherever in the file."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        package = module if path.stem == "__init__" else module.rpartition(".")[0]
        imported = graph[module] = set()
        for name in imported_names(path, package):
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name and name != module:
                imported.add(name)
    return graph


def folder_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same for what a package holds side by side: its files, and its folders as wholes."""

    def place(module: str) -> str:
        package = max((p for p in PRODUCT if f"{module}.".startswith(f"{p}.")), key=len)
        return ".".join(module.split(".")[: package.count(".") + 2])

    places: dict[str, set[str]] = {}
    for module, imported in graph.items():
        places.setdefault(place(module), set()).update(
            place(name) for name in imported if place(name) != place(module)
        )
    return places


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A way from some node back to itself, or nothing."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_file_imports_in_a_circle() -> None:
    graph = import_graph()
    assert graph["open_llm_proxy.server.app"] >= {"open_llm_proxy.server.relay.handler"}
    assert not circle(graph)


@pytest.mark.parametrize("package", PRODUCT)
def test_no_folder_imports_in_a_circle(package: str) -> None:
    graph = {
        place: {name for name in imported if name.startswith(f"{package}.")}
        for place, imported in folder_graph(import_graph()).items()
        if place.startswith(f"{package}.")
    }
    assert graph and not circle(graph)


def test_no_package_imports_in_a_circle() -> None:
    packages = {
        package: {
            other
            for module, imported in import_graph().items()
            if module.startswith(f"{package}.")
            for other in PRODUCT
            if other != package and any(name.startswith(f"{other}.") for name in imported)
        }
        for package in PRODUCT
    }
    assert packages["open_llm_proxy.server"] >= {"open_llm_proxy.queue"}
    assert not circle(packages)


def test_a_circle_is_found() -> None:
    graph = {"p.relay.a": {"p.services"}, "p.services": {"p.relay.b"}, "p.relay.b": set()}
    assert not circle(graph)
    assert circle({"p.relay": {"p.services"}, "p.services": {"p.relay"}})


def test_relative_imports_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("from ..server import app\nfrom . import store\nimport os.path\n")
    assert list(imported_names(path, "open_llm_proxy.queue")) == [
        "open_llm_proxy.server.app",
        "open_llm_proxy.queue.store",
        "os.path",
    ]


def test_product_files_stay_short() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in PRODUCT.values()
        for path in python_files(folder)
    }
    assert lines
    assert not {name: count for name, count in lines.items() if count > LONGEST_FILE_LINES}


def test_no_file_contains_a_path_of_some_machine() -> None:
    # /home/user and the like are examples; this checkout and this home are not.
    here = [re.escape(str(path)[1:]) for path in (ROOT, Path.home()) if len(path.parts) > 2]
    folders = "|".join([*here, r"root\b", r"Users/[A-Z]", r"work/\w", "tmp/x/"])
    machine_path = re.compile(r"(?<![\w.~$}])/(?:" + folders + ")")
    found = []
    for path in files_in_git():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if machine_path.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)
