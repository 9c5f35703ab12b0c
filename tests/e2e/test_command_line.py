"""The installed program, as a user meets it: exit statuses, streams, pipes, and never a traceback."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Program = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.e2e


def answers() -> dict[str, str]:
    """Return the questions of the demo model's card that are one plain user turn, with their answers."""
    import mlxk.adapters.builtin as built_in

    path = Path(built_in.__path__[0]) / "models" / "demo" / "questions.json"
    return {
        entry["messages"][0]["content"]: entry["answer"]
        for entry in json.loads(path.read_text(encoding="utf-8"))
        if len(entry["messages"]) == 1 and not entry.get("tools") and not entry.get("enable_thinking")
    }


def test_no_command_prints_the_help_and_exits_2(mlxk: Program) -> None:
    done = mlxk()
    assert done.returncode == 2
    assert done.stdout.startswith("usage: mlxk")


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["run", "nosuch", "x"], 1, "nosuch"),
        (["show", "nosuch"], 1, "nosuch"),
        (["health", "nosuch"], 1, "nosuch"),
        (["run", "demo", "hi", "--temperature", "99"], 1, "temperature"),
        (["run", "demo", "hi", "--max-tokens", "0"], 1, "max_tokens"),
        (["run", "demo"], 2, "prompt"),
        (["run", "demo", "-"], 1, "standard input is empty"),
        (["show", "./nosuch"], 1, "./nosuch"),
        (["frobnicate"], 2, "frobnicate"),
        (["show", ""], 1, "empty"),
        (["show", "a\0b"], 1, "control character"),
    ],
)
def test_a_failure_is_one_clear_line_on_standard_error(
    mlxk_here: Program, arguments: list[str], status: int, named: str
) -> None:
    if any("\0" in argument for argument in arguments):
        arguments = [argument.replace("\0", "\x01") for argument in arguments]  # a process cannot be given a NUL
    done = mlxk_here(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert named in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["show", "nosuch"], ["run", "nosuch", "x"], ["health", "nosuch"]])
def test_with_json_a_failure_is_an_envelope_on_standard_output(mlxk: Program, arguments: list[str]) -> None:
    done = mlxk(*arguments, "--json")
    envelope = json.loads(done.stdout)
    assert done.returncode == 1
    assert list(envelope) == ["status", "command", "data", "error"]
    assert (envelope["status"], envelope["command"], envelope["data"]) == ("error", arguments[0], None)
    assert envelope["error"]["type"] == "model_not_found"
    assert done.stderr == ""


def test_the_demo_model_answers_its_card_word_for_word(mlxk: Program) -> None:
    question = "What is mlxk?"
    done = mlxk("run", "demo", question)
    assert (done.returncode, done.stdout) == (0, f"{answers()[question]}\n")


def test_run_json_is_one_document_with_usage_and_timings(mlxk: Program) -> None:
    done = mlxk("run", "demo", "hi", "--json")
    data = json.loads(done.stdout)["data"]
    assert data["response"] == answers()["hi"]
    assert data["finish_reason"] == "stop"
    assert data["usage"]["total_tokens"] == data["usage"]["prompt_tokens"] + data["usage"]["completion_tokens"]
    assert data["timings"]["generation_seconds"] > 0


def test_a_stop_string_ends_the_answer_before_it(mlxk_here: Program) -> None:
    done = mlxk_here("run", "demo", "Count to ten.", "--stop", "5")
    assert done.stdout == "1, 2, 3, 4, \n"


def test_a_cut_answer_says_so_on_standard_error(mlxk_here: Program) -> None:
    done = mlxk_here("run", "demo", "Count to ten.", "--max-tokens", "3")
    assert done.returncode == 0
    assert "[Output cut at 3 tokens (--max-tokens)" in done.stderr


THINK_FIRST = "Think first: what is the capital of Spain?"


def test_thinking_goes_to_standard_error_and_can_be_hidden(mlxk_here: Program) -> None:
    shown, hidden = mlxk_here("run", "demo", THINK_FIRST), mlxk_here("run", "demo", THINK_FIRST, "--no-reasoning")
    assert shown.stdout == hidden.stdout == "The capital of Spain is Madrid.\n"
    assert "The user asks" in shown.stderr
    assert hidden.stderr == ""
    assert "The user asks" in json.loads(mlxk_here("run", "demo", THINK_FIRST, "--json").stdout)["data"]["reasoning"]


