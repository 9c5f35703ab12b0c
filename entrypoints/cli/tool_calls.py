"""MCP tools on the command line: reads the files that name tool servers, asks for consent, executes calls."""

import argparse
import contextlib
import json
import re
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mlxk.application.ports.other_processes import ServerTool, ToolResult, ToolServer, ToolServers
from mlxk.application.ports.system import Confirmation
from mlxk.domain.errors import ExecutionError, ValidationError
from mlxk.domain.generation.conversation import MAX_NAME, MAX_TOOL_BYTES, Message, Role, ToolCall
from mlxk.domain.text import is_valid_unicode
from mlxk.entrypoints.cli.command_line_parser import closest, did_you_mean
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render.formatting import counted
from mlxk.entrypoints.cli.text_files import read_json
from mlxk.entrypoints.setting_kinds import is_web_address
from mlxk.entrypoints.settings import variable

MAX_ROUNDS = 16
"""Rounds of tool calls for one prompt, at most."""

MOST_SHOWN = 4000
"""Characters of a call's arguments that the question for consent shows."""

REFUSED = "The user did not allow this call."
"""Result, for the model, of a call without consent."""

STOPPED = "This call was stopped."
"""Result, for the model, of an interrupted call and of those after it."""

MALFORMED = "The arguments must be a JSON object."
"""Result, for the model, of a call whose arguments are not a JSON object."""

_HINT = 'A file looks like {"mcpServers": {"NAME": {"command": "npx", "args": ["…"], "env": {}}}}, or has a "url".'
_KNOWN = frozenset({"command", "args", "env", "cwd", "url", "headers", "type", "disabled"})
_TRANSPORTS = frozenset({"stdio", "http", "streamable-http", "streamableHttp", "streamable_http"})
_REFERENCE = re.compile(r"\$\{(?:env:)?(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}", re.ASCII)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER = re.compile(r"(?:[!-~](?:[\t -~]*[!-~])?)?")
"""Matches a valid value of a header: printable ASCII without white space at its ends."""
_INVALID_IN_NAME = re.compile(r"[^A-Za-z0-9_-]")
"""Matches a character that a function name must not have."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of tools."""
    group = parser.add_argument_group("tools of servers", "Each call is asked for, unless its tool is allowed by name.")
    group.add_argument(
        "--mcp", action="append", default=[], metavar="FILE", help="MCP servers: JSON with mcpServers; repeatable"
    )
    group.add_argument(
        "--allow-tool", action="append", default=[], metavar="NAME", help="call this tool without asking; repeatable"
    )


def read_servers(paths: Sequence[str], output: Output) -> list[ToolServer]:
    """Return the tool servers of files; notes name disabled servers and fields without effect.

    Raises:
        StorageError, ValidationError: A file cannot be read or has errors; names the field.
    """
    servers: list[ToolServer] = []
    for path in paths:
        document = read_json(path, "--mcp", _HINT)
        entries = document.get("mcpServers", document.get("servers")) if isinstance(document, dict) else None
        if not isinstance(entries, dict) or not entries:
            raise ValidationError(f"--mcp: '{path}' has no mcpServers", hint=_HINT)
        for name, entry in entries.items():
            place = f"--mcp: '{path}': mcpServers.{name}"
            if not isinstance(entry, dict):
                raise ValidationError(f"{place} must be an object", hint=_HINT)
            if entry.get("disabled") is True:
                output.note(f"[the tool server '{name}' is disabled in its file]")
                continue
            if name in [each.name for each in servers]:
                raise ValidationError(f"{place} is the second server of this name", hint="Give one of them another.")
            if ignored := sorted(set(entry) - _KNOWN):
                output.note(f"[{', '.join(ignored)} of the tool server '{name}' has no effect]")
            servers.append(_server(name, entry, place))
    return servers


def _server(name: str, entry: Mapping[str, Any], place: str) -> ToolServer:
    kind = entry.get("type", "stdio" if "command" in entry else "http")
    if not isinstance(kind, str) or kind not in _TRANSPORTS:
        raise ValidationError(f"{place}.type must be stdio or http (got {json.dumps(kind)})", hint=_HINT)
    if ("command" in entry) == ("url" in entry):
        raise ValidationError(f"{place} must have either a command or a url", hint=_HINT)
    needed, other = ("command", "url") if kind == "stdio" else ("url", "command")
    if other in entry:
        raise ValidationError(f"{place}.type is {kind}, which needs a {needed} and no {other}", hint=_HINT)

    def text(field: str) -> str | None:
        value = entry.get(field)
        if value is not None and (not isinstance(value, str) or not value):
            raise ValidationError(f"{place}.{field} must be a text", hint=_HINT)
        return None if value is None else _expanded(value, f"{place}.{field}")

    def texts(field: str) -> dict[str, str]:
        value = entry.get(field) or {}
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            raise ValidationError(f"{place}.{field} must be an object of texts", hint=_HINT)
        return {key: _expanded(each, f"{place}.{field}.{key}") for key, each in value.items()}

    words = entry.get("args") or []
    if not isinstance(words, list) or not all(isinstance(each, str) for each in words):
        raise ValidationError(f"{place}.args must be a list of texts", hint=_HINT)
    program, address = text("command"), text("url")
    if address is not None and not (address.startswith(("http://", "https://")) and is_web_address(address)):
        raise ValidationError(f"{place}.url must begin with http:// or https:// and name a host", hint=_HINT)
    command = () if program is None else (program, *(_expanded(each, f"{place}.args") for each in words))
    return ToolServer(name, command, texts("env"), text("cwd"), address, _headers(texts("headers"), f"{place}.headers"))


