"""``mlxk bench report``: report files of ours and of mlx-knife's benchmarks, their tables, and what changed."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from mlxk.domain.errors import ValidationError
from mlxk.entrypoints.cli.render import benchmark_reports

Command = Callable[..., dict[str, Any]]
Program = Callable[..., Any]

REAL = next((each for up in Path(__file__).parents if (each := up / "shared" / "data" / "benchmarks").is_dir()), None)
"""Files of mlx-knife's own benchmarks, which are no part of this repository."""

needs_real_files = pytest.mark.skipif(REAL is None, reason="files of mlx-knife's benchmarks are not on this machine")

HEAD = {"timestamp": "2026-01-02T03:04:05Z", "mlx_knife_version": "2.0.2", "outcome": "passed"}
OLD = {
    **HEAD,
    "schema_version": "0.1.0",
    "test": "tests/live/test_stop.py::test_stop[phi]",
    "duration": 12.5,
    "model": {"id": "acme/Phi-4bit", "size_gb": 2.5},
    "performance": {"tokens_per_sec": 40.0, "ram_peak_mb": 3000, "prompt_tokens": 3, "completion_tokens": 9},
}
NEW = {
    **HEAD,
    "schema_version": "0.2.2",
    "test": "tests/live/test_audio.py::TestAudio::test_short[one]",
    "test_start_ts": 1.5,
    "duration": 8.75,
    "model": {"id": "$HOME_OF_MODELS/Speech", "size_gb": 0.02, "family": "unknown"},
    "metadata": {"inference_modality": "audio"},
    "system_health": {"swap_used_mb": 9, "ram_free_gb": 1.5, "quality_flags": ["degraded_swap"]},
    "system": {"hardware_profile": {"model": "Mac14,13", "cores_physical": 12}},
}
SKIPPED = {**HEAD, "schema_version": "0.2.0", "test": "t::large", "outcome": "skipped", "metadata": {"why": "memory"}}


def written(path: Path, *lines: object) -> str:
    """Write a report; a line that is bytes is written as it is."""
    data = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    path.write_bytes(b"".join(each + b"\n" for each in data))
    return path.name


