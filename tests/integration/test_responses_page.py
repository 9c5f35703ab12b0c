"""The page about the Responses API: its examples are run, and what it says about fields and items is complete."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.response_events import read_events
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.entrypoints.http.responses.items import ITEM_KINDS, LEFT_OUT
from mlxk.entrypoints.http.responses.request import UNSUPPORTED, WITHOUT_EFFECT
from mlxk.entrypoints.http.responses.store import MAX_BYTES, MAX_RESPONSES
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
PAGE = (Path(__file__).parents[2] / "docs" / "apis" / "responses.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve the built-in model."""
    program: Any = WholeProgram(tmp_path_factory.mktemp("page"), ServerSettings())
    with RunningServer(program) as running:
        yield running


def test_the_requests_of_the_page_are_answered_as_it_says(served: RunningServer) -> None:
    commands = re.findall(r"```sh\ncurl (?:-N )?http://127\.0\.0\.1:8000(\S+) .*?-d '(.*?)'\n```", PAGE, re.DOTALL)
    plain, streamed, call, answer, form = [served.post(path, json.loads(body))[2] for path, body in commands]
    assert "knife for local models" in plain["output"][0]["content"][0]["text"]
    events = read_events(streamed.decode())
    assert "knife for local models" in events[-1]["response"]["output"][0]["content"][0]["text"]
    [function] = call["output"]
    assert (function["type"], function["name"]) == ("function_call", "get_weather")
    assert json.loads(function["arguments"]) == {"city": "Paris"}
    assert answer["output"][0]["type"] == "message"
    assert json.loads(form["output"][0]["content"][0]["text"])["city"] in {"Paris", "Rome"}


def test_the_python_example_of_the_page_works(served: RunningServer) -> None:
    [program] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    command = [sys.executable, "-c", program.replace(":8000", f":{served.port}")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "knife for local models" in done.stdout
    assert done.stdout.endswith("True\n")


def test_the_page_names_what_there_is() -> None:
    named = set(re.findall(r"`([^`\s]+)`", PAGE))
    assert {kind for kind in ITEM_KINDS if not kind.endswith("_output")} <= named
    assert named >= LEFT_OUT
    assert set(UNSUPPORTED) - {"n", "background_options"} <= named
    fields = {name for name in WITHOUT_EFFECT if name.startswith(("reasoning.", "text.verb", "prompt_", "client_"))}
    assert fields - {"reasoning.generate_summary"} <= named
    assert f"at most {MAX_RESPONSES} of them and {MAX_BYTES // 2**20} MiB" in PAGE
