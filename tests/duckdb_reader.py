"""Runs statements in the DuckDB of whichever Python runs this, old or new.

stdin has ``{"statements": [...]}``, or ``{"script": "..."}`` for Polars and pandas, which leaves in
`found` what is to be seen; stdout gets what they find as JSON.
"""

import json
import sys


def rows(statements):  # no annotations: it runs in small environments of its own
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    found = []
    for statement in statements:
        result = connection.execute(statement)
        names = [column[0] for column in result.description or ()]
        found.append([dict(zip(names, row)) for row in result.fetchall()])  # noqa: B905
    return found


def main():
    asked = json.load(sys.stdin)
    if "script" in asked:
        scope = {}
        exec(asked["script"], scope)
        found = scope["found"]
    else:
        found = rows(asked["statements"])
    json.dump(found, sys.stdout, default=str)


if __name__ == "__main__":
    main()
