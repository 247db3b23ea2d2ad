"""Writes the tables and plots of docs/performance.md and docs/scaling.md, which nobody types.

    python tools/render_performance.py [RECORDS]   takes over new records, writes page and plots
    python tools/render_performance.py --check     exit code 1 where the page is not up to date

RECORDS is the folder (build/performance) into which `make bench` and `make bench-peers` write. What
is there replaces that part of docs/performance.json, from which all is made; what is missing stays
as it was.
"""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import scaling_tables
from render_docs import rendered
from scaling_tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
SCALING = ROOT / "docs" / "scaling.md"
README = ROOT / "README.md"
RECORD = ROOT / "docs" / "performance.json"
PLOTS = ROOT / "docs" / "plots"
PARTS = ("throughput", "peers", "streams", "long_prompt", "starts", "backlog", "profile")
LIBRARIES = ("tornado", "httptools", "msgspec")
SERIES = ("floor", "stdout only", "durable")

Fields = dict[str, Any]


def machine() -> Fields:
    """What the figures depend on."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(": ")[2]
            break
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": libraries,
        "load_average": round(os.getloadavg()[1], 1),
    }


def taken_over(record: Fields, folder: Path) -> Fields:
    """`record` with the parts that lie in `folder`."""
    new = dict(record)
    for part in PARTS:
        if (path := folder / f"{part}.json").exists():
            new[part] = {"machine": machine(), **json.loads(path.read_text())}
    return new


def calls_table(part: Fields) -> str:
    """Of relay_throughput.py or peers.py."""
    heads = ("connections", "", "calls/s (spread)", "of the floor", "p50", "CPU a call", "of it")
    rows = []
    for connections, table in part["connections"].items():
        for name, row in table.items():
            rows.append(
                (
                    connections,
                    name,
                    f"{row['rate']:,.0f} ({row['rate_low']:,.0f}-{row['rate_high']:,.0f})",
                    f"{row['rate_ratio']:.2f}",
                    f"{row['p50_ms']:.2f} ms",
                    f"{row['cpu_ms']:.2f} ms",
                    f"{row['cpu_ms_ratio']:.1f}",
                )
            )
            connections = ""
    return markdown_table(heads, rows)


def throughput(part: Fields) -> str:
    single = part["connections"].get("1")
    added = ""
    if single is not None:
        floor = single["floor"]["p50_ms"]
        syncs = 2 * part["fdatasync_ms"]
        rest = single["durable"]["p50_ms"] - floor - syncs
        added = (
            f"\n\nAt one connection a durable call takes {single['durable']['p50_ms']:.2f} ms: the "
            f"floor's {floor:.2f} ms, two fdatasyncs of {part['fdatasync_ms']:.2f} ms, and "
            f"{rest:.2f} ms for all else."
        )
    plot = "![Calls a second over connections](plots/calls.svg)"
    return f"{plot}\n\n{calls_table(part)}{added}\n\n{_machine(part['machine'])}"


def peers(part: Fields) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in part["versions"].items())
    return f"{calls_table(part)}\n\n{versions}. {_machine(part['machine'])}"


def streams(part: Fields) -> str:
    heads = ("streams", "", "whole", "p50", "p99", "largest", "CPU a token", "memory at the end")
    rows = []
    for count, table in part["paced"].items():
        for name, row in table.items():
            rows.append(
                (
                    f"{int(count):,}" if name == "floor" else "",
                    name,
                    str(row["complete"]),
                    f"{row['p50_ms']:.1f} ms",
                    f"{row['p99_ms']:.1f} ms",
                    f"{row['max_ms']:.0f} ms",
                    f"{row['cpu_us_a_token']:.0f} µs",
                    f"{row['memory_mb'][-1]:.0f} MB",
                )
            )
    text = f"![Delay of a token over streams](plots/delays.svg)\n\n{markdown_table(heads, rows)}"
    text += f"\n\nThe proxy's memory never exceeded {part['peak_mb']:.0f} MB."
    if "flat_out" in part:
        heads = ("", "tokens/s (spread)", "of the floor", "CPU a token")
        rows = [
            (
                name,
                f"{row['tokens_a_second']:,.0f} "
                f"({row['tokens_a_second_low']:,.0f}-{row['tokens_a_second_high']:,.0f})",
                f"{row['tokens_a_second_ratio']:.2f}",
                f"{row['cpu_us_a_token']:.1f} µs",
            )
            for name, row in part["flat_out"].items()
        ]
        text += f"\n\nAs fast as they are taken:\n\n{markdown_table(heads, rows)}"
    return f"{text}\n\n{_machine(part['machine'])}"


def long_prompt(part: Fields) -> str:
    durable, floor = part["table"]["durable"], part["table"]["floor"]
    share = part["redaction_known_ms"] / durable["cpu_ms"]
    rows = [
        ("body", f"{part['bytes']:,} bytes, {part['messages']} messages, {part['tools']} tools"),
        ("CPU a call", f"{durable['cpu_ms']:.2f} ms; the floor {floor['cpu_ms']:.2f} ms"),
        (
            "… redaction, only the last message new",
            f"{part['redaction_known_ms']:.2f} ms ({share:.0%})",
        ),
        ("… redaction, no message seen before", f"{part['redaction_new_ms']:.2f} ms"),
        ("the event loop is blocked at most", f"{part['blocked_ms']:.0f} ms"),
        (
            "others wait meanwhile (`/ready`)",
            f"p99 {part['others_p99_ms']:.1f} ms, {part['others_max_ms']:.0f} ms at most",
        ),
    ]
    return f"{markdown_table(('', ''), rows)}\n\n{_machine(part['machine'])}"


def starts(part: Fields) -> str:
    heads = ("", "start", "CPU of it", "memory when idle", "CPU when idle")
    rows = [
        (
            "Python with Tornado alone",
            f"{part['bare']['seconds']:.2f} s",
            f"{part['bare']['cpu_seconds']:.2f} s",
            "",
            "",
        ),
        *(
            (
                f"with {name}",
                f"{part[name]['seconds']:.2f} s",
                f"{part[name]['cpu_seconds']:.2f} s",
                f"{part[name]['memory_mb']:.0f} MB",
                f"{part[name]['idle_cpu_share'] * 100:.1f} %",
            )
            for name in ("directory", "S3")
        ),
    ]
    burst = "; ".join(
        f"{name}: {row['dropped_syns']:.0f} dropped, all answered after {row['seconds']:.2f} s"
        for name, row in part["burst"].items()
    )
    return (
        f"{markdown_table(heads, rows)}\n\n{part['connections']} new connections at the same "
        f"moment, dropped by a full queue of the kernel: {burst}.\n\n{_machine(part['machine'])}"
    )


def backlog(part: Fields) -> str:
    return (
        f"{part['rows']:,} rows drained into a directory at {part['rows_per_second']:,.0f} rows/s "
        f"({part['bytes_per_second'] / 1e6:.0f} MB/s), with "
        f"{part['peak_memory_bytes'] / 1e6:.0f} MB of memory at most. {_machine(part['machine'])}"
    )


def profile(part: Fields) -> str:
    areas = [(name, f"{share:.1%}") for name, share in part["areas"].items()]
    top = [(f"`{name}`", f"{share:.1%}") for name, share in part["top"].items()]
    return (
        f"{markdown_table(('area', 'share'), areas)}\n\nThe top of the flame graph, each function "
        f"with all that it calls:\n\n{markdown_table(('function', 'share'), top)}\n\n"
        f"{part['samples']:,} samples. {_machine(part['machine'])}"
    )


def plots(record: Fields) -> None:
    """Renders what there are records for."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "performance", "svg.fonttype": "none"})
    from matplotlib.figure import Figure

    PLOTS.mkdir(exist_ok=True)
    if "throughput" in record:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        tables = record["throughput"]["connections"]
        for name in SERIES:
            rows = [table[name] for table in tables.values()]
            rates = [row["rate"] for row in rows]
            low = [row["rate"] - row["rate_low"] for row in rows]
            high = [row["rate_high"] - row["rate"] for row in rows]
            axes.errorbar(
                list(map(int, tables)), rates, (low, high), label=name, marker="o", capsize=3
            )
        axes.set(xscale="log", xlabel="connections", ylabel="calls/s", ylim=(0, None))
        _finish(figure, axes, list(map(int, tables)), "calls.svg")
    if "streams" in record:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        tables = record["streams"]["paced"]
        for name in ("floor", "durable"):
            for figure_name, style in (("p50_ms", "--"), ("p99_ms", "-")):
                delays = [table[name][figure_name] for table in tables.values()]
                label = f"{name}, {figure_name.removesuffix('_ms')}"
                axes.plot(list(map(int, tables)), delays, style, label=label, marker="o")
        axes.set(
            xscale="log", xlabel="streams at a time", ylabel="delay of a token, ms", ylim=(0, None)
        )
        _finish(figure, axes, list(map(int, tables)), "delays.svg")