def _headers(headers: dict[str, str], place: str) -> dict[str, str]:
    """Return headers after a check of their names and values.

    Raises:
        ValidationError: One is invalid; the message does not show its value, which may be a secret.
    """
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValidationError(f"{place}: {json.dumps(name)} cannot be the name of a header", hint=_HINT)
        if not _HEADER.fullmatch(value):
            raise ValidationError(
                f"{place}.{name} must be printable ASCII, without white space at its ends",
                hint="The value of a variable may end with a line break.",
            )
    return headers


def _expanded(text: str, place: str) -> str:
    """Replace references to environment variables: ``${NAME}``, ``${env:NAME}`` or ``${NAME:-default}``.

    Raises:
        ValidationError: A variable without a default is not set, or the text has a NUL or is not valid Unicode.
    """
    if "\0" in text or not is_valid_unicode(text):
        raise ValidationError(f"{place} must be valid Unicode, without the character NUL")

    def value_of(reference: re.Match[str]) -> str:
        value = variable(reference["name"]) or reference["default"]
        if value is None:
            raise ValidationError(f"{place} names the variable {reference['name']}, which is not set")
        return value

    return _REFERENCE.sub(value_of, text)


@attrs.define
class OfferedTools:
    """The tools that a model is offered; executes their calls."""

    servers: ToolServers
    tools: Mapping[str, ServerTool]
    """By their names for the model."""
    definitions: tuple[str, ...]
    """All function definitions for the model, in OpenAI's form, as JSON text; those of ``--tools`` come first."""
    functions: frozenset[str]
    """Names of the functions of ``--tools``, whose calls are printed and not executed."""
    allowed: frozenset[str]
    """Names of tools that are called without asking."""
    confirmation: Confirmation
    output: Output
    record: list[dict[str, object]] = attrs.field(factory=list)
    """All calls and their results, for the JSON document."""

    def answers(self, calls: Sequence[ToolCall]) -> bool:
        """Whether ``result`` answers all the calls; it also answers calls of unknown functions, with an error."""
        return bool(calls) and not any(call.name in self.functions for call in calls)

    def result(self, call: ToolCall) -> str:
        """Execute a call after the user's consent, and return its result for the model."""
        tool = self.tools.get(call.name)
        if tool is None:
            self.output.note(f"[{call.name}: there is no such tool]")
            unknown = ToolResult(f"There is no tool {call.name}. The tools are: {', '.join(self.tools)}", failed=True)
            return self._recorded(call, None, unknown, called=False)
        try:
            arguments = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            self.output.note(f"[{call.name}: the model's arguments are no JSON object, so that it was not called]")
            return self._recorded(call, tool, ToolResult(MALFORMED, failed=True), called=False)
        if not self._is_allowed(call, tool, arguments):
            return self._recorded(call, tool, ToolResult(REFUSED, failed=True), called=False)
        try:
            with Spinner(self.output, f"Calling {call.name}"):
                result = self.servers.call(tool, arguments)
        except ExecutionError as error:
            result = ToolResult(error.message, failed=True)
        for content in result.left_out:
            self.output.note(f"[{call.name}: the model does not get {content}]")
        summary = f": {' '.join(result.text.split())[:200]}" if result.failed else f", {len(result.text)} characters"
        self.output.note(f"[{call.name} of {tool.server}{' failed' if result.failed else ''}{summary}]")
        return self._recorded(call, tool, result, called=True)

    def _recorded(self, call: ToolCall, tool: ServerTool | None, result: ToolResult, *, called: bool) -> str:
        """Add a call to the record, and return its result for the model."""
        left_out = "".join(f"\n[not shown: {each}]" for each in result.left_out)
        text = ("Error: " if result.failed else "") + (result.text or "(no text)") + left_out
        self.record.append(
            {
                "name": call.name,
                "server": None if tool is None else tool.server,
                "arguments": call.arguments,
                "called": called,
                "failed": result.failed,
                "result": text,
            }
        )
        return text

    def _is_allowed(self, call: ToolCall, tool: ServerTool, arguments: Mapping[str, Any]) -> bool:
        """Whether a call is allowed, by ``--allow-tool`` or by the user's answer."""
        if call.name in self.allowed:
            return True
        text = json.dumps(arguments, indent=2, ensure_ascii=False)
        facts = [
            f"The model calls {call.name} of the tool server '{tool.server}' with",
            *text[:MOST_SHOWN].split("\n"),
        ]
        if len(text) > MOST_SHOWN:
            facts.append(f"and {len(text) - MOST_SHOWN} further characters")
        with contextlib.suppress(termios.error, OSError, ValueError):
            termios.tcflush(sys.stdin, termios.TCIFLUSH)  # keys typed before the question must not answer it
        agreed = self.confirmation.ask(tuple(facts), "Call it?", default=False)
        if agreed is None:
            self.output.note(f"[{call.name} was not called: --allow-tool {call.name} allows it]")
        elif not agreed:
            self.output.note(f"[{call.name} was not called]")
        return bool(agreed)


