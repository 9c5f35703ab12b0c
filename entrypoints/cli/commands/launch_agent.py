"""``mlxk launch [AGENT]``: starts a coding agent on a model of this machine, or shows how to set a program up."""

import argparse
import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.application.policy import estimate_memory, require_chat, require_text_model
from mlxk.domain.errors import ExecutionError, InterruptedRunError, MlxkError, ModelNotFoundError, UsageError
from mlxk.domain.models.memory import MemoryFit
from mlxk.domain.models.model import Capability, ModelDetails, served_id
from mlxk.entrypoints.cli.agent_processes import AgentRunner, new_log, own_server
from mlxk.entrypoints.cli.agents import AGENTS, SMALLEST_CONTEXT, Agent, Connection
from mlxk.entrypoints.cli.command import CommandContext, complete_models
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.references import model_reference
from mlxk.entrypoints.cli.render.formatting import decimal_size
from mlxk.entrypoints.cli.render.layout import table

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the agent, its model, and what is passed on."""
    parser.add_argument("agent", nargs="?", choices=AGENTS, metavar="AGENT", help=f"one of {', '.join(AGENTS)}")
    parser.add_argument("words", nargs="*", default=[], metavar="ARGS", help="for the agent; its flags stand after --")
    model = parser.add_argument(
        "-m", "--model", metavar="MODEL", type=model_reference, help="the model; asked for on a terminal"
    )
    complete_models(model)
    parser.add_argument(
        "--print", dest="shown", action="store_true", help="show how to set it up by hand, and start nothing"
    )


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """List the agents, show how to set one up, or run one and return its exit status."""
    if arguments.agent is None:
        if arguments.model or arguments.shown:
            raise UsageError("which agent?", hint=f"Name one: {', '.join(AGENTS)}")
        return _list(output)
    agent = AGENTS[arguments.agent]
    if arguments.shown:
        return _show(agent, arguments, context, output)
    if output.as_json:
        raise UsageError(
            "--json goes with the list of agents, or with --print", hint=f"Try: mlxk launch {agent.name} --print --json"
        )
    if not agent.started:
        raise UsageError(
            f"{agent.title} is not started by this program", hint=f"Set it up: mlxk launch {agent.name} --print"
        )
    return _run(agent, arguments, context, output)


def _list(output: Output) -> int:
    """List the agents that are started, then the others."""
    if output.as_json:
        output.document("launch", {"agents": [_agent_json(each) for each in AGENTS.values()], "recipe": None})
        return DONE
    started = [each for each in AGENTS.values() if each.started]
    rows = [[each.name, each.title, _path(each) or f"not installed: {each.install}"] for each in started]
    output.table(table(["Agent", "Name", "Program"], rows, output.width, last=60))
    others = ", ".join(each.name for each in AGENTS.values() if not each.started)
    output.line(f"\nStart one: mlxk launch {started[0].name}")
    output.line(f"By hand, with --print: {others}")
    return DONE


def _agent_json(agent: Agent) -> dict[str, object]:
    return {
        "name": agent.name,
        "title": agent.title,
        "program": agent.program,
        "path": _path(agent),
        "install": agent.install,
        "started": agent.started,
    }


def _path(agent: Agent) -> str | None:
    return None if agent.program is None else shutil.which(agent.program)


def _show(agent: Agent, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print what is typed and written to set an agent up by hand."""
    connection, reference = Connection(), "MODEL"
    if arguments.model:
        details = _named(arguments.model, context.build(context.settings), output)
        connection, reference = _connection(details, connection.address, connection.key), arguments.model
    if output.as_json:
        files = [{"path": each.path, "text": each.text} for each in agent.written(connection)]
        recipe = {
            "model": connection.model,
            "url": f"{connection.address}/v1",
            "environment": agent.environment(connection),
            "commands": agent.commands(connection),
            "files": files,
            "remark": connection.fill(agent.remark) or None,
        }
        output.document("launch", {"agents": [_agent_json(agent)], "recipe": recipe})
        return DONE
    output.text(_recipe(agent, connection, reference))
    return DONE


def _recipe(agent: Agent, connection: Connection, reference: str) -> str:
    """Return the lines to copy; everything else is a comment of the shell."""
    parts = [f"# {agent.title}\n" if _path(agent) else f"# {agent.title}, which is not here: {agent.install}\n"]
    parts.append(f"# The server, in a terminal of its own:\nmlxk serve --model {shlex.quote(reference)}\n")
    parts += [f"# In {each.path}:\n{each.text}" for each in agent.written(connection)]
    lines = agent.commands(connection)
    if lines:
        parts.append("# In the terminal of the agent:\n" + "".join(f"{line}\n" for line in lines))
    if agent.remark:
        parts.append(f"# {connection.fill(agent.remark)}\n")
    return "\n".join(parts)