def _finish(figure: Any, axes: Any, ticks: list[int], file: str) -> None:
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(PLOTS / file, metadata={"Date": None})


def headline(record: Fields) -> str:
    """The three figures of the README; none that a busy machine has spoilt."""
    record = {name: part for name, part in record.items() if not _is_busy(part["machine"])}
    lines = []
    if "throughput" in record:
        tables = record["throughput"]["connections"]
        row = tables["32"]["durable"]
        lines.append(
            f"- **{row['rate']:,.0f} calls/s** a process with the durable log, at 32 connections: "
            f"{row['rate_ratio']:.2f} of a bare Tornado relay that logs nothing."
        )
        if "peers" in record:
            table = record["peers"]["connections"]["32"]
            times = [
                f"{table['durable']['rate'] / table[name]['rate']:.0f} times {name}"
                for name in record["peers"]["versions"]
            ]
            lines[0] += f" That is {' and '.join(times)} without a log, in the same run."
        added = tables["1"]["durable"]["p50_ms"] - tables["1"]["floor"]["p50_ms"]
        lines.append(
            f"- **{added:.1f} ms** are added to a call, "
            f"two fdatasyncs of {record['throughput']['fdatasync_ms']:.2f} ms included."
        )
    if "streams" in record:
        count, table = list(record["streams"]["paced"].items())[-1]
        added = table["durable"]["p99_ms"] - table["floor"]["p99_ms"]
        p99 = table["durable"]["p99_ms"]
        told = (
            f"{added:.0f} ms are added to a token's p99."
            if added > 0
            else f"a token's p99 is {p99:.0f} ms, no more than the bare relay's."
        )
        lines.append(
            f"- **{int(count):,} streams** at {record['streams']['rate']:g} tokens/s at a time in "
            f"{record['streams']['peak_mb']:.0f} MB: {told}"
        )
    return "\n".join(lines)


