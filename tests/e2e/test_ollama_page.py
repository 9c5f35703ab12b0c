"""The page about Ollama's API: every request that it shows is sent to ``mlxk serve`` as installed."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import contract
from serving.ollama import joined, lines_of
from serving.program import ServedProgram

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

PAGE = Path(__file__).parents[2] / "docs" / "apis" / "ollama.md"
FORM = "application/x-www-form-urlencoded"
"""What curl declares for ``-d``."""


@pytest.fixture
def served(tmp_path: Path, program_environment: dict[str, str]) -> Iterator[ServedProgram]:
    """Serve the built-in models."""
    with ServedProgram(tmp_path, program_environment) as program:
        yield program


def examples() -> Iterator[tuple[str, bytes | None]]:
    """Yield path and body of every request the page shows."""
    for block in re.findall(r"```sh\n(curl .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        words = shlex.split(block)
        address = next(word for word in words if word.startswith("http://"))
        yield address.partition(":11434")[2], words[words.index("-d") + 1].encode() if "-d" in words else None


def answer(served: ServedProgram, path: str, body: bytes | None) -> Any:
    """Send a request as curl does; return the answer, put together where it is streamed."""
    method = "GET" if body is None else "POST"
    status, found = served.ask(method, path, body, Content_Type=FORM)
    assert status == 200, found
    if isinstance(found, bytes):
        return joined(lines_of(path, found))
    contract.check(method, path, status, "application/json", found)
    return found


def test_every_example_of_the_page_works(served: ServedProgram) -> None:
    chat, text, form, call, load, running, unload = (answer(served, *each) for each in examples())
    assert "knife for local models" in chat["message"]["content"]
    assert text["thinking"]
    assert "Paris" in form["message"]["content"] or "Rome" in form["message"]["content"]
    function = call["message"]["tool_calls"][0]["function"]
    assert (function["name"], function["arguments"]) == ("get_weather", {"city": "Paris"})
    assert (load["done_reason"], unload["done_reason"]) == ("load", "unload")
    assert [each["name"] for each in running["models"]] == ["demo:latest"]


def test_the_python_example_of_the_page_works(served: ServedProgram, program_environment: dict[str, str]) -> None:
    [program] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program.replace(":11434", f":{served.port}")],
        capture_output=True,
        text=True,
        env={**program_environment, "PYTHONWARNINGS": ""},
        check=False,
    )
    assert "knife for local models" in done.stdout, done.stderr


def test_the_page_names_every_field_that_has_no_effect_or_is_refused() -> None:
    from mlxk.entrypoints.http.ollama.generate import UNSUPPORTED

    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in UNSUPPORTED if f"`{name}`" not in page] == []