def test_a_tool_call_is_printed_as_json(mlxk_here: Program, tmp_path: Path) -> None:
    tool = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": tool}]))
    done = mlxk_here("run", "demo", "What is the weather in Paris?", "--tools", "tools.json")
    assert json.loads(done.stdout) == {"name": "get_weather", "arguments": {"city": "Paris"}}


def test_an_answer_follows_a_json_schema(mlxk_here: Program, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"capital": {"enum": ["Rome", "Oslo"]}}, "required": ["capital"]}
    (tmp_path / "schema.json").write_text(json.dumps({**schema, "additionalProperties": False}))
    done = mlxk_here("run", "demo", "What is the capital of Italy?", "--json-schema", "schema.json")
    assert json.loads(done.stdout)["capital"] in {"Rome", "Oslo"}


def test_a_json_schema_may_be_what_another_program_writes(mlxk: Program) -> None:
    schema, words = '{"enum": ["Rome", "Oslo"]}', "What is the capital of Italy?"
    done = mlxk("run", "demo", words, "--json-schema", "/dev/stdin", "--no-stdin", stdin=schema)
    assert json.loads(done.stdout) in {"Rome", "Oslo"}


@pytest.mark.parametrize("flag", ["--json-schema", "--tools"])
@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_a_file_that_is_not_what_a_flag_wants_is_refused_by_name(
    mlxk_here: Program, tmp_path: Path, flag: str, content: bytes | None
) -> None:
    if content is None:
        (tmp_path / "wanted").mkdir()
    else:
        (tmp_path / "wanted").write_bytes(content)
    done = mlxk_here("run", "demo", "hi", flag, "wanted")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flags", [["--draft-model", "demo"], ["--kv-bits", "8"], ["--max-kv-size", "256"]])
def test_ways_to_compute_do_not_change_the_answer(mlxk_here: Program, flags: list[str]) -> None:
    assert mlxk_here("run", "demo", "Count to ten.", *flags).stdout == f"{answers()['Count to ten.']}\n"


def test_an_endless_pipe_is_refused_by_its_size(mlxk: Program) -> None:
    done = mlxk("run", "demo", "-", stdin="y\n" * 5_000_000)
    assert (done.returncode, done.stdout) == (1, "")
    assert "The first 32768 of the prompt's 100000" in done.stderr
    assert "context window holds 2048" in done.stderr


def test_a_dash_reads_the_prompt_from_a_pipe(mlxk_here: Program) -> None:
    done = mlxk_here("run", "demo", "-", stdin="What is mlxk?")
    assert done.stdout == f"{answers()['What is mlxk?']}\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["run", "demo", "hi"], 0, ""),
        (["run", "demo"], 2, "run needs a prompt"),
        (["run", "demo", "--chat"], 0, ""),
        (["run", "demo", "-"], 1, "standard input is empty"),
    ],
)
def test_a_closed_standard_input_is_an_empty_one(
    program_environment: dict[str, str], tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "mlxk", *arguments],
        capture_output=True,
        text=True,
        env=program_environment,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.strip() == "" if not said else said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([b"\xff"], "prompt"),
        ([b"\xff", "--no-chat-template"], "prompt"),
        (["hi", "--system", b"\xff"], "system"),
        ([b"\xff", "--chat"], "prompt"),
        (["hi", "--chat", "--system", b"\xff"], "--system"),
    ],
)
def test_a_prompt_that_is_not_utf8_is_refused_by_name(
    mlxk_here: Program, arguments: list[str | bytes], named: str
) -> None:
    done = mlxk_here("run", "demo", *(os.fsdecode(each) for each in arguments))
    assert done.returncode != 0
    assert f"Error: {named}: is not UTF-8 text" in done.stderr


