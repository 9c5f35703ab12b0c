"""``show``, ``run`` and ``serve`` agree on whether a model fits into memory, to the byte."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from doubles.memory_probe import InMemoryMemoryProbe
from mlx_lm import utils
from models.tiny_models import build
from serving.running import RunningServer
from serving.whole_program import PATH, QUESTION, WholeProgram

from mlxk.adapters.builtin import PackagedModelSource
from mlxk.adapters.mlx import registry
from mlxk.domain.models.footprint import MemoryReading
from mlxk.entrypoints import adapter_container
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
Command = Callable[..., dict[str, Any]]


def least_total(needed: int) -> int:
    """Return the smallest memory of a machine whose budget holds so much."""
    total = needed
    while MemoryReading(total, total).budget < needed:
        total += max(1, needed - MemoryReading(total, total).budget)
    while MemoryReading(total - 1, total).budget >= needed:
        total -= 1
    return total


def machine_with(monkeypatch: pytest.MonkeyPatch, total: int, available: int, *, gpu: bool = False) -> None:
    """Let the program run on a machine with so much memory, on its CPU or a GPU."""
    reading = MemoryReading(total, available)
    monkeypatch.setattr(adapter_container, "system_memory_probe", lambda _: InMemoryMemoryProbe(reading))
    monkeypatch.setattr(adapter_container, "computes_on_cpu", lambda _: not gpu)


@pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, False)])
def test_show_run_and_serve_agree_at_the_edge(
    missing: int, fits: bool, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"MLXK2_CPU_DTYPE": "model"}
    total = least_total(command("show", "demo", **own)["data"]["memory"]["needed_bytes"]) - missing
    machine_with(monkeypatch, total, total)

    shown = command("show", "demo", **own)["data"]["memory"]
    run = command("run", "demo", "hi", "--max-tokens", "2", "--strict-memory", **own)
    program: Any = WholeProgram(tmp_path / "home", ServerSettings(strict_memory=True, cpu_dtype="model"))
    with RunningServer(program) as served:
        status, _, answer = served.post(PATH, {**QUESTION, "max_tokens": 2})

    assert shown["fit"] == ("fits" if fits else "exceeds")
    assert (run["status"] == "success", status == 200) == (fits, fits)
    if not fits:
        numbers = {name: shown[name] for name in ("needed_bytes", "budget_bytes")}
        assert run["error"]["detail"] == numbers
        assert (status, answer["error"]["detail"]) == (507, numbers)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of a model in 4 bits, whose scales have 16."""
    folder = tmp_path_factory.mktemp("models")
    build(folder / "plain")
    mlx_lm.convert(str(folder / "plain"), str(folder / "packed"), quantize=True, q_bits=4, dtype="bfloat16")
    return str(folder / "packed")


@pytest.mark.parametrize("setting", ["auto", "float32"])
@pytest.mark.parametrize("missing", [0, 1])
def test_show_and_serve_agree_on_the_type_of_the_weights_at_the_edge(
    setting: str, missing: int, quantized: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = command("show", quantized, "--cpu-dtype", "model")["data"]["memory"]
    wide = command("show", quantized, "--cpu-dtype", "float32")["data"]["memory"]
    assert (stored["weights_type"], wide["weights_type"]) == ("model", "float32")
    assert stored["needed_bytes"] < wide["needed_bytes"]
    needed = wide["needed_bytes"] - missing
    # Free memory decides by default, the budget alone when float32 is asked for.
    total, free = (100 * needed, needed) if setting == "auto" else (least_total(wide["needed_bytes"]) - missing, needed)
    machine_with(monkeypatch, total, free)

    shown = command("show", quantized, "--cpu-dtype", setting)["data"]["memory"]
    settings = ServerSettings(strict_memory=True, cpu_dtype=setting, allow_paths=True)
    program: Any = WholeProgram(tmp_path / "home", settings)
    with RunningServer(program) as served:
        status, _, _ = served.post(PATH, {**QUESTION, "model": quantized, "max_tokens": 2})
        metrics = served.get("/metrics")[2].decode()

    fits = missing == 0
    expected = wide if fits else stored
    assert (shown["weights_type"], shown["weights_bytes"]) == (expected["weights_type"], expected["weights_bytes"])
    assert status == 200
    assert f"\nmlxk_models_widened {int(fits)}\n" in metrics
    (loaded,) = program.log.named("loaded a model")
    assert (loaded.fields["weights"] == "float32") is fits
    assert (loaded.fields["bytes"] > stored["weights_bytes"]) is fits
    said = [each for each in program.log.events if each.fields.get("more_bytes")]
    assert [each.level for each in said] == ([] if fits else ["warning"])


def test_a_widened_model_answers_as_one_whose_files_have_32_bits(
    quantized: str, command: Command, tmp_path: Path
) -> None:
    network, config = utils.load_model(Path(quantized))
    network.set_dtype(mx.float32)
    shutil.copytree(quantized, tmp_path / "wide")
    utils.save_model(tmp_path / "wide", network)
    assert config["quantization"]["bits"] == 4
    flags = ("Hello world! How are you", "--max-tokens", "32", "--temperature", "0")

    widened = command("run", quantized, *flags, "--cpu-dtype", "float32")["data"]["response"]
    stored = command("run", str(tmp_path / "wide"), *flags, "--cpu-dtype", "model")["data"]["response"]

    assert widened == stored != ""


@pytest.mark.parametrize(
    ("platform", "library", "device", "on_cpu"),
    [
        ("darwin", False, False, False),
        ("linux", False, True, True),
        ("linux", True, False, True),
        ("linux", True, True, False),
    ],
)
def test_a_gpu_counts_where_the_library_for_it_is_installed(
    platform: str, library: bool, device: bool, on_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    if library:
        (tmp_path / "mlx_cuda_12-0.32.4.dist-info").mkdir()
    monkeypatch.setattr(registry, "_GPU_DEVICES", (str(tmp_path if device else tmp_path / "none"),))
    monkeypatch.syspath_prepend(str(tmp_path))

    assert registry.computes_on_cpu(platform) is on_cpu


def test_plain_weights_of_16_bits_are_widened_when_asked_for(command: Command) -> None:
    shown = {each: command("show", "demo", "--cpu-dtype", each)["data"]["memory"] for each in ("auto", "float32")}

    assert [each["weights_type"] for each in shown.values()] == ["model", "float32"]
    assert command("run", "demo", "hi", "--max-tokens", "2", "--cpu-dtype", "float32")["status"] == "success"


@pytest.mark.parametrize("model", ["demo-speech", "demo-vision"])
def test_models_of_other_kinds_compute_in_float32(model: str, command: Command) -> None:
    handle = PackagedModelSource().find("demo-speech")
    assert handle is not None
    media = (
        ("--audio", f"{handle.directory}/two-phrases.wav") if model == "demo-speech" else ("hi", "--max-tokens", "2")
    )
    answers = [command("run", model, *media, "--cpu-dtype", each)["data"] for each in ("model", "float32")]
    assert all(each["response"] for each in answers)
    if model == "demo-speech":
        assert answers[0]["response"] == answers[1]["response"]


def test_nothing_is_widened_where_a_gpu_computes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = command("show", "demo", "--cpu-dtype", "model")["data"]["memory"]
    machine_with(monkeypatch, 2**40, 2**40, gpu=True)

    shown = command("show", "demo", "--cpu-dtype", "float32")["data"]["memory"]

    assert {**shown, "budget_bytes": 0} == {**stored, "budget_bytes": 0}
