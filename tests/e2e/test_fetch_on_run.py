"""A model that is named and not here: two questions on a terminal, ``--pull`` in scripts, and nothing asked unasked."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from chatting import end
from hub.models import small_model
from hub.server import LoopbackHub

import mlxk.adapters.builtin
from mlxk.application.use_cases.pull_model import SPARE_BYTES

Program = Callable[..., "subprocess.CompletedProcess[str]"]
Terminal = Callable[..., "pexpect.spawn[str]"]
Command = Callable[..., dict[str, Any]]
pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("cache")]

NAME = "mlx-community/Small-Talk-4bit"
ANSWER = "mlxk is the knife"


def demo_files() -> dict[str, bytes]:
    """Return the files of the built-in text model."""
    folder = Path(mlxk.adapters.builtin.__file__).parent / "models" / "demo"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def there(hub: LoopbackHub) -> LoopbackHub:
    """Return a hub with 200 models, one of which runs, and some that cannot be fetched."""
    for number in range(200):
        hub.add(f"mlx-community/Talk-{number}-4bit", tags=("mlx",))
    hub.add(NAME, demo_files(), tags=("mlx", "license:apache-2.0"))
    hub.add("org/gated", small_model(), gated="manual")
    hub.add("org/gguf", {"model.gguf": b"GGUF", "config.json": b"{}"})
    hub.forget()
    return hub


@pytest.fixture
def terminal(program_environment: dict[str, str], hub_variables: dict[str, str], tmp_path: Path) -> Iterator[Terminal]:
    """Start the program on a pseudo-terminal."""
    started: list[pexpect.spawn[str]] = []

    def start(*arguments: str, **variables: str) -> "pexpect.spawn[str]":
        started.append(
            pexpect.spawn(
                sys.executable,
                ["-m", "mlxk", *arguments],
                env={**program_environment, **hub_variables, "TERM": "dumb", **variables},
                cwd=str(tmp_path),
                encoding="utf-8",
                timeout=60,
                dimensions=(40, 120),
            )
        )
        return started[-1]

    yield start
    for each in started:
        end(each)


def ended(process: "pexpect.spawn[str]") -> tuple[str, int | None]:
    """Return what a program shows until its end, and its exit status."""
    shown: str = process.read()
    process.close()
    return shown, process.exitstatus


@pytest.mark.usefixtures("there")
def test_run_asks_before_the_hub_is_asked_and_again_before_the_download(there: LoopbackHub, terminal: Terminal) -> None:
    asking = terminal("run", "Small-Talk-4bit", "What is mlxk?")
    asking.expect_exact("No model found matching 'Small-Talk-4bit'.")
    asking.expect_exact("Look for Small-Talk-4bit on the hub? [y/N]: ")
    assert there.calls() == []
    asking.sendline("y")
    asking.expect_exact(f"{NAME}: licence apache-2.0, download 2.1MB; ")
    asking.expect_exact("free on the disk")
    asking.expect(r"Estimate: [\d.]+MB of a budget of [\d.]+GB \(")
    asking.expect_exact(f"Fetch {NAME}? [y/N]: ")
    assert [call.path.rpartition("/")[2] for call in there.calls("/resolve/|/cdn/")] == ["config.json"]
    asking.sendline("y")
    shown, status = ended(asking)
    assert (status, ANSWER in shown) == (0, True), shown
    there.forget()
    shown, status = ended(terminal("run", "Small-Talk-4bit", "What is mlxk?"))
    assert (status, "[y/N]" in shown, there.calls()) == (0, False, [])


@pytest.mark.parametrize("answers", [("n",), ("",), ("y", "n"), ("y", "")])
def test_whoever_does_not_agree_gets_the_error_and_no_download(
    there: LoopbackHub, terminal: Terminal, cache: Path, answers: tuple[str, ...]
) -> None:
    asking = terminal("run", NAME, "hi")
    for answer in answers:
        asking.expect_exact("[y/N]: ")
        asking.sendline(answer)
    shown, status = ended(asking)
    assert (status, f"Fetch it: mlxk pull {NAME}" in shown) == (1, True), shown
    assert bool(there.calls()) == (len(answers) == 2)
    assert not list(cache.glob("models--*"))


def test_a_name_of_the_user_s_own_stands_for_the_model_that_is_asked_about(
    there: LoopbackHub, terminal: Terminal, mlxk_here: Program, hub_variables: dict[str, str]
) -> None:
    assert mlxk_here("alias", "talk", NAME).returncode == 0
    asking = terminal("run", "talk", "What is mlxk?")
    asking.expect_exact(f"Look for {NAME} on the hub? [y/N]: ")
    asking.sendline("n")
    assert f"Fetch it: mlxk pull {NAME} (or add --pull)" in ended(asking)[0]
    done = mlxk_here("run", "talk", "What is mlxk?", "--pull", **hub_variables)
    assert done.stdout.startswith(ANSWER), done.stderr


def test_a_chat_goes_on_after_the_download(there: LoopbackHub, terminal: Terminal) -> None:
    asking = terminal("run", NAME)
    for _ in range(2):
        asking.expect_exact("[y/N]: ")
        asking.sendline("y")
    asking.expect_exact(f"Chatting with {NAME}")
    asking.expect_exact(">>> ")
    for _ in range(10):  # a key that comes before the line editor listens is lost
        asking.sendcontrol("d")
        if asking.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=2) == 0:
            break
    assert ended(asking)[1] == 0


@pytest.mark.parametrize("command", ["serve --port 0 --model", "serve --port 0 --alias gpt=NAME --default-model"])
def test_serve_asks_too_and_then_serves(there: LoopbackHub, terminal: Terminal, command: str) -> None:
    asking = terminal(*command.replace("=NAME", f"={NAME}").split(), NAME)
    for _ in range(2):
        asking.expect_exact("[y/N]: ")
        asking.sendline("y")
    asking.expect_exact("mlxk serves at http://127.0.0.1:")
    asking.sendintr()
    assert ended(asking)[1] in {0, 130}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("org/gated", "is gated: its author decides who may have it"),
        ("org/none", "is not on the hub, or is private and not shown to you"),
        ("org/gguf", "has no weights"),
    ],
)
@pytest.mark.parametrize("asked", [True, False], ids=["asked", "flag"])
def test_what_cannot_be_fetched_is_said_before_the_second_question(
    there: LoopbackHub,
    terminal: Terminal,
    mlxk_here: Program,
    hub_variables: dict[str, str],
    typed: str,
    said: str,
    asked: bool,
) -> None:
    if asked:
        asking = terminal("run", typed, "hi")
        asking.expect_exact("[y/N]: ")
        asking.sendline("y")
        shown, status = ended(asking)
        assert "[y/N]" not in shown
    else:
        done = mlxk_here("run", typed, "hi", "--pull", **hub_variables)
        shown, status = done.stderr, done.returncode
    assert (status, said in shown) == (1, True), shown
    assert there.calls("/cdn/") == []


def test_offline_and_a_hub_that_limits_requests_are_named(
    there: LoopbackHub, terminal: Terminal, command: Command
) -> None:
    hint = command("run", NAME, "hi", HF_HUB_OFFLINE="1")["error"]["hint"]
    assert hint == f"Fetch it: mlxk pull {NAME} (once HF_HUB_OFFLINE is unset)"
    error = command("run", NAME, "hi", "--pull", HF_HUB_OFFLINE="1")["error"]
    assert (error["type"], "HF_HUB_OFFLINE" in error["message"] + error["hint"]) == ("network_error", True)
    there.fault("^/api/models", status=429, headers={"Retry-After": "300"}, times=-1)
    error = command("run", NAME, "hi", "--pull")["error"]
    assert (error["type"], "300 seconds" in error["hint"]) == ("network_error", True)


def test_a_disk_without_space_is_said_before_the_second_question(
    there: LoopbackHub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> object:
        return os.statvfs_result((4096, 4096, 10, 10, 10, 10, 10, 10, 0, 255))

    monkeypatch.setattr(os, "statvfs", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(SPARE_BYTES, 0, SPARE_BYTES))
    error = command("run", NAME, "hi", "--pull")["error"]
    assert (error["type"], "are to stay free" in error["message"]) == ("storage_error", True)
    assert there.calls("/cdn/") == []


def test_the_flag_fetches_without_a_question_and_only_what_is_not_here(
    there: LoopbackHub, mlxk_here: Program, hub_variables: dict[str, str]
) -> None:
    done = mlxk_here("run", NAME, "What is mlxk?", "--pull", "--json", **hub_variables)
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert document["data"]["response"].startswith(ANSWER)
    there.forget()
    assert mlxk_here("run", NAME, "What is mlxk?", "--pull", **hub_variables).stdout.startswith(ANSWER)
    assert there.calls() == []


@pytest.mark.parametrize(
    "flags",
    [
        ("--temperature", "-1"),
        ("--top-p", "2"),
        ("--stop", ""),
        ("--max-tokens", "0"),
        ("--json-schema", "nosuch.json"),
        ("--allow-tool", "x"),
        ("--no-chat-template", "--system", "s"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_fetched(
    flags: tuple[str, ...], there: LoopbackHub, command: Command
) -> None:
    refused = command("run", NAME, "hi", "--pull", *flags)
    assert refused["error"]["type"] in {"validation_error", "usage_error", "storage_error"}
    assert there.calls() == []


def test_the_flag_completes_what_is_not_whole(
    there: LoopbackHub, mlxk: Program, hub_variables: dict[str, str], cache: Path
) -> None:
    assert mlxk("pull", NAME, **hub_variables).returncode == 0
    (weights,) = cache.glob("models--*/snapshots/*/model.safetensors")
    weights.resolve().unlink()
    weights.unlink()
    done = mlxk("run", "small-talk", "What is mlxk?", **hub_variables)
    assert (done.returncode, "--force-resume" in done.stderr) == (1, True)
    done = mlxk("run", "small-talk", "What is mlxk?", "--pull", **hub_variables)
    assert done.stdout.startswith(ANSWER), done.stderr


@pytest.mark.parametrize(
    "typed",
    [
        ("run", NAME, "hi"),
        ("run", "demo", "hi", "--draft-model", NAME),
        ("serve", "--port", "0", "--model", NAME),
        ("serve", "--port", "0", "--background", "--model", NAME),
        ("embed", NAME, "hi"),
        ("embed-serve", NAME, "--port", "0"),
    ],
    ids=" ".join,
)
def test_without_a_terminal_nothing_is_asked_and_the_hint_names_both_ways(
    there: LoopbackHub, mlxk: Program, hub_variables: dict[str, str], typed: tuple[str, ...]
) -> None:
    # A server in the background is left alone, also by the interpreter that started it.
    done = mlxk(*typed, MLXK2_ENABLE_ALPHA_FEATURES="1", PYTHONWARNINGS="", **hub_variables)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == f"Fetch it: mlxk pull {NAME} (or add --pull)"
    assert there.calls() == []


@pytest.mark.parametrize("piped", ["| cat", "< /dev/null", "--json"])
def test_a_pipe_on_either_side_and_json_are_no_place_for_a_question(
    there: LoopbackHub, program_environment: dict[str, str], hub_variables: dict[str, str], piped: str
) -> None:
    shown, _ = pexpect.run(
        f"/bin/sh -c '{sys.executable} -m mlxk run {NAME} hi {piped}'",
        env={**program_environment, **hub_variables, "TERM": "dumb"},
        encoding="utf-8",
        timeout=60,
        withexitstatus=True,
    )
    assert "[y/N]" not in shown
    assert "(or add --pull)" in shown
    assert there.calls() == []


def test_offline_there_is_no_question(there: LoopbackHub, terminal: Terminal) -> None:
    shown, status = ended(terminal("run", NAME, "hi", HF_HUB_OFFLINE="1"))
    assert (status, "[y/N]" in shown, f"Fetch it: mlxk pull {NAME}" in shown) == (1, False, True), shown
    assert there.calls() == []


def test_a_name_that_the_hub_cannot_have_is_not_asked_about(there: LoopbackHub, terminal: Terminal) -> None:
    for typed in ("llama3.2:1b", "./nosuch"):
        shown, status = ended(terminal("run", typed, "hi"))
        assert (status, "[y/N]" in shown) == (1, False), shown
