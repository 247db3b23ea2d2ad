"""Plots of usage over time, drawn on the server as SVG by Matplotlib.

An image needs no script, and its texts are texts, which a browser can search and enlarge.
"""

import io
from datetime import datetime
from typing import Any

from open_llm_proxy.archive.tables.filters import Filters
from open_llm_proxy.archive.view import questions
from open_llm_proxy.archive.view.formatting import line
from open_llm_proxy.archive.view.snapshot import Snapshot

TITLES = {
    "calls": "Calls",
    "tokens": "Tokens",
    "cost": "Cost, USD",
    "latency": "Latency, 95th percentile, s",
    "errors": "Calls that failed",
}
"""The measures in the order of the page, and what stands above each plot."""

MAX_NAMES = 7
HOURS_UP_TO_DAYS = 2
SIZE_INCHES = (9.0, 2.6)
# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
OTHERS = "others"


def drawn(snapshot: Snapshot, filters: Filters, by: str, measure: str, is_dark: bool) -> bytes:
    """A plot of a measure by day, or by hour where the calls are of few days."""
    (span,) = snapshot.rows(
        "SELECT min(started) AS first, max(started) AS last FROM turns "
        f"WHERE {filters.literal_where()}"
    )
    unit = "day"
    if span["first"] and (span["last"] - span["first"]).days < HOURS_UP_TO_DAYS:
        unit = "hour"
    rows = snapshot.rows(questions.series(filters, by, measure, unit).sql)
    return _svg(_by_name(rows, measure), unit, measure, is_dark)


Series = dict[str, dict[datetime, float]]


def _by_name(rows: list[dict[str, Any]], measure: str) -> Series:
    """The biggest names apart, the others together, where their sum means something."""
    series: Series = {}
    for row in rows:
        if row["value"] is not None:
            scale = 1000 if measure == "latency" else 1
            series.setdefault(row["name"], {})[row["moment"]] = row["value"] / scale
    if len(series) <= MAX_NAMES:
        return dict(sorted(series.items()))
    order = sorted(series, key=lambda name: -sum(series[name].values()))
    kept = {name: series[name] for name in sorted(order[: MAX_NAMES - 1])}
    if measure != "latency":
        others: dict[datetime, float] = {}
        for name in order[MAX_NAMES - 1 :]:
            for moment, value in series[name].items():
                others[moment] = others.get(moment, 0.0) + value
        kept[OTHERS] = others
    return kept


def _svg(series: Series, unit: str, measure: str, is_dark: bool) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = "#d8dee6" if is_dark else "#222222"
    looks: Any = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": "#888888",
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(looks):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        _draw(axes, series, unit, measure)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True)
    return out.getvalue()


def _draw(axes: Any, series: Series, unit: str, measure: str) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.ticker import EngFormatter

    if not series:
        axes.text(0.5, 0.5, "nothing to draw", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    moments = sorted({moment for values in series.values() for moment in values})
    base = [0.0] * len(moments)
    width = 0.8 if unit == "day" else 0.8 / 24
    for (name, values), colour in zip(series.items(), COLOURS, strict=False):
        label = line(name, 28).replace("$", r"\$").removeprefix("_")
        if measure == "latency":
            known = [moment for moment in moments if moment in values]
            axes.plot(known, [values[at] for at in known], "o-", ms=3, color=colour, label=label)
            continue
        heights = [values.get(moment, 0.0) for moment in moments]
        axes.bar(moments, heights, width, base, color=colour, label=label)
        base = [low + height for low, height in zip(base, heights, strict=True)]
    locator = AutoDateLocator(minticks=2, maxticks=9)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    if measure in ("calls", "tokens"):
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#888888", alpha=0.25)
    if len(series) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