def test_lines_of_every_version_are_shown_by_model_and_test(mlxk: Program, command: Command, tmp_path: Path) -> None:
    name = written(tmp_path / "a.jsonl", OLD, NEW, b"", SKIPPED, {**NEW, "schema_version": "0.2.1"})
    done = mlxk("bench", "report", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.startswith(("Model", "Without"))] == [
        "Model: acme/Phi-4bit (2.5GB)",
        "Model: $HOME_OF_MODELS/Speech (20.0MB)",
        "Without a model",
    ]
    cells = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if " | " in line]
    assert cells == [
        ["test", "records", "outcome", "speed", "memory", "disturbed"],
        ["test_stop[phi]", "1", "passed", "40.0 tokens/s", "3.0GB", "-"],
        ["test", "records", "outcome", "duration", "disturbed"],
        ["test_short[one]", "2", "passed", "8.75 s", "degraded_swap"],
        ["test", "records", "outcome", "disturbed"],
        ["large", "1", "skipped", "-"],
    ]
    data = command("bench", "report", name)["data"]
    assert data["comparison"] is None
    (report,) = data["reports"]
    assert (report["records"], report["schema_versions"]) == (4, ["0.1.0", "0.2.2", "0.2.0", "0.2.1"])
    assert report["tests"][0]["figures"][0] == {
        **{"figure": "speed", "runs": 1, "median": 40.0, "lower_quartile": 40.0, "upper_quartile": 40.0}
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"schema_version": "0.2', "it is no JSON: Unterminated string"),
        (b"[1]", "it is no JSON object"),
        (b"\xff\xfe", "it is not text in UTF-8"),
        (b"[" * 100_000, "it is no JSON that can be read"),
        (b'{"schema_version": ' + b"9" * 5000 + b"}", "it is no JSON that can be read"),
        ({key: value for key, value in NEW.items() if key != "test"}, "test is missing"),
        ({**NEW, "timestamp": 5}, "timestamp is no text"),
        ({**NEW, "outcome": "error"}, "outcome is none of passed, failed, skipped"),
        ({**NEW, "duration": -1}, "duration is no number from 0"),
        ({**NEW, "duration": True}, "duration is no number from 0"),
        ({**NEW, "duration": float("nan")}, "duration is no number from 0"),
        ({**NEW, "performance": {"tokens_per_sec": "40"}}, "performance.tokens_per_sec is no number from 0"),
        ({**NEW, "performance": {"peak_ram_gb": 10**400}}, "performance.peak_ram_gb is no number from 0"),
        ({**NEW, "performance": []}, "performance is no object"),
        ({**NEW, "model": {"id": 5}}, "model.id is no text"),
        (b" " * 2**20 + b"{}", "it is longer than 1048576 bytes"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(
    mlxk_here: Program, command: Command, tmp_path: Path, line: object, reason: str
) -> None:
    name = written(tmp_path / "a.jsonl", OLD, b"", line)
    done = mlxk_here("bench", "report", name)
    assert done.returncode == 1
    assert f"a.jsonl, line 3: {reason}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "test_stop[phi]" in done.stdout
    (fault,) = json.loads(mlxk_here("bench", "report", name, "--json").stdout)["data"]["reports"][0]["faults"]
    assert (fault["file"], fault["line"], fault["reason"].startswith(reason)) == ("a.jsonl", 3, True)
    alone = command("bench", "report", written(tmp_path / "b.jsonl", line))["error"]
    assert alone["message"].startswith(f"'b.jsonl' is no report of a benchmark: line 1: {reason}")


def test_faulty_lines_beyond_the_first_twenty_are_counted(mlxk_here: Program, tmp_path: Path) -> None:
    done = mlxk_here("bench", "report", written(tmp_path / "a.jsonl", OLD, *[b"[1]"] * 23))
    said = done.stderr.splitlines()
    assert [line.endswith("it is no JSON object; it is left out") for line in said] == [True] * 20 + [False]
    assert said[-1] == "3 further lines could not be read"


def test_a_test_that_passed_and_failed_and_one_without_a_figure_of_others_are_shown(
    mlxk_here: Program, tmp_path: Path
) -> None:
    failed = {**OLD, "outcome": "failed", "performance": {}}
    other = {**OLD, "test": "x::bare", "duration": None, "performance": {"ram_peak_mb": 1}}
    done = mlxk_here("bench", "report", written(tmp_path / "a.jsonl", OLD, failed, OLD, other))
    cells = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if " | " in line]
    assert cells == [
        ["test", "records", "outcome", "speed", "memory", "disturbed"],
        ["test_stop[phi]", "3", "2 passed, 1 failed", "40.0 tokens/s", "3.0GB", "-"],
        ["bare", "1", "passed", "-", "1.0MB", "-"],
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("report",), "usage_error", "required: FILE"),
        (("report", "no.jsonl"), "storage_error", "'no.jsonl' cannot be read: No such file"),
        (("report", "."), "storage_error", "'.' cannot be read: Is a directory"),
        (("report", "empty"), "validation_error", "'empty' is no report of a benchmark: it is empty"),
        (("report", "empty", "--streams", "2"), "usage_error", "--streams measures"),
        (("report", "empty", "-m", "demo"), "usage_error", "-m measures"),
        (("demo", "--compare", "empty"), "usage_error", "--compare needs a report"),
        (("-m", "report"), "model_not_found", "report"),
    ],
)
def test_what_is_no_report_is_refused_by_name(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], code: str, said: str
) -> None:
    (tmp_path / "empty").write_text("\n\n")
    error = command("bench", *arguments)["error"]
    assert (error["type"], said in error["message"]) == (code, True), error


