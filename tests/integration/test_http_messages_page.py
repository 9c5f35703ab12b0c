"""The page about the Messages API: its examples, run against the built-in models; and what those see."""

import base64
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.messages import frames, put_together
from serving.running import RunningServer
from serving.whole_program import WholeProgram

pytestmark = pytest.mark.mlx

PICTURE = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo-vision" / "blue-square.jpg"
PAGE = (Path(__file__).parents[2] / "docs" / "apis" / "anthropic.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve the built-in model."""
    program: Any = WholeProgram(tmp_path_factory.mktemp("page"))
    with RunningServer(program) as running:
        yield running


def examples() -> Iterator[tuple[str, bytes]]:
    """Yield path and body of every request that the page shows."""
    for block in re.findall(r"```sh\n(curl .*?)```", PAGE, re.DOTALL):
        words = shlex.split(block)
        address = next(word for word in words if word.startswith("http://"))
        yield address.partition(":8000")[2], words[words.index("-d") + 1].encode()


def test_every_example_of_the_page_works(served: RunningServer) -> None:
    kind = {"Content-Type": "application/json"}
    answers = [served.request("POST", path, body, kind) for path, body in examples()]
    assert [status for status, _, _ in answers] == [200] * 5
    plain, streamed, called, form, counted = (answer for _, _, answer in answers)
    assert "knife for local models" in plain["content"][0]["text"]
    assert plain["stop_reason"] == "end_turn"
    message = put_together(frames(streamed))
    assert message["content"][0]["type"] == "text"
    (block,) = called["content"]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "get_weather", {"city": "Paris"})
    assert called["stop_reason"] == "tool_use"
    assert json.loads(form["content"][0]["text"])["city"] in {"Paris", "Rome"}
    usage = plain["usage"]
    assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


def test_the_python_example_of_the_page_works(served: RunningServer) -> None:
    [program] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program.replace(":8000", f":{served.port}")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "knife for local models" in done.stdout


@pytest.mark.parametrize("in_result", [False, True])
def test_a_model_sees_an_image_in_a_message_and_in_a_result(served: RunningServer, in_result: bool) -> None:
    data = base64.b64encode(PICTURE.read_bytes()).decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": data}}
    question = {"type": "text", "text": "What color is it?"}
    turns: list[Any] = [{"role": "user", "content": [image, question]}]
    if in_result:
        called = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a.jpg"}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [image]}
        turns = [{"role": "user", "content": [question]}, {"role": "assistant", "content": [called]}]
        turns.append({"role": "user", "content": [result, question]})
    body = {"model": "demo-vision", "max_tokens": 40, "temperature": 0, "messages": turns}
    status, _, answer = served.post("/v1/messages", body)
    assert status == 200, answer
    assert "blue" in answer["content"][0]["text"]
    counted = served.post("/v1/messages/count_tokens", body)[2]
    assert counted["input_tokens"] > 0
    assert counted["notes"]
