"""Charts by matplotlib, without a window or the user's settings file; the same chart gives the same bytes."""

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
"""The colour-blind-safe palette of Okabe and Ito."""
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
"""Line styles, so that the curves differ without colours as well."""
_SHADES = ("#E3E8EE", "#F3EEE2")
"""Alternating backgrounds of the regions."""
_SIZE, _HEIGHTS = (11.0, 8.0), (4.0, 2.5, 2.5)
"""Width and height in inches, and the height ratios of the rows."""
_UNITS = ((3 * 3600.0, 3600.0, "hours"), (600.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
"""Shortest duration, scale and name of each unit of the time axis, in seconds."""
_ROOM, _LEAST = 1.06, 0.1
"""Upper end of a value axis: a multiple of the highest value, which counts as at least the second."""
_LONGEST_LABEL = 32
_CHARACTER, _NARROWEST = 0.0065, 0.008
"""Fractions of the chart's width: of one character of a label, and of the narrowest region with a label."""
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
    """Draws the rows above one another, with the regions in the background."""

    def draw(self, chart: Chart, kind: str) -> bytes:
        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as those about characters missing in the font
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_SETTINGS)
            image = io.BytesIO()
            _figure(chart).savefig(image, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
            return image.getvalue()


def _figure(chart: Chart) -> Figure:
    figure = Figure(figsize=_SIZE, layout="constrained")
    figure.suptitle(chart.title, fontweight="bold")
    rows = figure.subplots(len(chart.rows), sharex=True, height_ratios=_HEIGHTS[: len(chart.rows)], squeeze=False)
    end = chart.seconds[-1]
    scale, unit = next((scale, unit) for least, scale, unit in _UNITS if end >= least)
    times = [seconds / scale for seconds in chart.seconds]
    for index, (row, axes) in enumerate(zip(chart.rows, rows[:, 0], strict=True)):
        _draw_regions(chart, axes, scale, labels=index == 0)
        _draw_row(row, axes, times)
    last = rows[-1, 0]
    last.set_xlabel(unit)
    last.set_xlim(0, max(end / scale, 1e-3))
    return figure


def _draw_regions(chart: Chart, axes: Axes, scale: float, *, labels: bool) -> None:
    duration = max(chart.seconds[-1], 1e-3)
    for index, region in enumerate(chart.regions):
        axes.axvspan(region.start / scale, region.end / scale, color=_SHADES[index % 2], linewidth=0, zorder=0)
        axes.axvline(region.start / scale, color="#999999", linewidth=0.6, zorder=0.5)
        share = (region.end - region.start) / duration
        if labels and share >= _NARROWEST:
            label = region.label if len(region.label) <= _LONGEST_LABEL else f"{region.label[: _LONGEST_LABEL - 1]}…"
            axes.annotate(
                label,
                (region.start / scale, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                rotation=90 if share < _CHARACTER * len(label) else 0,
                verticalalignment="top",
                fontsize=8,
                color="#333333",
                clip_on=True,
            )


def _draw_row(row: ChartRow, axes: Axes, times: Sequence[float]) -> None:
    axes.set_title(row.title, loc="left", fontsize=9)
    axes.set_ylabel(row.unit)
    lines = _draw_curves(row.series, axes, times, 0)
    axes.set_ylim(0, _ROOM * max(row.most or _highest(row.series), _LEAST))
    if row.right_series:
        right = axes.twinx()
        right.grid(visible=False)
        right.set_ylabel(row.right_unit)
        lines += _draw_curves(row.right_series, right, times, len(row.series), steps=bool(row.right_levels))
        if row.right_levels:
            right.set_yticks(*map(list, zip(*row.right_levels, strict=True)))
        right.set_ylim(0, _ROOM * max(_highest(row.right_series), *(level for level, _ in row.right_levels), 1))
    if lines:
        axes.legend(handles=lines, loc="upper left", bbox_to_anchor=(1.06, 1.0), frameon=False, fontsize=8)
    else:
        axes.text(0.5, 0.5, "no sample has these figures", transform=axes.transAxes, horizontalalignment="center")


def _highest(series: Sequence[Series]) -> float:
    return max((value for curve in series for value in curve.values if value is not None), default=0.0)


def _draw_curves(
    series: Sequence[Series], axes: Axes, times: Sequence[float], first: int, *, steps: bool = False
) -> list[Line2D]:
    lines: list[Line2D] = []
    for index, curve in enumerate(series, first):
        values = [float("nan") if value is None else value for value in curve.values]
        lines += axes.plot(
            times,
            values,
            label=curve.name,
            color=_COLOURS[index % len(_COLOURS)],
            linestyle=_STYLES[index % len(_STYLES)],
            linewidth=1.4,
            drawstyle="steps-post" if steps else "default",
            marker="." if len(times) == 1 else None,
        )
    return lines