def _run(agent: Agent, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Run an agent on a server of its own."""
    path = _path(agent)
    if path is None:
        raise ExecutionError(
            f"{agent.title} is not installed: there is no '{agent.program}'", hint=f"Install it: {agent.install}"
        )
    container = context.build(context.settings)
    if arguments.model:
        launch = _Launch(agent, path, arguments.words, arguments.model, _named(arguments.model, container, output))
    else:
        details = _asked_for(agent, container, output)
        launch = _Launch(agent, path, arguments.words, details.description.handle.name, details)
    log = new_log(context.settings.temporary_folder)
    worth_reading = False
    try:
        status = launch.run(log, output)
        worth_reading = status != DONE
    except MlxkError as error:
        worth_reading = not isinstance(error, InterruptedRunError)
        raise
    finally:
        if worth_reading and os.path.getsize(log):
            output.note(f"The server's log: {log}")
        else:
            os.unlink(log)
    return status


@attrs.frozen
class _Launch:
    """An agent and a model, both of which are here."""

    agent: Agent
    path: str
    words: Sequence[str]
    reference: str
    details: ModelDetails

    def run(self, log: str, output: Output) -> int:
        """Run the agent on a server of its own, and return its exit status."""
        runner = AgentRunner()
        with contextlib.ExitStack() as stack:
            stack.enter_context(runner.signals_taken())
            with Spinner(output, f"Loading {self.details.description.handle.label}"):
                server = stack.enter_context(own_server(self.reference, log))
            connection = _connection(self.details, server.address, server.key)
            command = [self.path, *self.agent.arguments(connection), *self.words]
            return runner.run(command, self.agent.environment(connection))


def _connection(details: ModelDetails, address: str, key: str) -> Connection:
    description = details.description
    context = description.context_length or SMALLEST_CONTEXT
    return Connection(address=address, key=key, model=served_id(description.handle), context=context)


def _named(reference: str, container: "Container", output: Output) -> ModelDetails:
    """Return the model that the user named, and say what speaks against it.

    Raises:
        MlxkError: There is no such model, or it cannot hold a conversation here.
    """
    details: ModelDetails = container.use_cases.show_model()(reference)
    require_text_model(details.description)
    require_chat(details.description)
    for reason in () if output.as_json else _against(details, container):
        output.note(f"[{details.description.handle.label} {reason}]")
    return details


def _against(details: ModelDetails, container: "Container") -> list[str]:
    """Return what makes a model a bad one for an agent."""
    description = details.description
    reasons = []
    if description.context_length is not None and description.context_length < SMALLEST_CONTEXT:
        reasons.append(
            f"has a context window of {description.context_length:,} tokens; agents need at least {SMALLEST_CONTEXT:,}"
        )
    if not details.supports_tools:
        reasons.append("has no tools, so that an agent can only talk")
    if estimate_memory(description, container.adapters.memory_probe()).fit is MemoryFit.EXCEEDS:
        reasons.append("exceeds this machine's memory budget")
    return reasons


def _asked_for(agent: Agent, container: "Container", output: Output) -> ModelDetails:
    """Have the user choose a model on a terminal.

    Raises:
        UsageError: There is no terminal, or nothing was chosen.
        ModelNotFoundError: No model of this machine will do.
    """
    with Spinner(output, "Reading the models"):
        found = _suitable(container)
    if not found:
        raise ModelNotFoundError(
            f"no model of this machine has tools and a context window of {SMALLEST_CONTEXT:,} tokens",
            hint=f"Look for one: mlxk search qwen coder --mlx. Or name any: mlxk launch {agent.name} --model MODEL",
        )
    names = [each.description.handle.label for each in found]
    if not (output.shows_progress and sys.stdin.isatty()):
        raise UsageError(
            "which model? There is no terminal to ask on",
            hint=f"Name one: mlxk launch {agent.name} --model {names[0]}",
            matches=tuple(names),
        )
    rows = [_row(number, each, container) for number, each in enumerate(found, 1)]
    output.note(table(["", "Model", "Size", "Context", "Memory"], rows, output.width).rstrip())
    return found[_number(len(found), names, output) - 1]


def _suitable(container: "Container") -> list[ModelDetails]:
    """Return the models of this machine that an agent can use."""
    found = []
    for handle in container.use_cases.resolve_model().matching():
        with contextlib.suppress(MlxkError):  # removed a moment ago
            details = container.use_cases.describe_model().details(handle)
            described = details.description
            large = described.context_length is None or described.context_length >= SMALLEST_CONTEXT
            if described.runnable and described.can(Capability.CHAT) and large and details.supports_tools:
                found.append(details)
    return found


def _row(number: int, details: ModelDetails, container: "Container") -> list[str]:
    described = details.description
    context = "unknown" if described.context_length is None else f"{described.context_length:,}"
    memory = estimate_memory(described, container.adapters.memory_probe()).fit.value
    return [str(number), described.handle.label, decimal_size(described.size_bytes), context, memory]


def _number(last: int, names: Sequence[str], output: Output) -> int:
    """Ask until the answer is the number or the name of a model; without one, the only model is meant."""
    while True:
        output.prompt(f"Which model? [1{'' if last == 1 else f'-{last}'}]: ")
        line = sys.stdin.readline()
        answer = line.strip()
        if not line:
            output.note("")
            raise UsageError("no model was chosen", hint="Choose a number, or name one with --model.")
        if answer in names:
            return names.index(answer) + 1
        if answer.isdecimal() and 0 < int(answer) <= last:
            return int(answer)
        if not answer and last == 1:
            return 1
        output.note(f"Write a number from 1 to {last}, or a name of the list.")
