"""In-memory double of the chart writer.

writer = InMemoryChartWriter()              # writer.drawn has every chart
"""

from mlxk.application.ports.measuring import ChartWriter
from mlxk.domain.charts import Chart


class InMemoryChartWriter(ChartWriter):
    """Keeps the charts, and returns only the first bytes of an image file."""

    def __init__(self) -> None:
        self.drawn: list[Chart] = []

    def draw(self, chart: Chart, kind: str) -> bytes:
        self.drawn.append(chart)
        return b"\x89PNG\r\n\x1a\n" if kind == "png" else b"<?xml version='1.0'?>\n<svg></svg>\n"
