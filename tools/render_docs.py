"""Writes the parts of the documentation that are made from the code.

    python tools/render_docs.py           writes them
    python tools/render_docs.py --check   exit code 1 where a file is not up to date

A part stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` in its file.
"""

import sys
from pathlib import Path

from open_llm_proxy.archive.json_schema import duckdb_view, field_table, schema_text
from open_llm_proxy.server.settings import settings_table

ROOT = Path(__file__).resolve().parent.parent


def parts() -> dict[tuple[str, str], str]:
    """(file, name of the part) → its text."""
    return {
        ("README.md", "settings"): settings_table(),
        ("LOGGING.md", "fields"): field_table(),
        ("LOGGING.md", "view"): duckdb_view(),
    }


def rendered(text: str, name: str, part: str) -> str:
    """`text` with the part `name` replaced; ValueError where it has no such part."""
    before, opening, rest = text.partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if not (opening and closing):
        raise ValueError(f"there is no part {name}")
    return f"{before}{opening}\n{part}\n\n{closing}{after}"


def files() -> dict[str, str]:
    """Every file that is made from the code, in whole or in part → its text."""
    texts = {"docs/log-entry.schema.json": schema_text()}
    for (file, name), part in parts().items():
        text = texts.get(file) or (ROOT / file).read_text()
        texts[file] = rendered(text, name, part)
    return texts


def stale_files(write: bool) -> list[str]:
    """The files that are not up to date; with `write` they are brought up to date."""
    stale = []
    for file, fresh in files().items():
        path = ROOT / file
        if not path.exists() or path.read_text() != fresh:
            stale.append(file)
            if write:
                path.write_text(fresh)
    return stale


if __name__ == "__main__":
    check = "--check" in sys.argv[1:]
    found = stale_files(write=not check)
    for file in found:
        print(f"{file} {'is not up to date: run tools/render_docs.py' if check else 'written'}")
    sys.exit(1 if check and found else 0)
