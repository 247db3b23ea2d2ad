"""The options that the `logs` commands share, and what they say."""

import argparse

from open_llm_proxy.archive.tables.filters import Filters

SOURCE_HELP = (
    "a folder, a file, s3://bucket/prefix or - for stdin "
    "(default: LOG_DIR or LOG_BUCKET, else stdin)"
)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Where the log is read from, and where downloads are kept."""
    parser.add_argument("source", nargs="?", metavar="SOURCE", help=SOURCE_HELP)
    group = parser.add_argument_group("source")
    group.add_argument(
        "--tables",
        metavar="SOURCE",
        help="where the tables of `logs compact` are, if not in SOURCE itself",
    )
    group.add_argument("--cache", metavar="DIR", help="where downloaded objects are kept")
    group.add_argument(
        "--cache-max-bytes", type=positive, metavar="N", help="limit of the cache (default 20 GB)"
    )


def add_filters(parser: argparse.ArgumentParser, *, limit: int | None = None) -> None:
    """Which calls."""
    group = add_times(parser)
    group.add_argument("--app", help="host of the app's page, its origin or its X-Client")
    group.add_argument("--model", help="the model as the client named it; * for any characters")
    group.add_argument("--key", metavar="NAME", help="the proxy key's name")
    group.add_argument("--session", metavar="ID", help="a session_id or a request_id")
    group.add_argument("--outcome", help="ok, failed, open, upstream_timeout, ...")
    group.add_argument(
        "--grep", metavar="TEXT", help="text in a question, an answer or a tool call"
    )
    said = "all" if limit is None else str(limit)
    group.add_argument(
        "-n", "--limit", type=positive, default=limit, metavar="N", help=f"at most (default {said})"
    )


def add_times(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Which days; returns the group of the filters."""
    group = parser.add_argument_group("filters")
    group.add_argument("--since", metavar="WHEN", help="2h, 7d, 2026-04-07 or a UTC time")
    group.add_argument("--until", metavar="WHEN", help="the same; a date includes that day")
    return group


def add_json(parser: argparse.ArgumentParser) -> None:
    """What the output is."""
    parser.add_argument("--json", action="store_true", help="JSON lines also on a terminal")


def filters_of(chosen: argparse.Namespace) -> Filters:
    """The filters among the options; raises `FilterError`."""
    names = ("app", "model", "key", "session", "outcome", "grep", "limit")
    values = {name: getattr(chosen, name, None) for name in names}
    since, until = getattr(chosen, "since", None), getattr(chosen, "until", None)
    return Filters.parsed(since=since, until=until, **values)


def positive(text: str) -> int:
    """A count, for argparse."""
    number = int(text.replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
