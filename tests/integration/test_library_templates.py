"""Models whose conversations mlx-vlm writes with code of its own: reasoning on and off, tools, and spelled marks."""

from collections.abc import Iterator
from typing import Any

import pytest
from jinja2.exceptions import TemplateError, UndefinedError
from models.pictures import about, oracle
from models.vision_families import build_family
from serving.running import RunningServer
from serving.whole_program import PATH, WholeProgram

from mlxk.adapters.mlx.prompting.template_inputs import WirePrompt
from mlxk.adapters.mlx.prompting.template_sandbox import FaultKind, LibraryTemplate, TemplateFault
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
ASKED = "Hello world! How are you today?"
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("coded")
    build_family(folder / "k3", "kimi_k3", 3)
    program: Any = WholeProgram(folder, ServerSettings(allow_paths=True))
    program.folder = folder
    with RunningServer(program) as running:
        yield running


def body(served: RunningServer, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    program: Any = served.parts
    said = messages or ({"role": "user", "content": ASKED},)
    return {"model": str(program.folder / "k3"), "messages": list(said), "temperature": 0, "max_tokens": 8, **fields}


def prompt(served: RunningServer, *messages: dict[str, Any], **fields: Any) -> str:
    status, _, answer = served.post("/apply-template", body(served, *messages, **fields))
    assert status == 200, answer
    return str(answer["prompt"])


@pytest.mark.parametrize("fields", [{}, {"enable_thinking": True}])
def test_it_reasons_as_mlx_vlm_lets_it(served: RunningServer, fields: dict[str, Any]) -> None:
    program: Any = served.parts
    path = str(program.folder / "k3")
    status, headers, answer = served.post(PATH, body(served, **fields))
    assert status == 200, answer
    assert "x-mlxk-adaptations" not in headers
    expected = b"".join(oracle(ModelHandle(path, path, Origin.WORKSPACE), about(ASKED), 8))
    assert answer["choices"][0]["message"]["reasoning_content"] == expected.decode(errors="replace").strip("\n")


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"thinking": False}},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_reasoning_is_switched_off(served: RunningServer, fields: dict[str, Any]) -> None:
    assert prompt(served).endswith("<|open|>think<|sep|>")
    assert prompt(served, **fields).endswith("<|open|>response<|sep|>")
    _, headers, answer = served.post(PATH, body(served, **fields))
    assert "x-mlxk-adaptations" not in headers
    message = answer["choices"][0]["message"]
    assert message["content"]
    assert not message.get("reasoning_content")


def test_options_reach_its_code(served: RunningServer) -> None:
    found = prompt(served, chat_template_kwargs={"thinking_effort": "low"})
    assert "`thinking_effort=low`" in found


def test_tools_calls_and_results_are_written(served: RunningServer) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    turns = (
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    )
    found = prompt(served, *turns, tools=[TOOL])
    assert '"name":"now"' in found
    assert '<|open|>call tool="now" index="1"<|sep|>' in found
    assert '<|open|>message role="tool" tool="now" index="1"<|sep|>noon' in found


def test_marks_that_a_message_spells_end_no_turn(served: RunningServer) -> None:
    spelled = {"role": "user", "content": "a<|end_of_msg|>b"}
    _, headers, answer = served.post(PATH, body(served, spelled))
    plain = served.post(PATH, body(served, {"role": "user", "content": "ab"}))[2]
    assert headers["x-mlxk-adaptations"] == "special-tokens-as-text"
    assert answer["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 1


class Code:
    """A tokenizer whose conversations are written by code that fails."""

    def __init__(self, error: Exception | None, text: str = "") -> None:
        self.error, self.text = error, text

    def apply_chat_template(self, messages: list[Any], tokenize: bool, **options: Any) -> str:
        """Return the text, or fail."""
        if self.error is not None:
            raise self.error
        return self.text


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (Code(TemplateError("no system")), FaultKind.REFUSED, "no system"),
        (Code(UndefinedError("x is undefined")), FaultKind.FAILED, "x is undefined"),
        (Code(KeyError("/home/ada")), FaultKind.FAILED, "KeyError"),
        (Code(None, "half \ud800"), FaultKind.FAILED, "UnicodeEncodeError"),
    ],
)
def test_what_its_code_cannot_write_is_a_fault_of_the_template(code: Code, kind: FaultKind, message: str) -> None:
    with pytest.raises(TemplateFault) as caught:
        LibraryTemplate(code).render(WirePrompt(({"role": "user", "content": "u"},)), {})
    assert (caught.value.kind, caught.value.message) == (kind, message)


def test_its_code_is_not_asked_to_write_no_messages() -> None:
    with pytest.raises(TemplateFault, match="no messages"):
        LibraryTemplate(Code(None, "text")).render(WirePrompt(()), {})
