"""Processes at their limits: a clear error at the start, or a typed answer; never a ready line and silence."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving.forms import FORM, encoded_form
from serving.program import ServedProgram

import mlxk
from mlxk.entrypoints.start_checks import FEWEST_DESCRIPTORS

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="sets limits that macOS does not have")

SOUND = Path(__file__).parents[1] / "sounds" / "hello.flac"


def limit(kind: int, value: int) -> Callable[[], None]:
    """Return what sets a limit of a process."""
    return lambda: resource.setrlimit(kind, (value, value))


@pytest.mark.parametrize("descriptors", [FEWEST_DESCRIPTORS, 100, 128, 140])
def test_a_server_with_few_descriptors_answers(
    descriptors: int, tmp_path: Path, program_environment: dict[str, str]
) -> None:
    few = limit(resource.RLIMIT_NOFILE, descriptors)
    with ServedProgram(tmp_path, program_environment, "--model", "demo", before=few) as server:
        assert [server.ask("GET", path)[0] for path in ("/livez", "/readyz", "/v1/models")] == [200] * 3
        assert server.chat() == 200


@pytest.mark.parametrize("descriptors", [16, 32, FEWEST_DESCRIPTORS - 1])
def test_a_server_with_too_few_descriptors_does_not_start(
    descriptors: int, tmp_path: Path, program_environment: dict[str, str]
) -> None:
    few = limit(resource.RLIMIT_NOFILE, descriptors)
    with ServedProgram(tmp_path, program_environment, before=few) as server:
        assert server.first["error"]["type"] == "storage_error"
        assert f"the limit of open files is {descriptors}" in server.first["error"]["message"]


@pytest.mark.parametrize("arguments", [("run", "demo", "hi"), ("serve", "--port", "0", "--model", "demo")])
@pytest.mark.parametrize("folder", ["missing", "a-file"])
def test_a_folder_for_temporary_files_that_cannot_be_used_is_named(
    folder: str, arguments: tuple[str, ...], tmp_path: Path, mlxk: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    (tmp_path / "a-file").touch()
    done = mlxk(*arguments, TMPDIR=str(tmp_path / folder))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"'{tmp_path / folder}' cannot be used: " in done.stderr
    assert "Set TMPDIR to a folder with free space." in done.stderr
    assert mlxk("list", TMPDIR=str(tmp_path / folder)).returncode == 0


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files of its own."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("line", ["run demo hi", "clone demo ./copy"])
def test_a_working_directory_that_was_removed_is_named(
    line: str, tmp_path: Path, program_environment: dict[str, str]
) -> None:
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        ["bash", "-c", f'rmdir "$PWD"; exec {sys.executable} -P -m mlxk {line}'],
        capture_output=True,
        text=True,
        env=program_environment,
        cwd=tmp_path / "gone",
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith(": Error: the working directory does not exist any more\nGo to another one with cd.\n")


@LINUX
def test_requests_that_cannot_be_stored_are_answered(
    temporary: Path, tmp_path: Path, program_environment: dict[str, str]
) -> None:
    environment = {**program_environment, "TMPDIR": str(temporary)}
    huge = [{"role": "user", "content": "word " * 1_000_000}]
    recording = encoded_form([("model", "demo-speech"), ("file", ("hello.flac", SOUND.read_bytes()))])

    def spoken() -> tuple[int, str]:
        status, answer = server.ask("POST", "/v1/audio/transcriptions", recording, Content_Type=FORM)
        return status, answer["error"]["type"] if status != 200 else ""

    with ServedProgram(tmp_path, environment, "--model", "demo", before=lambda: os.chdir(temporary)) as server:
        assert server.chat(messages=huge) == 400
        assert spoken()[0] == 200
        # Files cannot be made beyond this size: as on a full disk, but without one.
        for process in (server.process.pid, *children(server.process.pid)):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        for _ in range(3):
            status, answer = server.ask("POST", "/v1/chat/completions", {"model": "demo", "messages": huge})
            assert (status, answer["error"]["type"]) == (507, "storage_error"), answer
            assert spoken() == (500, "storage_error")
            assert server.chat() == 200
        for process in (server.process.pid, *children(server.process.pid)):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert server.chat(messages=huge) == 400
        assert spoken()[0] == 200


def children(process: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@LINUX
@pytest.mark.parametrize(
    ("mib", "arguments"),
    [(mib, arguments) for mib in (150, 250, 350) for arguments in (("run", "demo", "hi"), ("serve", "--port", "0"))],
)
def test_an_address_space_that_is_too_small_is_an_error_at_the_start(
    mib: int, arguments: tuple[str, ...], program_environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlxk", *arguments],
        capture_output=True,
        text=True,
        env={**program_environment, "OPENBLAS_NUM_THREADS": "1"},
        cwd=tmp_path,
        timeout=120,
        check=False,
        preexec_fn=limit(resource.RLIMIT_AS, mib * 2**20),
    )
    assert done.returncode == 1
    assert f"the limit of address space is {mib} MiB" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the built-in model with a file for each of its 38 tensors."""
    import mlx.core as mx

    folder = tmp_path_factory.mktemp("sharded") / "model"
    shutil.copytree(Path(mlxk.__file__).parent / "adapters" / "builtin" / "models" / "demo", folder)
    tensors = mx.load(str(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{at:05d}-of-{len(tensors):05d}.safetensors" for at, name in enumerate(tensors, start=1)}
    for name, file in files.items():
        mx.save_safetensors(str(folder / file), {name: tensors[name]}, metadata={"format": "mlx"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.mark.parametrize(("hard", "status"), [(1024, 0), (48, 1)])
def test_a_model_of_more_files_than_may_be_open_raises_the_limit_or_names_it(
    hard: int, status: int, sharded: Path, program_environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlxk", "run", str(sharded), "What is mlxk?"],
        env=program_environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard)),
        timeout=100,
        check=False,
    )
    assert done.returncode == status, done
    if status:
        assert "has 38 files of weights, and this process may have 48 files open" in done.stderr
        assert "ulimit -n 1024" in done.stderr
    else:
        assert done.stdout.startswith("mlxk is the knife for local models")
