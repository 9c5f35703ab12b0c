"""The text that reading commands print: never nothing."""

import subprocess
from collections.abc import Callable

import pytest

Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["health", "demo"], "demo — Model is healthy\n"),
        (["health", "demo", "--deep"], "demo"),
        (["show", "demo"], "demo"),
        (["show", "demo", "--files"], "model.safetensors"),
        (["show", "demo", "--config"], '"model_type"'),
        (["list", "--all"], "demo"),
        (["schema"], "health"),
    ],
)
def test_a_reading_command_prints_what_it_found(arguments: list[str], expected: str, mlxk: Program) -> None:
    done = mlxk(*arguments)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
