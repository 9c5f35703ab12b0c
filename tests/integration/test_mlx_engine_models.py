"""Which models the engine loads, keeps and refuses."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import oracle, read
from models.tiny_models import build

from mlxk.adapters.mlx.loading.model_files import weight_bytes
from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import (
    ContextLengthError,
    ExecutionError,
    IncompatibleModelError,
    MlxkError,
    UntrustedModelCodeError,
)
from mlxk.domain.generation.request import FinishReason, GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle, Origin

pytestmark = pytest.mark.mlx
PATIENCE_SECONDS = 10.0


def asking(handle: ModelHandle, max_tokens: int = 20, prompt: str = "Hello world") -> GenerationRequest:
    settings = GenerationSettings(temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=0)
    return GenerationRequest(handle, prompt, settings)


def resident(engine: MlxTextGenerator) -> set[str]:
    return {Path(handle.directory).name for handle in engine.state(PATIENCE_SECONDS).models}


def write_config(directory: Path, **entries: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **entries}))


def test_models_answer_side_by_side_each_for_itself(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handles = [build(tmp_path / name, name, seed=number) for number, name in enumerate(("llama", "qwen3", "mamba2"))]
    streams = [engine.submit(asking(handle)) for handle in handles * 3]
    found = [read(stream).tokens for stream in streams]
    assert found == [oracle(handle, "Hello world", 20) for handle in handles] * 3
    assert resident(engine) == {"llama", "qwen3", "mamba2"}


def test_the_least_recently_used_model_makes_room(tmp_path: Path) -> None:
    first, second, third = (build(tmp_path / name, seed=number) for number, name in enumerate("abc"))
    options = EngineLimits(model_budget_bytes=int(weight_bytes(first.directory) * 2.5))
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), options)
    for handle in (first, second, first, third):
        read(engine.submit(asking(handle)))
    assert resident(engine) == {"a", "c"}
    engine.close()


def test_a_model_in_use_finishes_before_it_makes_room(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a"), build(tmp_path / "b", seed=1)
    options = EngineLimits(model_budget_bytes=weight_bytes(first.directory))
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), options)
    running = engine.submit(asking(first, max_tokens=300))
    answer = read(engine.submit(asking(second)))
    assert answer.tokens == oracle(second, "Hello world", 20)
    assert read(running).finished.usage.completion_tokens == 300
    assert resident(engine) == {"b"}
    engine.close()


def test_a_model_over_the_whole_budget_runs_alone(tmp_path: Path) -> None:
    handle = build(tmp_path / "a")
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(model_budget_bytes=1))
    assert read(engine.submit(asking(handle))).finished.reason is FinishReason.LENGTH
    engine.close()


def test_an_idle_model_goes_after_its_keep_alive(tmp_path: Path) -> None:
    handle = build(tmp_path / "a")
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(keep_alive_seconds=0.05))
    read(engine.submit(asking(handle)))
    deadline = SystemClock().monotonic() + PATIENCE_SECONDS
    while resident(engine) and SystemClock().monotonic() < deadline:
        pass
    assert resident(engine) == set()
    engine.close()


def test_a_refused_request_leaves_its_model_idle(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "a")
    with pytest.raises(ContextLengthError):
        engine.submit(asking(handle, prompt="Hello world " * 100_000))
    assert resident(engine) == {"a"}
    assert engine.unload(handle) == (handle,)
    assert resident(engine) == set()


def test_a_model_whose_files_changed_is_loaded_again(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "a")
    old = read(engine.submit(asking(handle))).text
    build(tmp_path / "a", seed=9)
    assert read(engine.submit(asking(handle))).text != old


def test_a_model_that_cannot_be_loaded_disturbs_nobody(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "a")
    running = engine.submit(asking(handle, max_tokens=200))
    missing = ModelHandle("org/missing", str(tmp_path / "missing"), Origin.CACHE)
    with pytest.raises(MlxkError, match="no longer"):
        engine.submit(asking(missing))
    assert read(running).finished.usage.completion_tokens == 200
    assert resident(engine) == {"a"}


def test_a_model_that_brings_its_own_code_is_refused_and_the_code_does_not_run(
    engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle = build(tmp_path / "a")
    trap = tmp_path / "ran"
    (tmp_path / "a" / "code.py").write_text(f"open({str(trap)!r}, 'w')")
    write_config(tmp_path / "a", model_file="code.py")
    with pytest.raises(UntrustedModelCodeError, match="model_file"):
        engine.submit(asking(handle))
    assert not trap.exists()


def test_a_tokenizer_that_brings_its_own_code_is_refused_and_the_code_does_not_run(
    engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle = build(tmp_path / "a")
    trap = tmp_path / "ran"
    (tmp_path / "a" / "code.py").write_text(f"open({str(trap)!r}, 'w')\nclass Own: pass")
    path = tmp_path / "a" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.update(tokenizer_class="Own", auto_map={"AutoTokenizer": ["code.Own", None]})
    path.write_text(json.dumps(config))
    with pytest.raises(UntrustedModelCodeError):
        engine.submit(asking(handle))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "ignored"),
    [(b"{", ("*",)), (b'{"temperature": "hot", "top_p": 7, "top_k": 3}', ("temperature", "top_p"))],
)
def test_what_a_generation_config_asks_for_in_vain_is_logged_once(
    tmp_path: Path, content: bytes, ignored: tuple[str, ...]
) -> None:
    handle = build(tmp_path / "a")
    (tmp_path / "a" / "generation_config.json").write_bytes(content)
    log = InMemoryEventLog()
    generator = MlxTextGenerator(log, SystemClock())
    try:
        for _ in range(2):
            read(generator.submit(asking(handle)))
    finally:
        generator.close()
    (warning,) = [entry for entry in log.events if entry.level == "warning"]
    assert warning.fields["ignored"] == ignored


def test_a_library_that_wants_to_end_the_program_ends_one_request_and_says_why(
    engine: MlxTextGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handle, other = build(tmp_path / "a"), build(tmp_path / "b")
    write_config(tmp_path / "a", model_type="olmo")
    for _ in range(2):
        with pytest.raises(IncompatibleModelError, match="pip install ai2-olmo"):
            engine.submit(asking(handle))
    assert capsys.readouterr().out == ""
    assert read(engine.submit(asking(other))).tokens == oracle(other, "Hello world", 20)


def test_requests_beyond_the_rows_wait_and_all_are_answered(tmp_path: Path) -> None:
    handle = build(tmp_path / "a")
    options = EngineLimits(max_rows=1)
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), options)
    streams = [engine.submit(asking(handle, max_tokens=400))]
    next(streams[0])
    streams += [engine.submit(asking(handle, max_tokens=2)) for _ in range(2)]
    for stream in streams:
        read(stream)
    assert read(engine.submit(asking(handle))).finished.reason is FinishReason.LENGTH
    engine.close()


def test_a_closed_engine_does_not_respond(engine: MlxTextGenerator, tmp_path: Path) -> None:
    read(engine.submit(asking(build(tmp_path / "a"))))
    engine.close()
    assert not engine.state(0.1).responding
    assert engine.unload() == ()
    with pytest.raises(ExecutionError):
        engine.submit(asking(build(tmp_path / "a")))


PACKAGES = ("conversion", "embedding", "engine", "loading", "prompting", "speech", "text_generator", "vision")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_limit_on_open_files_is_only_raised_whichever_package_is_imported_first(package: str) -> None:
    module = f"mlxk.adapters.mlx.{package}"
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 3000))\n"
        "before = resource.setrlimit\n"
        f"import {module}\n"
        "assert 'mlx_lm.utils' in sys.modules\n"
        "assert resource.setrlimit is before\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (3000, 3000)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.parametrize("closes", [True, False])
def test_a_process_that_generated_exits_with_zero_every_time(
    tmp_path: Path, request: pytest.FixtureRequest, closes: bool
) -> None:
    handle = build(tmp_path / "a")
    program = (
        "import sys\n"
        "sys.path.append(sys.argv[2])\n"
        "from doubles.event_log import InMemoryEventLog\n"
        "from mlxk.adapters.mlx.text_generator import MlxTextGenerator\n"
        "from mlxk.adapters.system import SystemClock\n"
        "from mlxk.domain.generation.request import GenerationRequest, GenerationSettings\n"
        "from mlxk.domain.models.model import ModelHandle, Origin\n"
        "engine = MlxTextGenerator(InMemoryEventLog(), SystemClock())\n"
        "handle = ModelHandle(sys.argv[1], sys.argv[1], Origin.WORKSPACE)\n"
        "wanted = GenerationSettings(max_tokens=8, ignore_eos=True)\n"
        "streams = [engine.submit(GenerationRequest(handle, 'Hello', wanted)) for _ in range(3)]\n"
        "assert all(list(stream) for stream in streams)\n" + ("engine.close()\n" if closes else "")
    )
    for _ in range(request.config.getoption("--exits")):
        done = subprocess.run(
            [sys.executable, "-c", program, handle.directory, str(Path(__file__).parents[1])],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
