"""Charts by matplotlib, on its own canvases: no window, no settings file of the user, the same bytes each time."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mlxk.application.ports.measuring import ChartWriter
from mlxk.domain.charts import Chart, ChartRow, Series

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""The palette of Okabe and Ito, which people who see few colours can tell apart."""
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
"""So that the curves differ without any colours, too."""
_SHADES = ("#E3E8EE", "#F3EEE2")
"""Of regions that follow one another."""
_SIZE, _HEIGHTS = (11.0, 8.0), (4.0, 2.5, 2.5)
"""Inches, and the parts of the rows."""
_UNITS = ((3 * 3600.0, 3600.0, "hours"), (600.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
"""From how many seconds on the time is shown in which unit."""
_ROOM, _LEAST = 1.06, 0.1
"""Of an axis: its length as a multiple of the highest value, and the least that it shows."""
_LONGEST_LABEL = 32
_CHARACTER, _NARROWEST = 0.0065, 0.008
"""Parts of the width: what a character of a label takes at most, and below what a region has no label."""
_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.parse_math": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "mlxk",
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
}


class MatplotlibChartWriter(ChartWriter):
    """Draws rows above one another, with the regions behind them."""

    def draw(self, chart: Chart, kind: str) -> bytes:
        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as about characters that the font does not have
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_SETTINGS)
            picture = io.BytesIO()
            _figure(chart).savefig(picture, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
            return picture.getvalue()


def _figure(chart: Chart) -> Figure:
    figure = Figure(figsize=_SIZE, layout="constrained")
    figure.suptitle(chart.title, fontweight="bold")
    rows = figure.subplots(len(chart.rows), sharex=True, height_ratios=_HEIGHTS[: len(chart.rows)], squeeze=False)
    end = chart.seconds[-1]
    scale, unit = next((scale, unit) for least, scale, unit in _UNITS if end >= least)
    times = [each / scale for each in chart.seconds]
    for index, (row, axes) in enumerate(zip(chart.rows, rows[:, 0], strict=True)):
        _regions(chart, axes, scale, labels=index == 0)
        _row(row, axes, times)
    last = rows[-1, 0]
    last.set_xlabel(unit)
    last.set_xlim(0, max(end / scale, 1e-3))
    return figure


def _regions(chart: Chart, axes: Axes, scale: float, *, labels: bool) -> None:
    whole = max(chart.seconds[-1], 1e-3)
    for index, region in enumerate(chart.regions):
        axes.axvspan(region.start / scale, region.end / scale, color=_SHADES[index % 2], linewidth=0, zorder=0)
        axes.axvline(region.start / scale, color="#999999", linewidth=0.6, zorder=0.5)
        part = (region.end - region.start) / whole
        if labels and part >= _NARROWEST:
            label = region.label if len(region.label) <= _LONGEST_LABEL else f"{region.label[: _LONGEST_LABEL - 1]}…"
            axes.annotate(
                label,
                (region.start / scale, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                rotation=90 if part < _CHARACTER * len(label) else 0,
                verticalalignment="top",
                fontsize=8,
                color="#333333",
                clip_on=True,
            )


def _row(row: ChartRow, axes: Axes, times: Sequence[float]) -> None:
    axes.set_title(row.title, loc="left", fontsize=9)
    axes.set_ylabel(row.unit)
    lines = _curves(row.series, axes, times, 0)
    axes.set_ylim(0, _ROOM * max(row.most or _highest(row.series), _LEAST))
    if row.right_series:
        right = axes.twinx()
        right.grid(visible=False)
        right.set_ylabel(row.right_unit)
        lines += _curves(row.right_series, right, times, len(row.series), steps=bool(row.right_levels))
        if row.right_levels:
            right.set_yticks(*map(list, zip(*row.right_levels, strict=True)))
        right.set_ylim(0, _ROOM * max(_highest(row.right_series), *(level for level, _ in row.right_levels), 1))
    if lines:
        axes.legend(handles=lines, loc="upper left", bbox_to_anchor=(1.06, 1.0), frameon=False, fontsize=8)
    else:
        axes.text(0.5, 0.5, "no sample has these figures", transform=axes.transAxes, horizontalalignment="center")


def _highest(series: Sequence[Series]) -> float:
    return max((value for each in series for value in each.values if value is not None), default=0.0)


def _curves(
    series: Sequence[Series], axes: Axes, times: Sequence[float], first: int, *, steps: bool = False
) -> list[Line2D]:
    lines: list[Line2D] = []
    for index, each in enumerate(series, first):
        values = [float("nan") if value is None else value for value in each.values]
        lines += axes.plot(
            times,
            values,
            label=each.name,
            color=_COLOURS[index % len(_COLOURS)],
            linestyle=_STYLES[index % len(_STYLES)],
            linewidth=1.4,
            drawstyle="steps-post" if steps else "default",
            marker="." if len(times) == 1 else None,
        )
    return lines