def test_a_null_is_as_good_as_nothing_and_a_later_schema_is_read_with_a_note(
    mlxk_here: Program, tmp_path: Path
) -> None:
    unusual = {"unit": {"of": 1}, "repeats": "5", "tokens_per_second": {"median": "fast"}}
    later = {**OLD, "schema_version": "1.0.0", "duration": None, "metadata": unusual, "stop_tokens": None, "new": [1]}
    done = mlxk_here("bench", "report", written(tmp_path / "a.jsonl", later))
    assert (done.returncode, "40.0 tokens/s" in done.stdout) == (0, True)
    assert "schema 1.0.0 is not known" in done.stderr


def of_runs(test: str, *speeds: float, **fields: Any) -> list[dict[str, Any]]:
    """Return a record for each run of a test."""
    return [{**OLD, "test": test, "performance": {"tokens_per_sec": speed}, **fields} for speed in speeds]


def test_what_changed_is_said_only_where_the_runs_support_it(
    mlxk_here: Program, command: Command, tmp_path: Path
) -> None:
    steady, apart = (40, 40.1, 40.2, 39.9, 39.8), (20, 60, 40, 80, 30)
    failed = {**OLD, "test": "x::breaks", "outcome": "failed"}
    before = [*of_runs("x::faster", *steady), *of_runs("x::noisy", *apart), *of_runs("x::few", 40), OLD]
    before += [*of_runs("x::alike", *steady), *of_runs("x::breaks", 40)]
    after = [*of_runs("x::faster", *(1.5 * each for each in steady)), *of_runs("x::few", 80), failed, SKIPPED]
    after += [
        *of_runs("x::noisy", *(1.5 * each for each in apart)),
        *of_runs("x::alike", *(each + 1 for each in steady)),
    ]
    written(tmp_path / "a.jsonl", *before)
    written(tmp_path / "b.jsonl", *after)
    data = command("bench", "report", "a.jsonl", "--compare", "b.jsonl")["data"]["comparison"]
    assert {each["test"]: each["difference"] for each in data["changes"]} == {
        **{"x::faster": "better", "x::noisy": "none", "x::few": "unknown", "x::alike": "none"}
    }
    assert data["changes"][0]["change"] == 0.5
    assert [each["test"] for each in data["now_failing"]] == ["x::breaks"]
    assert [each["test"] for each in data["only_before"]] == [OLD["test"]]
    assert data["only_after"] == [{"model_id": None, "test": "t::large"}]
    back = command("bench", "report", "b.jsonl", "--compare", "a.jsonl")["data"]["comparison"]
    assert [each["test"] for each in back["now_passing"]] == ["x::breaks"]
    assert [each["difference"] for each in back["changes"]][:1] == ["worse"]
    text = mlxk_here("bench", "report", "a.jsonl", "--compare", "b.jsonl").stdout
    (row,) = [line.split("|") for line in text.splitlines() if line.startswith("faster")]
    assert [cell.strip() for cell in row] == [
        *("faster", "speed", "40.0 tokens/s (39.9 to 40.1)", "60.0 tokens/s (59.8 to 60.2)", "+50.0 %", "better")
    ]
    assert "x::breaks of acme/Phi-4bit fails now, and did not" in text
    marked = mlxk_here("bench", "report", "a.jsonl", "--compare", "b.jsonl", "--markdown").stdout
    assert "| faster | speed | 40.0 tokens/s (39.9 to 40.1) |" in marked
    assert "- t::large is in the second report only" in marked
    lines = marked.splitlines()
    assert [line for line in lines[1:] if line.startswith("###")] == [
        line for before, line in itertools.pairwise(lines) if line.startswith("###") and not before
    ]
    assert "\n\n\n" not in marked


