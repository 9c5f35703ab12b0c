"""``mlxk launch`` with programs that stand in for agents: what they are given, what ends what, and what is refused."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import attrs
import pexpect
import pytest
import this_process
from models.scripted_model import write_model
from serving.program import ServedProgram
from serving.running import eventually
from syrupy.assertion import SnapshotAssertion

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

AGENT = Path(__file__).parents[1] / "serving" / "recording_agent.py"
PLAIN = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
TEMPLATE = f"""{{% if tools %}}{{{{ tools | tojson }}}}
Write <tool_call>{{"name": NAME, "arguments": OBJECT}}</tool_call> for a call.
{{% endif %}}{PLAIN}{{% for message in messages %}}{{% for call in message.tool_calls or [] %}}<tool_call>
{{{{ call.function | tojson }}}}
</tool_call>{{% endfor %}}{{% endfor %}}"""
BROKEN = TEMPLATE + "{% if messages %}{{ raise_exception('The template is broken.') }}{% endif %}"


@attrs.frozen
class Machine:
    """A home, models and agents."""

    home: Path
    environment: dict[str, str]
    record: Path

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """Start the program, without a terminal."""
        return subprocess.Popen(
            [sys.executable, "-m", "mlxk", "launch", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, **variables},
            cwd=self.home,
            start_new_session=True,
        )

    def run(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run the program to its end, without a terminal."""
        with self.start(*arguments, **variables) as process:
            output, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def here(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Do so in this process, where no agent is to be started."""
        return this_process.run(("launch", *arguments), {**self.environment, **variables}, self.home)

    def recorded(self) -> dict[str, Any]:
        """Wait for the record of an agent, and return it."""
        assert eventually(self.record.exists, 60)
        found: dict[str, Any] = json.loads(self.record.read_text())
        return found

    def logs(self) -> list[Path]:
        """Return the logs of servers that were started."""
        return list(self.home.glob(".local/state/mlxk/logs/*"))

    def files(self) -> dict[str, bytes]:
        """Return the contents of the home."""
        return {str(path): path.read_bytes() for path in self.home.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models: one for agents, and others that lack something."""
    folder = tmp_path_factory.mktemp("models")
    tags = ("<tool_call>", "</tool_call>")
    write_model(folder / "able", TEMPLATE, "Hello there.", special=("<|im_start|>",), added=tags, context=65536)
    write_model(folder / "short", TEMPLATE, "Hello there.", special=("<|im_start|>",), added=tags, context=2048)
    write_model(folder / "toolless", PLAIN, "Hello there.", special=("<|im_start|>",), context=65536)
    write_model(folder / "broken", BROKEN, "Hello there.", special=("<|im_start|>",), added=tags, context=65536)
    return folder


@pytest.fixture
def machine(tmp_path: Path, models: Path, program_environment: dict[str, str]) -> Machine:
    """Return a machine with the models and the three agents."""
    programs, temporary = tmp_path / "bin", tmp_path / "temporary"
    programs.mkdir()
    temporary.mkdir()
    for name in ("codex", "claude", "opencode"):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{AGENT}" "$@"\n')
        (programs / name).chmod(0o755)
    home = Path(program_environment["HOME"])
    (home / ".codex").mkdir()
    (home / ".codex" / "config.toml").write_text('model = "mine"\n')
    environment = {
        **program_environment,
        "PATH": f"{programs}{os.pathsep}{program_environment['PATH']}",
        "MLXK_WORKSPACE_HOME": str(models),
        "TMPDIR": str(temporary),
        "RECORD": str(tmp_path / "record"),
        "ANTHROPIC_API_KEY": "of-the-user",
    }
    return Machine(home, environment, tmp_path / "record")


def ended(address: str) -> bool:
    """Whether no server answers at an address any more."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/livez", timeout=5):
        return False
    return True


def check(given: dict[str, Any], agent: str, model: str, machine: Machine) -> None:
    """Check what an agent was given, and who knows the key."""
    environment, arguments = given["environment"], given["arguments"]
    told = {
        "codex": " ".join(arguments),
        "claude": f"{environment.get('ANTHROPIC_BASE_URL')}/v1 {environment.get('ANTHROPIC_MODEL')}",
        "opencode": environment.get("OPENCODE_CONFIG_CONTENT", ""),
    }[agent]
    assert f"{given['address']}/v1" in told
    assert re.search(rf"\b{model}\b", told)
    assert (given["folder"], given["without_key"]) == (str(machine.home), 401)
    assert model in given["models"]
    assert len(given["key"]) == 64
    assert f"mlxk launch {agent}" in given["command_lines"]
    assert "mlxk serve" in given["command_lines"]
    for seen in (given["command_lines"], *(log.read_text() for log in machine.logs())):
        assert given["key"] not in seen


def test_an_agent_gets_a_server_of_its_own_and_nothing_is_written(machine: Machine) -> None:
    before = machine.files()
    proxy = {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "internal"}
    done = machine.run("claude", "-m", "able", "--", "exec", "--json", "--", "-x", STATUS="7", **proxy)
    given = machine.recorded()
    check(given, "claude", "able", machine)
    assert (done.returncode, done.stdout, given["arguments"]) == (7, "", ["exec", "--json", "--", "-x"])
    environment = given["environment"]
    assert environment["NO_PROXY"] == environment["no_proxy"] == "internal,localhost,127.0.0.1,::1"
    assert (environment["ANTHROPIC_API_KEY"], environment["CLAUDE_CODE_AUTO_COMPACT_WINDOW"]) == ("", "65536")
    [log] = machine.logs()
    assert done.stderr == f"The server's log: {log}\n"
    assert "serving" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0
    assert ended(given["address"])
    assert machine.files() == {**before, str(log): log.read_bytes()}


def test_a_server_that_dies_is_said_when_the_agent_has_ended(machine: Machine) -> None:
    done = machine.run("opencode", "-m", "able", DOES="kill")
    [log] = machine.logs()
    assert (done.returncode, done.stderr) == (0, f"[the server ended before the agent did]\nThe server's log: {log}\n")


SHORT = "[short has a context window of 2,048 tokens; agents need at least 32,768]\n"
TOOLLESS = "[toolless has no tools, so that an agent can only talk]\n"
ENDS = {
    "a signal to the program": ("codex", "able", signal.SIGTERM, None, 41, ""),
    "Ctrl-C without a terminal, twice": ("codex", "short", signal.SIGINT, None, 40, SHORT),
    "the death of the agent": ("opencode", "toolless", None, signal.SIGKILL, 137, TOOLLESS),
    "the death of the program": ("codex", "able", signal.SIGKILL, None, -signal.SIGKILL, ""),
}


@pytest.mark.parametrize(("agent", "model", "to_program", "to_agent", "status", "said"), ENDS.values(), ids=ENDS)
def test_the_server_ends_with(
    machine: Machine,
    agent: str,
    model: str,
    to_program: signal.Signals | None,
    to_agent: signal.Signals | None,
    status: int,
    said: str,
) -> None:
    with machine.start(agent, "-m", model, DOES="wait") as process:
        assert process.stdout is not None and process.stderr is not None
        given = machine.recorded()
        check(given, agent, model, machine)
        if to_agent is not None:
            os.kill(given["process"], to_agent)
        if to_program is not None:
            process.send_signal(to_program)
        if to_program is signal.SIGINT:
            assert process.stdout.readline() == "agent: interrupted\n"
            process.send_signal(to_program)
        assert process.wait(60) == status
        assert eventually(lambda: ended(given["address"]), 30)
        with contextlib.suppress(ProcessLookupError):
            os.kill(given["process"], signal.SIGKILL)
        assert process.stderr.read().startswith(said)


def test_a_terminal_asks_for_the_model_and_is_the_agent_s(machine: Machine) -> None:
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "mlxk", "launch", "codex"],
        env={**machine.environment, "DOES": "read", "TERM": "dumb"},
        cwd=str(machine.home),
        encoding="utf-8",
        timeout=60,
        dimensions=(30, 100),
    )
    terminal.expect(r"1 \| able +\| [\d.]+MB \| 65,536 +\| fits")
    terminal.expect_exact("Which model? [1-2]: ")
    terminal.sendline("3")
    terminal.expect_exact("Write a number from 1 to 2, or a name of the list.")
    terminal.expect_exact("Which model? [1-2]: ")
    terminal.sendline("1")
    check(machine.recorded(), "codex", "able", machine)
    terminal.sendintr()
    terminal.expect_exact("agent: interrupted")
    terminal.sendline("a line")
    terminal.expect_exact("agent: read a line")
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert (terminal.exitstatus, [log.name for log in machine.logs()]) == (0, ["launch-codex.log"])


def test_a_server_that_cannot_start_is_said_and_no_agent_started(machine: Machine) -> None:
    done = machine.run("codex", "-m", "broken")
    [log] = machine.logs()
    assert (done.returncode, machine.record.exists()) == (1, False)
    assert done.stderr.startswith(f"The server's log: {log}\n")
    assert "The template is broken." in done.stderr


def test_without_a_terminal_the_models_that_would_do_are_named(machine: Machine) -> None:
    settings = machine.home / ".config" / "mlxk" / "config.toml"
    settings.parent.mkdir(parents=True)
    named = '[models.{}]\nmodel = "able"\ncontext = {}\n'
    settings.write_text(named.format("mine", 40000) + named.format("brief", 400))
    done = machine.run("codex")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "launch: Error: which model? There is no terminal to ask on",
        "  mine",
        "  able",
        "  broken",
        "Name one: mlxk launch codex --model mine",
    ]
    shown = machine.run("codex", "--print", "-m", "mine").stdout
    assert "mlxk serve --model mine\n" in shown
    assert """-c 'model="mine"'""" in shown
    assert "-c model_context_window=40000" in shown


@pytest.mark.parametrize("agent", ["codex", "claude", "opencode", "aider", "continue", "jetbrains"])
def test_by_hand_is_shown_and_nothing_started(agent: str, machine: Machine, snapshot: SnapshotAssertion) -> None:
    shown = machine.here(agent, "--print", "-m", "able", PATH="/nonexistent")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == snapshot
    assert (machine.record.exists(), machine.logs()) == (False, [])


def test_a_server_without_a_supervisor_ends_with_its_input_if_it_is_to(machine: Machine) -> None:
    # One with a supervisor does so where the program that launched it dies.
    with subprocess.Popen(
        [sys.executable, "-m", "mlxk", "serve", "--port", "0", "--json", "--until-eof", "--no-supervisor"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=machine.environment,
        cwd=machine.home,
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        address = json.loads(server.stdout.readline())["data"]["url"]
        server.stdin.write(b"input that means nothing\n")
        server.stdin.flush()
        assert not ended(address)
        server.stdin.close()
        assert server.wait(60) == 0
        assert ended(address)


def stop_and_continue(machine: Machine, arguments: str, variables: dict[str, str]) -> None:
    """Launch an agent that stops itself from a shell, and have the shell continue it."""
    shell = pexpect.spawn(
        "bash",
        ["--norc", "-i"],
        env={**machine.environment, **variables, "DOES": "stop", "PS1": "$ ", "TERM": "dumb", "STATUS": "5"},
        cwd=str(machine.home),
        encoding="utf-8",
        timeout=60,
    )
    shell.sendline(f"{sys.executable} -m mlxk launch {arguments}; echo left $?")
    shell.expect("Stopped")
    shell.sendline("fg; echo status $?")
    shell.expect_exact("agent: continued")
    shell.expect(r"status 5\r")
    shell.sendline("exit")
    shell.expect(pexpect.EOF)
    shell.wait()


def test_an_agent_may_use_a_running_server(machine: Machine) -> None:
    keyed = {"MLXK2_API_KEY": "of-the-operator"}
    with ServedProgram(machine.home, {**machine.environment, **keyed}, "--model", "able") as server:
        url = f"http://127.0.0.1:{server.port}"
        flags = ("codex", "--url", f"{url}/v1")
        refused = machine.run(*flags)
        assert (refused.returncode, "Set MLXK2_API_KEY to one of its keys." in refused.stderr) == (1, True)
        asked = machine.run(*flags, **keyed)
        assert (asked.returncode, "  able\n  broken\n" in asked.stderr) == (2, True)
        unknown = machine.run(*flags, "-m", "nosuch", **keyed)
        assert (unknown.returncode, "the server has no model 'nosuch'" in unknown.stderr) == (1, True)
        done = machine.run(*flags, "-m", "short", STATUS="3", **keyed)
        given = machine.recorded()
        assert (done.returncode, done.stderr) == (3, SHORT)
        assert (given["address"], given["key"], "short" in given["models"]) == (url, "of-the-operator", True)
        assert "model_context_window=2048" in given["arguments"]
        stop_and_continue(machine, f"codex --url {url} -m able", keyed)
        use_what_is_in_memory(machine, url, keyed)
        for agent in ("codex", "claude", "opencode"):
            type_what_is_printed(machine, agent, url)
        assert not ended(url)
    gone = machine.run(*flags)
    assert (gone.returncode, f"no server of models answers at {url}" in gone.stderr) == (1, True)


def use_what_is_in_memory(machine: Machine, url: str, keyed: dict[str, str]) -> None:
    """Launch an agent on a model that a running server has in memory, and once each where another server is started."""
    shared = machine.run("codex", "-m", "able", **keyed)
    said = f"[the server at {url} has able in memory and is used; --no-server starts another]\n"
    assert (shared.returncode, shared.stderr, machine.recorded()["address"]) == (0, said, url)
    for flags, key in (((), {}), (("--no-server",), keyed)):
        machine.record.unlink()
        own = machine.run("codex", "-m", "able", *flags, **key)
        given = machine.recorded()
        assert (own.returncode, own.stderr, given["address"] == url) == (0, "", False)
        check(given, "codex", "able", machine)


def type_what_is_printed(machine: Machine, agent: str, url: str) -> None:
    """Have a shell run what is printed, with a name that needs quotes."""
    odd = """it's "odd"."""
    printed = machine.run(agent, "--print", "--url", url, "-m", odd).stdout
    machine.record.unlink()
    subprocess.run(["bash", "-euc", printed], env=machine.environment, check=True, timeout=60)
    given = machine.recorded()
    by_codex = {key: value for word in given["arguments"] if "=" in word for key, value in tomllib.loads(word).items()}
    by_variable = {
        "codex": by_codex.get("model"),
        "claude": given["environment"].get("ANTHROPIC_MODEL"),
        "opencode": json.loads(given["environment"].get("OPENCODE_CONFIG_CONTENT", "{}")).get("model"),
    }[agent]
    assert (given["address"], given["key"], given["models"]) == (url, "local", 401)
    assert by_variable == (f"mlxk/{odd}" if agent == "opencode" else odd)


REFUSALS = {
    "launch codex --url localhost:8000": (2, "--url: 'localhost:8000' is not an address", "--url http://"),
    "launch crush": (2, "Crush is not started by this program", "Set it up: mlxk launch crush --print"),
    "launch cluade": (2, "is not one of codex, claude", "Did you mean claude?"),
    "launch codex --resume": (2, "--resume", "Flags of the agent stand after --: mlxk launch AGENT -- --resume"),
    "launch codex --json": (2, "--json goes with the list", "mlxk launch codex --print --json"),
    "launch codex -m nosuch": (1, "no model found matching 'nosuch'", "mlxk pull nosuch"),
    "launch --model demo": (2, "which agent?", "codex, claude, opencode"),
    "launch codex -m demo-speech": (1, "does not generate text", ""),
}


@pytest.mark.parametrize(("typed", "status", "message", "hint"), [(key, *each) for key, each in REFUSALS.items()])
def test_what_cannot_be_is_said(machine: Machine, typed: str, status: int, message: str, hint: str) -> None:
    done = machine.here(*typed.split()[1:])
    said = done.stderr + done.stdout
    assert (done.returncode, message in said, hint in said) == (status, True, True), said
    assert (machine.record.exists(), machine.logs()) == (False, [])


def test_a_program_that_is_not_here_is_named_with_what_installs_it(machine: Machine) -> None:
    done = machine.here("claude", "-m", "able", PATH="/nonexistent")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "launch: Error: Claude Code is not installed: there is no 'claude'",
        "Install it: npm install -g @anthropic-ai/claude-code",
    ]
    listed = machine.here(PATH="/nonexistent").stdout
    assert "claude   | Claude Code | not installed\n" in listed
    assert "\n  npm install -g @anthropic-ai/claude-code\n" in listed


def test_a_machine_without_a_model_for_agents_is_told_how_to_get_one(machine: Machine) -> None:
    done = machine.here("opencode", MLXK_WORKSPACE_HOME=str(machine.home / "none"))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "launch: Error: no model here has tools and a context window of 32,768 tokens",
        "Find one: mlxk recommend --for code. Or name any: mlxk launch opencode --model MODEL",
    ]
