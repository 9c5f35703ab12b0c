"""Flags that are about another flag are refused without it, by the name that was typed."""

import subprocess
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.e2e
Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("run demo hi --draft-tokens 2", "--draft-tokens needs --draft-model"),
        ("run demo hi --draft-block-size 3", "--draft-block-size needs --draft-model"),
        ("run demo hi --draft-block-size=3 --show-prompt", "--draft-block-size needs --draft-model"),
        ("run demo hi --draft-kind model", "--draft-kind needs --draft-model"),
        ("run demo --chat --draft-tokens 2", "--draft-tokens needs --draft-model"),
        ("run demo --chat --draft-kind model", "--draft-kind needs --draft-model"),
        ("run demo --chat --draft-model nosuch/model", "no model found matching 'nosuch/model'"),
        ("run demo hi --kv-group-size 32", "--kv-group-size needs --kv-bits"),
        (
            "run demo-vision hi --image demo-vision/blue-square.jpg --draft-tokens 2",
            "--draft-tokens needs --draft-model",
        ),
        ("run demo hi --chunk 2", "--chunk requires --image FILE."),
        ("run demo hi --words", "--words requires --audio FILE."),
        ("run demo hi --allow-tool x", "--allow-tool requires --mcp FILE"),
        ("run demo-speech --audio demo-speech/hello.wav --words", "--words needs --format json"),
        ("run demo-speech --audio demo-speech/hello.wav --words --format srt", "--words needs --format json"),
        ("run demo hi --no-chat-template --no-thinking", "--thinking needs the chat template"),
        ("run demo hi --no-chat-template --reasoning-effort low", "--reasoning-effort needs the chat template"),
        ("run demo hi --no-chat-template --template-option a=1", "--template-option needs the chat template"),
        ("run demo hi --no-chat-template --special-tokens-in-content", "--special-tokens-in-content needs the chat"),
        ("serve --pull", "--pull needs --model"),
        ("bench demo --pull --skip-pull", "--pull and --skip-pull exclude each other"),
        ("bench demo --results x", "--results goes with --against"),
    ],
)
def test_a_flag_about_another_one_is_refused_without_it(mlxk_here: Program, line: str, fault: str) -> None:
    done = mlxk_here(*line.split())
    assert (done.returncode in (1, 2), done.stdout) == (True, "")
    assert fault in done.stderr