OURS = {
    "required": [
        "schema_version",
        "timestamp",
        "mlx_knife_version",
        "test",
        "outcome",
        "model",
        "performance",
        "system",
    ],
    "properties": {
        "schema_version": {"const": "0.2.2"},
        "mlx_knife_version": {"pattern": r"^\d+\.\d+\.\d+"},
        "outcome": {"enum": ["passed", "failed", "skipped"]},
        "test_start_ts": {"type": "number", "minimum": 0},
        "test_end_ts": {"type": "number", "minimum": 0},
        "timestamp": {"type": "string"},
        "test": {"type": "string"},
        "performance": {"additionalProperties": {"type": "number", "minimum": 0}},
        "model": {"properties": {"id": {"type": "string"}, "size_gb": {"type": "number"}}},
        "system": {"additionalProperties": {"type": ["string", "number", "object"]}},
        "metadata": {"properties": {"inference_modality": {"enum": ["vision", "text", "audio", "video"]}}},
    },
    "additionalProperties": False,
}
"""What the report schema 0.2.2 asks of the fields that ours have."""


@pytest.mark.mlx
def test_a_report_of_ours_is_read_and_compared(command: Command, mlxk_here: Program, tmp_path: Path) -> None:
    small = ("bench", "demo", "-p", "8", "-n", "4", "-r", "5", "--report")
    for name in ("a.jsonl", "b.jsonl"):
        assert mlxk_here(*small, name).returncode == 0
    report = command("bench", "report", "a.jsonl")["data"]["reports"][0]
    assert [(each["test"], each["passed"]) for each in report["tests"]] == [
        *[("bench::pp8[streams=1]", 1), ("bench::tg4[streams=1]", 1)]
    ]
    for each in report["tests"]:
        assert {figure["figure"]: figure["runs"] for figure in each["figures"]} == {
            **{"speed": 5, "first_token": 5, "load": 1, "memory": 1}
        }
    changes = command("bench", "report", "a.jsonl", "--compare", "b.jsonl")["data"]["comparison"]["changes"]
    assert len(changes) == 8
    assert {each["difference"] for each in changes if each["figure"] in ("load", "memory")} == {"unknown"}
    for line in map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines()):
        assert list(Draft7Validator(OURS).iter_errors(line)) == []
        assert line["test_start_ts"] < line["test_end_ts"]
        if REAL is not None:
            schema = json.loads((REAL / "report-v0.2.2.schema.json").read_text())
            assert list(Draft7Validator(schema).iter_errors(line)) == []


@needs_real_files
@pytest.mark.parametrize("name", ["report-0.2.2.jsonl", "example-0.1.0.jsonl"])
def test_real_reports_are_read(name: str, command: Command, mlxk_here: Program, tmp_path: Path) -> None:
    assert REAL is not None
    shutil.copy(REAL / name, tmp_path)
    lines = len((REAL / name).read_text().splitlines())
    report = command("bench", "report", name)["data"]["reports"][0]
    assert (report["records"], report["faults"]) == (lines, [])
    done = mlxk_here("bench", "report", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(each["test"].rpartition("::")[2] in done.stdout for each in report["tests"])
    same = command("bench", "report", name, "--compare", name)["data"]["comparison"]
    assert [same[key] for key in ("only_before", "only_after", "now_failing", "now_passing")] == [[]] * 4


@needs_real_files
def test_a_file_may_have_as_many_lines_as_the_limit_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_reports, "_MOST_LINES", 2)
    monkeypatch.chdir(tmp_path)
    assert len(list(benchmark_reports.numbered_lines(written(tmp_path / "two.jsonl", OLD, NEW)))) == 2
    with pytest.raises(ValidationError, match=r"'three\.jsonl' has more than 2 lines"):
        list(benchmark_reports.numbered_lines(written(tmp_path / "three.jsonl", OLD, NEW, OLD)))


def test_a_record_of_memory_is_no_report(command: Command, tmp_path: Path) -> None:
    assert REAL is not None
    shutil.copy(REAL / "memory-sample.jsonl", tmp_path)
    assert "line 1: schema_version is missing" in command("bench", "report", "memory-sample.jsonl")["error"]["message"]
