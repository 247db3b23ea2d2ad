"""Compacts every day of a folder with the DuckDB of whichever Python runs this, old or new.

    python compact_days.py SITE LOGS TABLES

SITE is the folder of the packages that all else comes from. stdout gets what the tables' views then
say, beside the objects' own, as JSON.
"""

import json
import site
import sys
from pathlib import Path


def main():  # no annotations: it runs in small environments of its own
    packages, logs, tables = sys.argv[1:]
    site.addsitedir(packages)  # after its own, so that its own DuckDB counts
    import duckdb

    from open_llm_proxy.archive.compaction.day import compact_day
    from open_llm_proxy.archive.compaction.destination import FolderDestination
    from open_llm_proxy.archive.compaction.raw import delete_raw
    from open_llm_proxy.archive.sources.folder import FolderSource
    from open_llm_proxy.archive.tables.connection import open_tables

    source, destination = FolderSource(Path(logs)), FolderDestination(Path(tables))
    totals = (
        "SELECT count(*) AS calls, sum(total_tokens)::BIGINT AS tokens, "
        "count(DISTINCT session_key) AS sessions FROM turns"
    )
    with open_tables(source) as opened:
        raw = opened.rows(totals)
    days = source.days()
    for day in days:
        assert compact_day(source, destination, day).outcome == "compacted"
        assert compact_day(source, destination, day).outcome == "unchanged"
    with open_tables(source, tables=destination.source()) as opened:
        joined = opened.rows(totals)
    assert raw == joined, (raw, joined)
    done = delete_raw(source, FolderDestination(Path(logs)), destination, days[0])
    assert done.deleted and not done.differing
    with open_tables(destination.source()) as opened:
        assert opened.rows(totals) == raw
    json.dump({"version": duckdb.__version__, "days": len(days), **raw[0]}, sys.stdout)


if __name__ == "__main__":
    main()
