"""``mlxk monitor plot``: files of ours and of mlx-knife's memory monitor, reports, and what cannot be drawn."""

import html.parser
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Command = Callable[..., dict[str, Any]]
Program = Callable[..., "subprocess.CompletedProcess[str]"]
BEGAN = 1790801163.0
SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "benchmarks" / "memory-sample.jsonl"


def line(elapsed: float, **fields: object) -> str:
    """Return a sample as mlx-knife's memory monitor writes it."""
    known = {"ram_free_gb": 20.0 - elapsed, "ram_used_gb": 0, "swap_used_mb": 0, "memory_pressure": 1, "load_1": 2.0}
    cpu = {"cpu_user": 10.0, "cpu_sys": 5.0, "cpu_idle": 85.0, "gpu_active": True, "gpu_device_util": 11.0}
    return json.dumps({**known, **cpu, "ts": BEGAN + elapsed, "elapsed_s": elapsed, **fields})


def report(model: str, began: float, ended: float) -> str:
    """Return a line of a report, which has only its end and its duration, as those of mlx-knife."""
    moment = {"timestamp": "2026-09-30T20:46:%06.3f+00:00" % (ended + 3.0), "duration": ended - began}
    return json.dumps({"schema_version": "0.2.2", "test": "live::test_a", "model": {"id": model}, **moment})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "memory.jsonl").write_text("".join(f"{line(second)}\n" for second in range(10)))
    (tmp_path / "report.jsonl").write_text(f"{report('org/Llama', 1, 4)}\n{report('org/Llama', 4, 5)}\n")
    return tmp_path


@pytest.mark.parametrize("kind", ["svg", "png", "html"])
def test_a_file_is_drawn_in_every_format_with_the_models_of_a_report(command: Command, files: Path, kind: str) -> None:
    data = command("monitor", "plot", "memory.jsonl", "report.jsonl", "-o", f"plot.{kind}")["data"]
    assert data["file"] == f"plot.{kind}"
    assert data["regions"] == [{"label": "Llama", "start_s": 1.0, "end_s": 5.0}]
    assert (data["summary"]["samples"], data["summary"]["duration_s"]) == (10, 9.0)
    assert (data["summary"]["ram_free_min_gb"], data["summary"]["memory_pressure_max"]) == (11.0, 1)
    picture = files / f"plot.{kind}"
    if kind == "png":
        with Image.open(picture) as image:
            assert image.format == "PNG"
    elif kind == "svg":
        ElementTree.fromstring(picture.read_text())
    else:
        page = picture.read_text()
        html.parser.HTMLParser().feed(page)
        assert "<td>Llama" in page
        assert page.count("<svg") == 1
        assert "<script" not in page
        assert re.findall(r"""(?:src|href|url)[=(]["']?[^#"'][^"')]*""", page) == []


def test_without_a_name_the_plot_is_a_page_beside_the_samples(mlxk: Program, files: Path) -> None:
    done = mlxk("monitor", "plot", "memory.jsonl")
    assert (done.returncode, done.stdout, done.stderr) == (0, "10 samples drawn: memory.html\n", "")
    assert mlxk("monitor", "plot", "memory.jsonl", "--format", "png", "--title", "<b>&").stdout.endswith("memory.png\n")
    assert mlxk("monitor", "plot", "memory.jsonl", "-o", "odd.name", "--format", "svg").returncode == 0
    ElementTree.fromstring((files / "odd.name").read_text())


@pytest.mark.skipif(not SAMPLES.exists(), reason="the samples of mlx-knife are not beside this repository")
def test_real_samples_of_mlx_knife_are_drawn(command: Command, tmp_path: Path) -> None:
    data = command("monitor", "plot", str(SAMPLES), "-o", "real.svg")["data"]
    assert data["summary"]["ram_free_min_gb"] == 20.56
    assert data["summary"]["ram_free_max_gb"] == 21.31
    assert data["summary"]["gpu_percent"] == {"least": 0.0, "greatest": 19.0, "mean": 7.5}
    assert data["summary"]["cpu_percent"]["greatest"] == pytest.approx(44.5)