def test_a_chat_s_standard_input_that_is_not_utf8_is_repaired_and_said(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlxk", "run", "demo", "--chat"],
        input=b"\xff\xfehello",
        capture_output=True,
        env=program_environment,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout
    assert b"not valid UTF-8" in done.stderr


def test_a_closed_pipe_ends_in_silence(program_environment: dict[str, str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "mlxk", "run", "demo", "hi"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=program_environment,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, b"")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["run", "-h"],
        ["list"],
        ["list", "--json"],
        ["show", "nosuch", "--json"],
        ["run", "demo", "hi"],
    ],
)
def test_output_that_cannot_be_written_is_a_failure_of_one_line(
    program_environment: dict[str, str], tmp_path: Path, arguments: list[str]
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mlxk", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=program_environment,
            cwd=tmp_path,
            timeout=120,
            check=False,
        )
    told, hint = done.stderr.splitlines()
    assert done.returncode == 1
    assert told.endswith("Error: standard output cannot be written: No space left on device")
    assert hint == "See whether the disk it goes to is full."


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["run", "demo", "hi", "--max-tokens", "2"], 0),
        (["run", "demo", "--max-tokens", "2"], 0),
        (["clone", "demo", "./copy"], 0),
        (["show", "nosuch"], 1),
    ],
)
@pytest.mark.parametrize("deaf", ["full", "closed"])
def test_talk_that_cannot_be_written_does_not_stop_the_work(
    program_environment: dict[str, str], tmp_path: Path, arguments: list[str], status: int, deaf: str
) -> None:
    if deaf == "full" and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    if deaf == "full":
        ear = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, ear = os.pipe()
        os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "mlxk", *arguments],
        input=b"not UTF-8: \xff",
        stdout=subprocess.PIPE,
        stderr=ear,
        env=program_environment,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    os.close(ear)
    assert done.returncode == status
    assert (tmp_path / "copy" / "config.json").exists() == (arguments[0] == "clone")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith("-draft")] == []


def test_what_was_done_otherwise_than_usual_is_told(mlxk_here: Program) -> None:
    assert "max_kv_size" in mlxk_here("run", "demo", "hi", "--max-kv-size", "64").stderr


def test_a_model_cannot_write_on_the_terminal_by_its_metadata(mlxk_here: Program, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    config = {"model_type": "\x1b]0;owned\x07\x1b[31mred\nHealth: healthy", "architectures": ["\x9b31m"]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    for arguments in (["show", "./m"], ["show", "./m", "--config"], ["run", "./m", "hi"]):
        done = mlxk_here(*arguments)
        told = done.stdout + done.stderr
        assert {"\x1b", "\x07", "\x9b"}.isdisjoint(told)
        assert "Health: healthy" not in told.splitlines()


def test_on_a_terminal_the_answer_streams(program_environment: dict[str, str], tmp_path: Path) -> None:
    """Each delta is a write of its own, so the terminal receives the answer in several reads."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxk", "run", "demo", "Tell me a story."],
        stdout=slave,
        stderr=subprocess.PIPE,
        env=program_environment,
        cwd=tmp_path,
    )
    os.close(slave)
    pieces = []
    try:
        while piece := os.read(master, 4096):
            pieces.append(piece)
    except OSError:
        pass  # Linux reports the end of a pseudo-terminal as an I/O error
    finally:
        os.close(master)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert b"".join(pieces).decode().startswith("Once upon a time")
    assert len(pieces) > 1


@pytest.mark.parametrize(
    "command", [["list"], ["health"], ["show", "demo"], ["list", "--all", "--health", "--verbose"]]
)
def test_the_built_in_model_is_listed_whole_and_described(mlxk_here: Program, command: list[str]) -> None:
    done = mlxk_here(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout
    assert "healthy" in done.stdout or command == ["list"]


def test_completion_offers_the_models_on_this_disk(mlxk_here: Program, program_environment: dict[str, str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "mlxk" in mlxk_here("completion", shell).stdout
    answer = subprocess.run(
        f'exec 8>&1; "{sys.executable}" -m mlxk',
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
        env={
            **program_environment,
            "_ARGCOMPLETE": "1",
            "COMP_LINE": "mlxk show de",
            "COMP_POINT": "12",
            "COMP_TYPE": "9",
        },
    )
    assert answer.stdout.split("\x0b") == ["demo "] or "demo" in answer.stdout
