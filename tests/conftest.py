"""Fixtures by capability, shared by every test.

MLX compiles fused kernels with a C++ compiler at first use, a second each; tests run without, as a machine with no
compiler would. The variable must be set before MLX is imported, hence here.
"""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

if TYPE_CHECKING:
    from hub.server import LoopbackHub

# The same examples in every run: a check that is green today must not be red tomorrow with nothing changed.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

os.environ["MLX_DISABLE_COMPILE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# A server that somebody runs on this machine is none of the tests' business.
os.environ["MLXK2_USE_SERVER"] = "0"
# Programs that tests start, and the processes of pytest-xdist, import transformers in half the time.
os.environ["PYTHONPATH"] = str(Path(__file__).parent / "quick_imports")
# A shell that starts this in the background has it ignore interrupts, and nohup hangups; so would every program here.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

Program = Callable[..., "subprocess.CompletedProcess[str]"]
Command = Callable[..., dict[str, Any]]
Schemas = dict[str, dict[str, Any]]
Faults = Callable[[str, Any], list[str]]

CONTRACTS = Path(__file__).parent.parent / "contracts"
SUFFIX = ".schema.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what a person may want to turn up."""
    parser.addoption("--soak-requests", type=int, default=60, help="requests of the engine's soak test")
    parser.addoption("--hostile-requests", type=int, default=600, help="requests of the attack on the server")
    parser.addoption("--exits", type=int, default=3, help="processes of the test of exits after generating")
    parser.addoption("--conversations", type=int, default=60, help="conversations that every API is asked alike")


def pytest_sessionstart() -> None:
    """Collect no garbage while tests are collected: nearly all of it stays, and is looked through again and again."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exclude what pytest keeps of 10,000 tests from garbage collection, half a second each time.

    An engine collects garbage when it ends, so that a test that runs several commands in this process did so often.
    """
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """Exclude from garbage collection what the tests of a module leave, such as imported libraries.

    Nothing is collected first: a finalizer that warns would be charged to whichever test comes next.
    """
    yield
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put temporary files into a folder of this test process, so that what is left behind there is its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        yield


@pytest.fixture
def program_environment(tmp_path: Path) -> dict[str, str]:
    """A clean environment: a home and a cache of its own, and nothing else of this machine."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    return {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "PATH": os.environ["PATH"],
        "MLX_DISABLE_COMPILE": "1",
        "MLXK2_BLAS": "off",  # the same numbers wherever tests run
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "PYTHONWARNINGS": "error::ResourceWarning",
    }


@pytest.fixture
def mlxk(program_environment: dict[str, str], tmp_path: Path) -> Program:
    """Run the installed program in a process of its own and return what it did.

    Keyword arguments: ``stdin`` text for standard input, and environment variables by name.
    """

    def run(*arguments: str, stdin: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "mlxk", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env={**program_environment, **variables},
            cwd=tmp_path,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def mlxk_here(program_environment: dict[str, str], tmp_path: Path) -> Program:
    """Do what ``mlxk`` does in this process, for a tenth of the processor time."""
    import this_process

    def run(*arguments: str, stdin: str | bytes = "", **variables: str) -> "subprocess.CompletedProcess[str]":
        return this_process.run(arguments, {**program_environment, **variables}, tmp_path, stdin)

    return run


@pytest.fixture
def hub(tmp_path: Path) -> "Iterator[LoopbackHub]":
    """Serve a hub on this machine; only programs that are told its address find it."""
    from hub.server import LoopbackHub

    with LoopbackHub(tmp_path) as hub:
        yield hub


@pytest.fixture
def hub_variables(hub: "LoopbackHub") -> dict[str, str]:
    """Return the variables that make a program use the loopback hub, and nothing else on the network."""
    return {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.fixture
def cache(program_environment: dict[str, str]) -> Iterator[Path]:
    """Return where the program keeps models; whatever a test does to it, it is a sound cache afterwards."""
    from hub.soundness import assert_sound

    directory = Path(program_environment["HF_HOME"]) / "hub"
    yield directory
    assert_sound(directory)


@pytest.fixture
def command(
    program_environment: dict[str, str],
    hub_variables: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Run a command with ``--json`` in this process, against the loopback hub, and return its envelope.

    It costs a tenth of a process of its own. Keyword arguments are environment variables.
    """
    from mlxk.entrypoints.cli.command import CommandContext
    from mlxk.entrypoints.cli.program import run
    from mlxk.entrypoints.container import build
    from mlxk.entrypoints.settings import read_settings

    def execute(*arguments: str, **variables: str) -> dict[str, Any]:
        settings = read_settings({**program_environment, **hub_variables, **variables})
        with contextlib.chdir(tmp_path), open(os.devnull) as null:
            context = CommandContext(
                settings=settings,
                build=build,
                standard_input=null.fileno(),
                serve=lambda *_: 1,
            )
            status = run([*arguments, "--json"], context)
        printed = capsys.readouterr()
        assert printed.err == ""
        envelope: dict[str, Any] = json.loads(printed.out)
        assert (status == 0) == (envelope["status"] == "success"), envelope
        return envelope

    return execute


@pytest.fixture(scope="session")
def schemas() -> Schemas:
    """Return every schema by its name."""
    folder = CONTRACTS / "cli" / "v0"
    return {
        path.name.removesuffix(SUFFIX): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob(f"*{SUFFIX}"))
    }


@pytest.fixture(scope="session")
def faults(schemas: Schemas) -> Faults:
    """Return a check: the faults of a document by the schema of a name; none when it is accepted."""
    resources = [(name + SUFFIX, Resource.from_contents(schema)) for name, schema in schemas.items()]
    registry: Registry[Any] = Registry().with_resources(resources)

    def check(name: str, document: Any) -> list[str]:
        validator = Draft202012Validator({"$ref": name + SUFFIX}, registry=registry)
        causes = [best_match([fault]) or fault for fault in validator.iter_errors(document)]
        return [f"{cause.json_path}: {cause.message}" for cause in causes]

    return check
