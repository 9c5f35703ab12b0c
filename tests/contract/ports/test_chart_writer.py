"""The contract of what draws charts, and what the pictures of the adapter have."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
from doubles.chart_writer import InMemoryChartWriter
from PIL import Image

from mlxk.adapters.plotting import MatplotlibChartWriter
from mlxk.application.ports.measuring import ChartWriter
from mlxk.domain.charts import Chart, ChartRow, Series
from mlxk.domain.monitoring import LEVELS, Period

CHART = Chart(
    "samples $of$ <a> & 模型",
    (0.0, 1.0, 2.0),
    (
        ChartRow("Memory", "GB", (Series("used", (1.0, None, 3.0)), Series("free", (3.0, 2.0, 1.0)))),
        ChartRow("Processor", "%", (Series("processor", (0.0, 50.0, 100.0)),), most=100.0),
        ChartRow("Swap", "GB", (), "", (Series("pressure", (1.0, 2.0, 4.0)),), LEVELS),
    ),
    (Period("$model_{1}", 0.0, 1.0), Period("a name that is far longer than its region", 1.0, 1.2)),
)


@pytest.fixture(params=[MatplotlibChartWriter, InMemoryChartWriter])
def writer(request: pytest.FixtureRequest) -> ChartWriter:
    kind: Callable[[], ChartWriter] = request.param
    return kind()


@pytest.mark.parametrize(("kind", "begin"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<?xml")])
def test_a_picture_is_of_its_kind(writer: ChartWriter, kind: str, begin: bytes) -> None:
    assert writer.draw(CHART, kind).startswith(begin)


@pytest.mark.parametrize(
    "chart",
    [
        CHART,
        Chart("", (0.0,), (ChartRow("Memory", "GB", (Series("used", (1.0,)),)),), ()),
        Chart("empty", (0.0, 1.0), (ChartRow("Memory", "GB", ()), ChartRow("Swap", "GB", ())), ()),
        Chart(
            "hours",
            (0.0, 86400.0),
            (ChartRow("Memory", "GB", (Series("used", (0.0, 0.0)),)),),
            (Period("a", 0, 1),),
        ),
    ],
    ids=["whole", "one sample", "without curves", "a day"],
)
def test_every_chart_can_be_drawn_and_twice_alike(writer: ChartWriter, chart: Chart) -> None:
    assert writer.draw(chart, "svg") == writer.draw(chart, "svg")


def test_curves_have_the_colours_that_people_who_see_few_can_tell_apart_and_other_strokes() -> None:
    picture = MatplotlibChartWriter().draw(CHART, "svg").decode()
    ElementTree.fromstring(picture)
    strokes = re.findall(r"stroke: (#0072b2|#d55e00)", picture)
    assert {"#0072b2", "#d55e00"} == set(strokes)
    assert re.search(r"stroke-dasharray: [^;]+; stroke-dashoffset: 0; stroke: #d55e00", picture)
    assert not re.search(r"stroke-dasharray: [^;]+; stroke-dashoffset: 0; stroke: #0072b2", picture)


def test_regions_are_shaded_where_they_are() -> None:
    import io

    image = Image.open(io.BytesIO(MatplotlibChartWriter().draw(CHART, "png"))).convert("RGB")
    assert image.size == (1320, 960)
    counts = {colour: number for number, colour in image.getcolors(maxcolors=image.width * image.height) or ()}
    first, second = counts[(0xE3, 0xE8, 0xEE)], counts[(0xF3, 0xEE, 0xE2)]
    assert 3 < first / second < 7  # a whole second, and a fifth of one


@pytest.mark.parametrize("backend", ["", "tkagg"])
def test_settings_of_the_user_s_plots_do_not_count(backend: str) -> None:
    program = (
        "import sys; from mlxk.adapters.plotting import MatplotlibChartWriter\n"
        "from mlxk.domain.charts import Chart, ChartRow\n"
        "sys.stdout.buffer.write(MatplotlibChartWriter().draw(Chart('', (0.0,), (ChartRow('a', 'b', ()),), ()), 'svg'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"MPLBACKEND": backend, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout[:5]) == (0, b"<?xml"), done.stderr
