"""The tools of a file, and files of JSON that cannot be read."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from serving.settings_home import Machine

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import MAX_TOOL_BYTES, MAX_TOOLS, ToolCall
from mlxk.entrypoints.cli import generation_arguments
from mlxk.entrypoints.cli.answer import call_line
from mlxk.entrypoints.cli.command import hosts_of_file
from mlxk.entrypoints.cli.generation_arguments import tool_faults
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.tool_calls import read_servers

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def function(**fields: object) -> list[object]:
    """Return the one tool whose function is this."""
    return [{"type": "function", "function": fields}]


@pytest.mark.parametrize("tools", [[], [TOOL], [TOOL] * MAX_TOOLS, [{"function": {"name": "f"}}]])
def test_definitions_in_the_form_of_openai_are_accepted(tools: object) -> None:
    assert tool_faults(tools) == []


@pytest.mark.parametrize(
    ("tools", "named"),
    [
        (3, "array"),
        ([3], "array"),
        ([TOOL] * (MAX_TOOLS + 1), str(MAX_TOOLS)),
        ([TOOL, {"type": "function"}], "[1].function"),
        ([{"type": "retrieval", "function": {"name": "f"}}], "[0].type"),
        (function(), "[0].function.name"),
        (function(name=""), "[0].function.name"),
        (function(name="f" * 65), "[0].function.name"),
        (function(name="f", description=3), "[0].function.description"),
        (function(name="f", parameters=[]), "[0].function.parameters"),
        (function(name="f", parameters={"$defs": 3}), "[0].function.parameters.$defs"),
        (function(name="f", description="d" * MAX_TOOL_BYTES), "[0] is larger"),
    ],
)
def test_a_fault_names_its_field(tools: object, named: str) -> None:
    faults = tool_faults(tools)
    assert len(faults) == 1
    assert named in faults[0]


def test_the_size_of_a_definition_is_that_of_its_utf8() -> None:
    description = "ä" * (MAX_TOOL_BYTES // 2 - 200)
    assert tool_faults(function(name="f", description=description)) == []
    assert "[0] is larger" in tool_faults(function(name="f", description=description + "ä" * 200))[0]


def test_a_call_is_a_line_of_json_whatever_its_name() -> None:
    assert call_line(ToolCall('a b"c', "{}")) == r'{"name": "a b\"c", "arguments": {}}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 50_000, "is nested too deeply"),
        ('[{"a":' * 50_000, "is nested too deeply"),
        ('[{"type": "function", "function": {"name": "a", "name": "b"}}]', 'has the key "name" twice in one object'),
        ('[{"a": NaN}]', "is not valid JSON: NaN is no number of JSON"),
        ('[{"a": 1e999}]', "is not valid JSON: 1e999 is no number of JSON"),
        ("{", "is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)
def test_a_file_that_cannot_be_read_as_json_is_refused_with_the_reason(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "tools.json"
    path.write_text(content)
    with pytest.raises(ValidationError) as refusal:
        generation_arguments.tools(Namespace(tools=str(path)))
    assert refusal.value.message == f"--tools: '{path}' {said}"
    with pytest.raises(ValidationError) as refusal:
        generation_arguments.grammar(Namespace(json_schema=str(path)))
    assert refusal.value.message == f"--json-schema: '{path}' {said}"
    with pytest.raises(ValidationError) as refusal:
        hosts_of_file("--hosts", str(path))
    assert refusal.value.message == f"--hosts: '{path}' {said}"
    with pytest.raises(ValidationError) as refusal:
        read_servers([str(path)], Output(as_json=False, color=False))
    assert refusal.value.message == f"--mcp: '{path}' {said}"


def test_a_schema_that_names_a_key_twice_is_not_measured_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object", "properties": {"a": {}, "a": {}}}')
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    done = Machine(tmp_path, capsys)("eval", "demo", str(tmp_path), "--schema", str(tmp_path / "schema.json"))
    assert (done.status, 'has the key "a" twice in one object' in done.err) == (1, True), done


def test_a_device_is_no_file_of_hosts() -> None:
    with pytest.raises(ValidationError, match="'/dev/zero' is no regular file"):
        hosts_of_file("--hostfile", "/dev/zero")


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"type": "http", "command": "x"}, "type is http, which needs a url and no command"),
        ({"type": "streamableHttp", "command": "x"}, "type is streamableHttp, which needs a url and no command"),
        ({"type": "stdio", "url": "http://localhost/mcp"}, "type is stdio, which needs a command and no url"),
        ({"url": "http:///mcp"}, "url must begin with http:// or https:// and name a host"),
    ],
)
def test_a_tool_server_that_contradicts_itself_is_refused(tmp_path: Path, entry: object, fault: str) -> None:
    path = tmp_path / "servers.json"
    path.write_text(json.dumps({"mcpServers": {"a": entry}}))
    with pytest.raises(ValidationError) as refusal:
        read_servers([str(path)], Output(as_json=False, color=False))
    assert refusal.value.message == f"--mcp: '{path}': mcpServers.a.{fault}"


@pytest.mark.parametrize("kind", [{}, {"type": "stdio"}])
def test_a_tool_server_with_a_type_that_fits_is_read(tmp_path: Path, kind: dict[str, str]) -> None:
    path = tmp_path / "servers.json"
    entries = {
        "a": {"command": "x", **kind},
        "b": {"url": "http://localhost/mcp", **({"type": "http"} if kind else {})},
    }
    path.write_text(json.dumps({"mcpServers": entries}))
    servers = read_servers([str(path)], Output(as_json=False, color=False))
    assert [(each.command, each.address) for each in servers] == [(("x",), None), ((), "http://localhost/mcp")]