def test_our_own_samples_have_the_regions_of_the_models_in_them(command: Command, tmp_path: Path) -> None:
    model = {"name": "org/b", "weight_bytes": 5, "in_use": False, "tokens_per_second": None}
    figures = {"array_bytes": 900, "running": 1, "responding": False}
    server = {"url": "http://a", "pid": 7, "models": [model], "engine": figures, "memory": None}
    tree = {"processes": 2, "memory_bytes": 10**9, "memory_kind": "footprint", "cpu_percent": 7.5}
    lines = [
        line(0, servers=[]),
        line(1, servers=[server], command=tree),
        line(2, servers=[server], ram_total_bytes=2**35, ram_available_bytes=2**34, memory_stall_percent=1.0),
        line(3, servers=[{**server, "models": []}]),
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    data = command("monitor", "plot", "own.jsonl")["data"]
    assert data["regions"] == [{"label": "org/b", "start_s": 1.0, "end_s": 3.0}]
    assert (data["summary"]["command_max_bytes"], data["summary"]["command_memory_kind"]) == (10**9, "footprint")
    assert data["summary"]["ram_used_max_bytes"] == 2**34
    assert data["summary"]["arrays_max_bytes"] == 900


def test_lines_that_are_no_samples_are_named_and_the_rest_is_drawn(mlxk_here: Program, files: Path) -> None:
    lines = [
        line(0),
        "{",
        "[1]",
        '{"elapsed_s": "1"}',
        '{"ram_free_gb": 1}',
        '{"elapsed_s": NaN}',
        line(1, servers=[{"url": 1}]),
        line(1, command={"memory_kind": "uss"}),
        "\ufeff" + line(2),
        '{"summary": {"samples": 2}}',
        line(3)[:40],
    ]
    (files / "mixed.jsonl").write_text("\n".join(lines))
    done = mlxk_here("monitor", "plot", "mixed.jsonl")
    assert (done.returncode, done.stdout) == (0, "2 samples drawn: mixed.html\n")
    assert [each.split(":")[0] for each in done.stderr.splitlines()] == [
        f"[mixed.jsonl, line {number}" for number in (2, 3, 4, 5, 6, 7, 8, 11)
    ]
    assert "line 5: it has neither 'elapsed_s' nor 'ts'; it is left out]" in done.stderr
    assert "line 4: its 'elapsed_s' is no number from 0 on" in done.stderr


def test_samples_with_only_their_moment_are_placed_by_it(command: Command, tmp_path: Path) -> None:
    moments = (json.dumps({"ram_free_gb": 1.0, "ts": BEGAN + second}) for second in (0, 5, 2))
    (tmp_path / "moments.jsonl").write_text("\n".join(moments))
    assert command("monitor", "plot", "moments.jsonl")["data"]["summary"]["duration_s"] == 5.0


def test_a_report_of_another_time_and_faulty_lines_are_said(mlxk_here: Program, files: Path) -> None:
    timeless = json.dumps({"test": "live::test_a", "timestamp": "2026-09-30T20:46:03"})
    lines = (report("org/a", 100, 110).replace("20:46:113", "21:00:13"), "{}", timeless)
    (files / "other.jsonl").write_text("\n".join(lines))
    done = mlxk_here("monitor", "plot", "memory.jsonl", "other.jsonl")
    assert done.returncode == 0
    assert "[nothing in 'other.jsonl' was measured while 'memory.jsonl' was sampled]" in done.stderr
    assert "[other.jsonl, line 2: it is no line of a report; it is left out]" in done.stderr
    assert "[other.jsonl, line 3: it says neither when it began nor how long it took; it is left out]" in done.stderr


def test_a_measurement_is_drawn_from_its_own_start_under_the_name_of_its_test(command: Command, files: Path) -> None:
    moments = {"test_start_ts": BEGAN + 2, "test_end_ts": BEGAN + 4.5, "duration": 99}
    ended = {"timestamp": "2026-09-30T20:46:10", "duration": 2}
    known = ({"test": "live/test_a", "model": None, **moments}, {"test": "live::test_b", **ended})
    (files / "own.jsonl").write_text("\n".join(map(json.dumps, known)))
    assert command("monitor", "plot", "memory.jsonl", "own.jsonl")["data"]["regions"] == [
        {"label": "test_a", "start_s": 2.0, "end_s": 4.5},
        {"label": "live::test_b", "start_s": 5.0, "end_s": 7.0},
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "a plot takes a file of samples, and a report or none"),
        (("memory.jsonl", "report.jsonl", "third"), 2, "a plot takes a file of samples"),
        (("memory.jsonl", "-o", "plot.pdf"), 2, "-o: 'plot.pdf' ends in none of html, svg, png"),
        (("memory.jsonl", "--interval", "1"), 2, "--interval has no meaning for a plot"),
        (("memory.jsonl", "-o", "memory.jsonl", "--format", "svg"), 2, "has the samples, and is not overwritten"),
        (("memory.jsonl", "-o", "no/such/plot.svg"), 1, "'no/such/plot.svg' cannot be written: No such file"),
        (("memory.jsonl", "-o", "folder.svg"), 1, "'folder.svg' cannot be written: Is a directory"),
        (("nosuch.jsonl",), 1, "'nosuch.jsonl' cannot be read: No such file or directory"),
        (("nosuch.jsonl", "-o", "plot.svg"), 1, "'nosuch.jsonl' cannot be read: No such file or directory"),
        (("empty.jsonl",), 1, "'empty.jsonl' is no file of samples: it is empty"),
        (("report.jsonl",), 1, "'report.jsonl' is no file of samples: line 1: it has neither 'elapsed_s' nor 'ts'"),
        (("memory.jsonl", "nosuch.jsonl"), 1, "'nosuch.jsonl' cannot be read"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(
    mlxk_here: Program, files: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    (files / "empty.jsonl").touch()
    (files / "folder.svg").mkdir()
    (files / "plot.svg").touch()
    before = sorted(os.listdir(files))
    done = mlxk_here("monitor", "plot", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert sorted(os.listdir(files)) == before


def test_flags_of_a_plot_are_refused_for_a_watch(command: Command) -> None:
    said = command("monitor", "--format", "svg", "--seconds", "1")["error"]["message"]
    assert said == "--format goes with mlxk monitor plot"


def test_without_matplotlib_the_plot_says_what_to_install(program_environment: dict[str, str], files: Path) -> None:
    program = "import sys; sys.modules['matplotlib'] = None; from mlxk.entrypoints.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "monitor", "plot", "memory.jsonl"],
        env=program_environment,
        cwd=files,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "a plot needs matplotlib, which is not installed\nInstall it: pip install matplotlib" in done.stderr
    assert not (files / "memory.html").exists()


def test_settings_that_matplotlib_refuses_are_said(mlxk: Program, files: Path) -> None:
    done = mlxk("monitor", "plot", "memory.jsonl", MPLBACKEND="nosuch")
    assert done.returncode == 1
    assert "matplotlib refuses its settings: " in done.stderr
    assert "Traceback" not in done.stderr