def page(record: Fields) -> str:
    text = PAGE.read_text()
    for name in PARTS:
        part = globals()[name](record[name]) if name in record else "Not measured yet."
        text = rendered(text, name, part)
    return text


def scaling(record: Fields) -> str:
    text = SCALING.read_text()
    text = rendered(text, "pod", scaling_tables.pod(record))
    text = rendered(text, "users", scaling_tables.users(record))
    return rendered(text, "reading", scaling_tables.reading())


def pages(record: Fields) -> dict[Path, str]:
    """Every page that is made from the record → its text."""
    return {PAGE: page(record), SCALING: scaling(record), README: readme(record)}


def readme(record: Fields) -> str:
    return rendered(README.read_text(), "performance", headline(record))


def _is_busy(machine: Fields) -> bool:
    return bool(machine["load_average"] > 3)


def _machine(machine: Fields) -> str:
    load = ""
    if _is_busy(machine):
        load = f" Other programs kept it busy (load average {machine['load_average']})."
    return (
        f"Taken on {machine['cores']} cores of {machine['processor']}, {machine['system']}, Python "
        f"{machine['python']}, {machine['libraries']}.{load}"
    )


def main(arguments: list[str]) -> int:
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if "--check" in arguments:
        stale = [path for path, text in pages(record).items() if path.read_text() != text]
        for path in stale:
            print(f"{path} is not up to date: run tools/render_performance.py")
        return 1 if stale else 0
    record = taken_over(record, Path(arguments[0]) if arguments else ROOT / "build" / "performance")
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for path, text in pages(record).items():
        path.write_text(text)
    plots(record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
