"""Tools of servers that a model is offered: their names and descriptions, what is asked first, and what is answered."""

import io
import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from doubles.confirmation import InMemoryConfirmation
from doubles.tool_servers import InMemoryToolServers

from mlxk.domain.errors import ExecutionError, ValidationError
from mlxk.domain.generation.conversation import MAX_NAME, MAX_TOOL_BYTES, ToolCall
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.tool_calls import MALFORMED, MOST_SHOWN, REFUSED, read_servers, toolbox


def called(arguments: Mapping[str, Any]) -> str:
    return f"called with {len(arguments)}"


class Session:
    """Offers tools of servers in memory, and keeps what is said.

    Args:
        folder: Where the file of the servers is written.
        tools: Pairs of a server and its tool.
        allowed: ``--allow-tool``.
        answer: The answer to every question; None without a terminal.
        description: What the servers say of each tool.
        definitions: ``--tools``.
        parameters: The schema of each tool's arguments.
    """

    def __init__(
        self,
        folder: Path,
        *tools: tuple[str, str],
        allowed: tuple[str, ...] = (),
        answer: bool | None = None,
        description: str = "",
        definitions: tuple[str, ...] = (),
        parameters: Mapping[str, Any] = MappingProxyType({"type": "object"}),
    ) -> None:
        path = folder / "servers.json"
        path.write_text(json.dumps({"mcpServers": {server: {"command": "x"} for server, _ in tools}}))
        self.said = io.StringIO()
        self.confirmation = InMemoryConfirmation(answer)
        servers = InMemoryToolServers(dict.fromkeys(tools, called), description, parameters)
        output = Output(as_json=False, color=False, stdout=io.StringIO(), stderr=self.said)
        arguments = Namespace(mcp=[str(path)], allow_tool=list(allowed))
        self.toolbox = toolbox(arguments, definitions, servers, self.confirmation, output)

    def result(self, name: str, arguments: str) -> tuple[str, dict[str, object]]:
        """Return what the model gets for a call, and what is recorded of it."""
        with self.toolbox as offered:
            return offered.result(ToolCall(name, arguments, "call_0")), offered.record[-1]

    def names(self) -> list[str]:
        with self.toolbox as offered:
            return [json.loads(each)["function"]["name"] for each in offered.definitions]


@pytest.mark.parametrize("arguments", ["{", "[1]", '"a"', "null", "[" * 100_000, "9" * 5000])
def test_arguments_that_are_no_object_are_not_passed_on_and_the_model_is_told(tmp_path: Path, arguments: str) -> None:
    session = Session(tmp_path, ("files", "read"), allowed=("read",))
    text, record = session.result("read", arguments)
    assert text == f"Error: {MALFORMED}"
    assert record == {
        **{"name": "read", "server": "files", "arguments": arguments, "called": False, "failed": True, "result": text}
    }
    assert session.said.getvalue() == ("[read: the model's arguments are no JSON object, so that it was not called]\n")


def test_a_call_without_arguments_has_an_empty_object(tmp_path: Path) -> None:
    assert Session(tmp_path, ("files", "read"), allowed=("read",)).result("read", "")[0] == "called with 0"


@pytest.mark.parametrize(
    ("answer", "text", "said"),
    [
        (True, "called with 1", "[read of files, 13 characters]\n"),
        (False, f"Error: {REFUSED}", "[read was not called]\n"),
        (None, f"Error: {REFUSED}", "[read was not called: --allow-tool read allows it]\n"),
    ],
)
def test_what_the_user_says_to_a_call_decides_it(tmp_path: Path, answer: bool | None, text: str, said: str) -> None:
    session = Session(tmp_path, ("files", "read"), answer=answer)
    result, record = session.result("read", '{"path": "ä"}')
    assert (result, record["called"]) == (text, answer is True)
    assert session.said.getvalue() == said
    question = ("The model calls read of the tool server 'files' with", "{", '  "path": "ä"', "}")
    assert session.confirmation.asked == ([] if answer is None else [(question, "Call it?")])


@pytest.mark.parametrize("more", [0, 1, 500])
def test_of_long_arguments_the_question_says_how_much_it_leaves_out(tmp_path: Path, more: int) -> None:
    frame = len(json.dumps({"text": ""}, indent=2))
    session = Session(tmp_path, ("files", "read"), answer=True)
    session.result("read", json.dumps({"text": "x" * (MOST_SHOWN - frame + more)}))
    ((facts, _),) = session.confirmation.asked
    left_out = facts[-1] if facts[-1].startswith("and ") else ""
    assert left_out == (f"and {more} further characters" if more else "")
    assert len("\n".join(facts[1 : len(facts) - bool(more)])) == MOST_SHOWN


def test_tools_whose_names_become_equal_are_told_apart(tmp_path: Path) -> None:
    """A name is what OpenAI's form allows of it, and takes the name of its server only where it must."""
    definition = json.dumps({"type": "function", "function": {"name": "mine"}})
    tools = (("a", "say it"), ("a", "say.it"), ("a", "mine"), ("b", "own"), ("b", ""))
    session = Session(tmp_path, *tools, definitions=(definition,))
    assert session.names() == ["mine", "a__say_it", "a__say_it_2", "a__mine", "own", "b__"]


def test_long_names_stay_apart_within_the_limit(tmp_path: Path) -> None:
    tools = tuple(("s" * MAX_NAME, "x" * MAX_NAME + end) for end in "abc")
    names = Session(tmp_path, *tools).names()
    assert names == ["s" * MAX_NAME, "s" * (MAX_NAME - 4) + "_2", "s" * (MAX_NAME - 4) + "_3"]


def test_a_long_description_is_cut_and_that_is_said(tmp_path: Path) -> None:
    session = Session(tmp_path, ("files", "read"), description="d" * MAX_TOOL_BYTES)
    with session.toolbox as offered:
        (definition,) = map(json.loads, offered.definitions)
    assert definition["function"]["description"] == "d" * 1000
    assert session.said.getvalue() == "[the description of read is too long, and is cut]\n"


def test_parameters_that_are_too_long_are_refused_by_the_names_of_tool_and_server(tmp_path: Path) -> None:
    with (
        pytest.raises(ExecutionError) as failure,
        Session(tmp_path, ("files", "read"), parameters={"title": "t" * MAX_TOOL_BYTES}).toolbox,
    ):
        pass
    assert failure.value.message == f"the tool 'read' of 'files' is described in more than {MAX_TOOL_BYTES} bytes"


def test_servers_of_several_files_need_names_of_their_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text('{"mcpServers": {"files": {"command": "x"}}}')
    output = Output(as_json=False, color=False)
    with pytest.raises(ValidationError) as refusal:
        read_servers([str(tmp_path / "one"), str(tmp_path / "two")], output)
    assert refusal.value.message == (f"--mcp: '{tmp_path}/two': mcpServers.files is the second server of this name")
    assert refusal.value.hint == "Give one of them another."


@pytest.mark.parametrize(
    ("entry", "field"), [({"command": 3}, "command"), ({"command": ""}, "command"), ({"url": ["a"]}, "url")]
)
def test_a_field_that_is_no_text_is_named(tmp_path: Path, entry: dict[str, object], field: str) -> None:
    (tmp_path / "one").write_text(json.dumps({"mcpServers": {"files": entry}}))
    with pytest.raises(ValidationError) as refusal:
        read_servers([str(tmp_path / "one")], Output(as_json=False, color=False))
    assert refusal.value.message == f"--mcp: '{tmp_path}/one': mcpServers.files.{field} must be a text"
