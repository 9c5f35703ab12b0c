"""Command lines that contradict themselves or lack something: refused before anything is loaded, and why is said."""

import os
import shlex
from pathlib import Path

import pytest

from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import build
from mlxk.entrypoints.settings import read_settings

USAGE = [
    ("run demo --chat --json", "chat and --json exclude each other; give a prompt"),
    ("run demo --chat --show-prompt", "chat and --show-prompt exclude each other; give a prompt"),
    ("run demo --chat --no-chat-template", "chat and --no-chat-template exclude each other; give a prompt"),
    ("run demo hi --prompt hi", "the prompt is given twice, as words and with --prompt"),
    ("config path --for serve", "--for belongs to 'config show'"),
    ("config show --for nonsense", "--for: 'nonsense' does not begin with a command"),
    ("chats list --all", "NAME, --all and --yes belong to rm"),
    ("chats rm", "rm needs the names of chats, or --all"),
    ("launch claude -m demo --json", "--json goes with the list of agents, or with --print"),
    ("show org/m --remote --recalc-hash", "--recalc-hash works on a model that is here, not with --remote"),
    ("show org/m --remote --kv-bits 8", "--kv-bits works on a model that is here, not with --remote"),
    ("alias fast", "a name needs a model"),
    ("alias rm", "rm needs one name"),
    ("monitor mlxk run demo", "the command stands after --"),
    ("run demo --audio a.wav --json --format srt", "--json and --format exclude each other"),
    ("profile a b", "a profile needs one name"),
    ("profile poet", "there is no name 'poet'"),
    ("monitor --seconds 2 -- ls", "--seconds goes without a command: it ends the watch"),
    ("rerank demo why", "the following arguments are required: FILE"),
    ("logs --follow --json", "--follow and --json exclude each other"),
    ("say demo hi --json", "--json prints a document on standard output; name a file for the sound with -o FILE"),
    ("serve --background --until-eof", "--background and --until-eof exclude each other"),
    ("service status -- --port 1", "flags of the server belong to install"),
    ("tune demo a.jsonl --into ./b --resume --restart", "--resume and --restart exclude each other"),
    ("tune demo a.jsonl --into ./b --valid-share 1", "--valid-share: '1' is no number from 0 to below 1"),
    ("tune demo a.jsonl --into ./b --plot a.pdf", "--plot: 'a.pdf' ends in neither .svg nor .png"),
    ("eval demo a.jsonl --adapter ''", "--adapter: the path is empty"),
    ("convert demo ./b", "Must specify conversion mode (--repair-index, --quantize N or --dequantize)"),
    ("bench demo --prompt-tokens 0 --generate 0", "nothing to measure: --prompt-tokens and --generate are 0"),
    ("bench demo --generate 1", "--generate takes 2 tokens at least: the first one ends the prompt"),
    ("bench --url http://127.0.0.1:9 demo --prompt-tokens 0", "a server needs a prompt and something to generate"),
    ("bench --against ollama:a --generate 0", "--against takes one number for --generate, from 1"),
    *[
        (f"show demo --hosts hosts.json {flag}", f"--hosts and {flag.split()[0]} exclude each other")
        for flag in ("--remote", "--files", "--config", "--format-report", "--kv-bits 8")
    ],
    ("run demo hi --local-ranks 2 --hostfile hosts.json", "--local-ranks and --hostfile exclude each other"),
    ("run demo hi --local-ranks 2 --server", "--local-ranks and --server exclude each other"),
    ("run demo hi --hostfile hosts.json --server", "--hostfile and --server exclude each other"),
    ("run demo hi --local-ranks 2 --rank-timeout 0", "'0' is no number of seconds from "),
    ("run demo hi --local-ranks 2 --rank-timeout nan", "'nan' is no number of seconds from "),
    ("run demo hi --local-ranks 2 --rank-timeout soon", "'soon' is no number of seconds from "),
    ("bench report", "the following arguments are required: FILE"),
    ("run demo-vision hi --video a.mp4 --max-pixels large", "--max-pixels: 'large' is no size such as 224x224"),
]
FAULTY = [
    ("run demo hi --thinking-start-token ''", "--thinking-start-token: the text is empty"),
    ("run demo hi --thinking-end-token ''", "--thinking-end-token: the text is empty"),
    ("rerank demo why 'a\0b.txt'", "cannot be the name of a file"),
    ("run demo hi --tools 'a\0b.json'", "--tools: 'a\\x00b.json' cannot be the name of a file"),
    ("run demo hi --template-option colour", "--template-option: 'colour' is not KEY=VALUE"),
    ("run demo hi --template-option tools=1", "--template-option: 'tools' belongs to the conversation"),
    ("run demo hi --adapter ''", "--adapter: the path is empty"),
    ("alias rm fast", "there is no name 'fast' in"),
    ("rerank demo why a.txt --top-n 0", "--top-n must be at least 1 (got 0)"),
    ("logs --lines -1", "--lines must be at least 0 (got -1)"),
    ("schema nonsense", "there is no schema named 'nonsense'"),
    ("run demo-vision hi --image 'a\0b.jpg'", "cannot be the name of a file"),
    ("run demo-vision hi --video 'a\0b.mp4'", "cannot be the name of a file"),
    ("run demo-speech --audio 'a\0b.wav'", "cannot be the name of a file"),
]
CASES = [(2, *each) for each in USAGE] + [(1, *each) for each in FAULTY]


@pytest.mark.parametrize(("status", "line", "said"), CASES, ids=[line for _, line, _ in CASES])
def test_the_contradiction_is_said_and_nothing_is_done(
    status: int,
    line: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = read_settings({"HOME": str(tmp_path), "PATH": os.defpath})
    monkeypatch.chdir(tmp_path)
    with open(os.devnull) as null:
        monkeypatch.setattr("sys.stdin", null)
        ended = run(shlex.split(line), CommandContext(settings, build, lambda *_: 1, null.fileno()))
    printed = capsys.readouterr()
    assert (ended, said in printed.err + printed.out) == (status, True), printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("doctor --timeout {}", "no whole number from 1 to 3600"),
        ("bench demo --generate 8,{}", "no whole number from 0 to"),
        ("run demo hi --max-tokens {}", "no whole number"),
    ],
)
def test_a_number_of_more_digits_than_python_reads_is_refused_as_any_other(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read_settings({"HOME": str(tmp_path), "PATH": os.defpath})
    with open(os.devnull) as null:
        ended = run(line.format("9" * 5000).split(), CommandContext(settings, build, lambda *_: 1, null.fileno()))
    printed = capsys.readouterr()
    assert (ended, said in printed.err) == (2, True), printed.err[-300:]