@attrs.define
class ToolRounds:
    """The completions of one prompt: while the model calls tools, each round adds their results."""

    toolbox: OfferedTools | None
    """None without tools."""
    messages: list[Message]
    """The conversation; ``add`` appends completions and results of calls."""
    rounds: int = 0

    def add(self, text: str, reasoning: str, calls: Sequence[ToolCall]) -> bool:
        """Append a completion, execute its calls, and return whether there are results for another completion.

        Raises:
            KeyboardInterrupt: The user stopped a call; it and those after it have ``STOPPED`` as their result.
        """
        calls = _with_ids(calls, len(self.messages))
        self.messages.append(Message(Role.ASSISTANT, text, calls, reasoning=reasoning))
        if self.toolbox is None or not self.toolbox.answers(calls):
            return False
        if self.rounds == MAX_ROUNDS:
            self.toolbox.output.note(f"[stopped: tools were called {counted(MAX_ROUNDS, 'time')} for one prompt]")
            return False
        self.rounds += 1
        results: list[str] = []
        try:
            for call in calls:
                results.append(self.toolbox.result(call))
        finally:
            results += [f"Error: {STOPPED}"] * (len(calls) - len(results))
            self.messages += (
                Message(Role.TOOL, result, tool_call_id=call.id) for call, result in zip(calls, results, strict=True)
            )
        return True


def _with_ids(calls: Sequence[ToolCall], first: int) -> tuple[ToolCall, ...]:
    """Return calls that all have an id, which results refer to; missing ids are numbered from ``first``."""
    return tuple(
        call if call.id else attrs.evolve(call, id=f"call_{number}") for number, call in enumerate(calls, first)
    )


@contextlib.contextmanager
def toolbox(
    arguments: argparse.Namespace,
    definitions: tuple[str, ...],
    servers: ToolServers,
    confirmation: Confirmation,
    output: Output,
) -> Iterator[OfferedTools]:
    """Start the servers of ``--mcp``; they end with the block.

    Args:
        arguments: The command line.
        definitions: The function definitions of ``--tools``.
        servers: Starts the servers.
        confirmation: Asks the user.
        output: Where to print notes.

    Raises:
        MlxkError: A file has errors, a server cannot be started, or ``--allow-tool`` names an unknown tool.
    """
    configured = read_servers(arguments.mcp, output)
    try:
        with Spinner(output, "Starting the tool servers"):
            started = servers.start(configured)
        taken = {str(json.loads(each).get("function", {}).get("name")) for each in definitions}
        tools = _named(started, taken)
        allowed = _allowed(arguments.allow_tool, tools)
        offered = tuple(_definition(name, tool, output) for name, tool in tools.items())
        yield OfferedTools(servers, tools, (*definitions, *offered), frozenset(taken), allowed, confirmation, output)
    finally:
        servers.close()


def _named(found: Sequence[ServerTool], taken: set[str]) -> dict[str, ServerTool]:
    """Return tools by unique, valid function names; a name that several tools have is prefixed with the server's."""
    plain = [_INVALID_IN_NAME.sub("_", tool.name)[:MAX_NAME] for tool in found]
    named: dict[str, ServerTool] = {}
    for name, tool in zip(plain, found, strict=True):
        if plain.count(name) > 1 or name in taken or not name:
            name = f"{_INVALID_IN_NAME.sub('_', tool.server)}__{name}"[:MAX_NAME]
        number, unique = 2, name
        while unique in named or unique in taken:
            unique, number = f"{name[: MAX_NAME - 4]}_{number}", number + 1
        named[unique] = tool
    return named


def _allowed(names: Sequence[str], tools: Mapping[str, ServerTool]) -> frozenset[str]:
    for name in names:
        if name not in tools:
            near = did_you_mean(closest(name, tools))
            available = f"The tools are: {', '.join(tools) or 'none'}"
            raise ValidationError(f"--allow-tool: there is no tool '{name}'", hint=f"{near} {available}".lstrip())
    return frozenset(names)


def _definition(name: str, tool: ServerTool, output: Output) -> str:
    """Return a tool's definition in OpenAI's form, as JSON text; a note says when its description was cut.

    Raises:
        ExecutionError: It is too long even so.
    """
    function = {"name": name, "description": tool.description, "parameters": dict(tool.parameters)}
    text = json.dumps({"type": "function", "function": function})
    if len(text) <= MAX_TOOL_BYTES:
        return text
    output.note(f"[the description of {name} is too long, and is cut]")
    function["description"] = tool.description[:1000]
    text = json.dumps({"type": "function", "function": function})
    if len(text) > MAX_TOOL_BYTES:
        raise ExecutionError(f"the tool '{name}' of '{tool.server}' is described in more than {MAX_TOOL_BYTES} bytes")
    return text
