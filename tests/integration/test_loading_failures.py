"""Models that cannot be loaded: what is at fault is named, and nothing is waited for."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from models.tiny_models import build

from mlxk.adapters.mlx.library_imports import import_failure
from mlxk.adapters.mlx.loading.load_errors import loading_failure, unreadable_files
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.domain.errors import (
    BackendNotInstalledError,
    ExecutionError,
    IncompatibleModelError,
    InsufficientMemoryError,
    MlxkError,
    ModelNotFoundError,
    StorageError,
    UnhealthyModelError,
)
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.model import ModelHandle, Origin

pytestmark = pytest.mark.mlx


def asking(handle: ModelHandle) -> GenerationRequest:
    return GenerationRequest(handle, "Hello world")


def test_what_fails_only_while_it_is_computed_says_where_and_what_to_do(
    engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle = build(tmp_path / "odd")
    write_config(tmp_path / "odd", rope_theta="a")
    with pytest.raises(
        ExecutionError, match=r"^Generation failed in a library \(TypeError in mlx\.\S+:\d+\)\.$"
    ) as found:
        list(engine.submit(asking(handle)))
    assert "config.json" in str(found.value.hint)


def write_config(directory: Path, **entries: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **entries}))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda directory: (directory / "config.json").unlink(), UnhealthyModelError),
        (lambda directory: (directory / "config.json").write_text("{"), UnhealthyModelError),
        (lambda directory: (directory / "model.safetensors").unlink(), UnhealthyModelError),
        (lambda directory: (directory / "model.safetensors").write_bytes(b"rubbish"), UnhealthyModelError),
        (lambda directory: (directory / "tokenizer.json").write_text("{"), UnhealthyModelError),
        (lambda directory: write_config(directory, model_type="unheard_of"), IncompatibleModelError),
        (lambda directory: write_config(directory, hidden_size=32), UnhealthyModelError),
        (lambda directory: write_config(directory, num_hidden_layers=5), UnhealthyModelError),
        (lambda directory: write_config(directory, num_hidden_layers="two"), UnhealthyModelError),
    ],
)
def test_a_damaged_model_is_refused_by_its_name(
    engine: MlxTextGenerator, tmp_path: Path, damage: object, error: type[MlxkError]
) -> None:
    handle = build(tmp_path / "a")
    damage(tmp_path / "a")  # type: ignore[operator]
    named = ModelHandle("org/name", handle.directory, Origin.CACHE, "main")
    with pytest.raises(error, match="org/name") as caught:
        engine.submit(asking(named))
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b'{"model": {"voc'),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[]"),
        ("generation_config.json", b"[]"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": "y"}}'),
    ],
)
def test_the_file_beside_the_weights_that_is_at_fault_is_named(
    engine: MlxTextGenerator, tmp_path: Path, file: str, content: bytes
) -> None:
    handle = build(tmp_path / "a")
    (tmp_path / "a" / file).write_bytes(content)
    with pytest.raises(UnhealthyModelError) as caught:
        engine.submit(asking(handle))
    assert file in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("pipe", ["generation_config.json", "hf_quant_config.json", "additional/any"])
def test_a_pipe_where_a_file_belongs_is_not_waited_for(pipe: str, engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "a")
    path = tmp_path / "a" / pipe
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(UnhealthyModelError, match=f"{pipe} .* no regular file"):
        engine.submit(asking(handle))


def test_a_directory_where_a_file_belongs_is_named(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").unlink()
    (tmp_path / "a" / "tokenizer.json").mkdir()
    with pytest.raises(UnhealthyModelError, match=r"tokenizer\.json .* no regular file"):
        engine.submit(asking(handle))


@pytest.mark.parametrize(
    ("content", "entries", "told"),
    [
        (b"{", {"num_hidden_layers": 5}, "tensors that config.json asks for"),
        (b"{", {"num_attention_heads": 0}, "a number in them is out of range"),
        (b"[1" + b"0" * 5000 + b"]", {"num_hidden_layers": 5}, "generation_config.json"),
    ],
)
def test_what_a_library_does_without_is_not_what_is_at_fault(
    engine: MlxTextGenerator, tmp_path: Path, content: bytes, entries: dict[str, object], told: str
) -> None:
    handle = build(tmp_path / "a")
    write_config(tmp_path / "a", **entries)
    (tmp_path / "a" / "generation_config.json").write_bytes(content)
    with pytest.raises(UnhealthyModelError, match=told):
        engine.submit(asking(handle))


def test_lack_of_memory_is_no_fault_of_a_file(tmp_path: Path) -> None:
    handle = build(tmp_path / "a")
    (tmp_path / "a" / "generation_config.json").write_bytes(b"[]")
    lacking = RuntimeError("[malloc] Unable to allocate 1099511627776 bytes.")
    assert isinstance(loading_failure(lacking, handle, "is unknown"), InsufficientMemoryError)


@pytest.mark.parametrize(
    ("statement", "error", "told"),
    [
        ("from transformers import nothing_of_the_kind", ExecutionError, "transformers, which cannot be imported"),
        ("import transformers.nothing_of_the_kind", ExecutionError, "transformers.nothing_of_the_kind, which cannot"),
        ("raise ImportError('You need to install something')", ExecutionError, "a library that cannot be imported"),
        ("import nothing_of_the_kind", BackendNotInstalledError, "nothing_of_the_kind, which is not installed"),
    ],
)
def test_only_a_package_that_is_absent_is_called_so(
    statement: str, error: type[MlxkError], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ImportError) as caught:
        exec(statement)
    failure = loading_failure(caught.value, ModelHandle("org/a", str(tmp_path), Origin.CACHE), "is unknown")
    assert type(failure) is error
    assert f"Running 'org/a' needs {told}" in failure.message


def test_of_several_libraries_none_is_called_installed_that_may_be_absent() -> None:
    failure = import_failure(ImportError("broken", name="mlx_lm"), "Looking at images", "mlx", "mlx-lm", "mlx-vlm")
    assert failure.message == "Looking at images needs mlx_lm, which cannot be imported."


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"hidden_size": None, "vocab_size": None}, "config.json lacks hidden_size, vocab_size"),
        ({"hidden_size": 32}, r"config.json makes model.embed_tokens.weight \(\d+, 32\), the weights have \(\d+, 64\)"),
        (
            {"num_hidden_layers": 5},
            r"\d+ tensors that config.json asks for .* the first is model.layers.\d.input_layernorm",
        ),
        (
            {"num_hidden_layers": 1},
            r"\d+ tensors among the weights have no place .* first is model.layers.1.input_layernorm",
        ),
        ({"num_attention_heads": 0}, "a number in them is out of range"),
    ],
)
def test_what_does_not_fit_is_named(
    engine: MlxTextGenerator, tmp_path: Path, entries: dict[str, object], told: str
) -> None:
    handle = build(tmp_path / "a", num_hidden_layers=2, hidden_size=64)
    config = {**json.loads((tmp_path / "a" / "config.json").read_text()), **entries}
    kept = {name: value for name, value in config.items() if value is not None}
    (tmp_path / "a" / "config.json").write_text(json.dumps(kept))
    with pytest.raises(UnhealthyModelError, match=told):
        list(engine.submit(asking(handle)))


BROKEN = """
import sys
sys.path.append(sys.argv[1])
from dependency_injector import providers
from doubles.event_log import InMemoryEventLog
from mlxk.entrypoints.container import build
from mlxk.entrypoints.settings import read_settings
log = InMemoryEventLog()
try:
    adapters = build(read_settings()).adapters
    adapters.event_log.override(providers.Object(log))
    adapters.text_generator().engine
except Exception as error:
    print(error.code, error, error.hint, [event.fields.get("reason") for event in log.events], sep="|")
"""


@pytest.mark.parametrize(
    ("package", "content", "code", "hint"),
    [
        ("mlx", None, "backend_not_installed", "pip install mlx"),
        ("mlx_lm", None, "backend_not_installed", "pip install mlx-lm"),
        ("mlx_lm", "from json import nothing", "execution_error", "pip check"),
        ("mlx_lm", "import mlx_lm.lost_part", "execution_error", "pip check"),
        ("mlx_lm", "import not_installed_either", "backend_not_installed", "pip check"),
        ("mlx", "raise ImportError('libmlx.so: cannot open shared object file')", "execution_error", "pip check"),
    ],
)
def test_a_library_that_is_broken_is_not_called_absent(
    package: str, content: str | None, code: str, hint: str, tmp_path: Path
) -> None:
    if content is None:
        program = f"import sys\nsys.modules[{package!r}] = None\n{BROKEN}"
    else:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(content)
        program = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{BROKEN}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    told, _, advice, reasons = done.stdout.strip().split("|")
    assert (told, hint in advice) == (code, True), done.stdout
    assert code != "execution_error" or reasons != "[]", "the log says why"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            KeyError("hidden_size"),
            UnhealthyModelError,
            "The files of 'm' do not fit together: 'hidden_size' is missing.",
        ),
        (KeyError("/home/ada"), UnhealthyModelError, "The files of 'm' do not fit together: "),
        (
            IndexError("x"),
            UnhealthyModelError,
            "The files of 'm' do not fit together: a number in them is out of range.",
        ),
        (
            RecursionError("x"),
            UnhealthyModelError,
            "The files of 'm' do not fit together: they are nested too deeply.",
        ),
        (NotImplementedError("/home/ada"), ExecutionError, "'m' could not be loaded: the library that runs the model"),
    ],
)
def test_what_a_library_raises_is_said_in_words_without_its_message(
    error: Exception, kind: type[MlxkError], said: str, tmp_path: Path
) -> None:
    found = loading_failure(error, ModelHandle("m", str(tmp_path), Origin.WORKSPACE), "is unknown")
    assert type(found) is kind
    assert found.message.startswith(said)
    assert "ada" not in found.message


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EMFILE, "The limit of open files of this process is reached; raise it with: ulimit -n"),
        (errno.EACCES, "Give the user of this process the permission to read them."),
        (errno.EIO, None),
    ],
)
def test_files_that_cannot_be_read_are_no_damage_and_a_model_that_has_gone_is_not_found(
    number: int, hint: str | None, tmp_path: Path
) -> None:
    error = OSError(number, os.strerror(number))
    here = unreadable_files(error, ModelHandle("m", str(tmp_path), Origin.WORKSPACE))
    assert (type(here), here.message) == (StorageError, f"the files of 'm' cannot be read: {os.strerror(number)}")
    assert hint is None or str(here.hint).startswith(hint)
    gone = unreadable_files(error, ModelHandle("m", str(tmp_path / "gone"), Origin.WORKSPACE))
    assert (type(gone), gone.message) == (ModelNotFoundError, "model 'm' is no longer on this machine")
