"""``mlxk launch [AGENT]``: starts a coding agent on a local model, or prints how to set an agent up by hand."""

import argparse
import contextlib
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs

from mlxk.application.policy import estimate_memory, require_chat, require_text_model
from mlxk.domain.errors import ExecutionError, InterruptedRunError, MlxkError, ModelNotFoundError, UsageError
from mlxk.domain.models.footprint import MemoryFit
from mlxk.domain.models.model import Capability, ModelDetails, ModelHandle, served_id
from mlxk.domain.models.reference import only_match
from mlxk.entrypoints import server_log
from mlxk.entrypoints.cli.agents import AGENTS, SMALLEST_CONTEXT, Agent, Connection
from mlxk.entrypoints.cli.command import (
    CommandContext,
    add_server_argument,
    complete_models,
    computing_settings,
    model_reference,
)
from mlxk.entrypoints.cli.output import DONE, Output, choose
from mlxk.entrypoints.cli.processes import (
    ForegroundRunner,
    ForeignModel,
    Server,
    bypassing_proxies,
    own_server,
    served_models,
)
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render.formatting import decimal_size, table
from mlxk.entrypoints.settings import inherited

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the agent, its arguments, its model and its server."""
    parser.add_argument("agent", nargs="?", choices=AGENTS, metavar="AGENT", help=f"one of {', '.join(AGENTS)}")
    words = parser.add_argument("words", nargs="*", default=[], metavar="ARGS", help="for it; its flags stand after --")
    words.completer = _complete_nothing  # type: ignore[attr-defined]  # argcomplete's interface
    model = parser.add_argument(
        "-m", "--model", metavar="MODEL", type=model_reference, help="the model; asked for on a terminal"
    )
    complete_models(model)
    parser.add_argument(
        "--url", metavar="URL", help="use this running server, with the key of MLXK2_API_KEY, instead of one of its own"
    )
    add_server_argument(parser)
    parser.add_argument(
        "--print", dest="shown", action="store_true", help="show how to set it up by hand, and start nothing"
    )


def _complete_nothing(prefix: str, **_context: object) -> list[str]:
    """Complete nothing, or the shell would offer file names beside the names of agents."""
    return []


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """List the agents, show how to set one up, or run one and return its exit status."""
    if arguments.agent is None:
        if arguments.model or arguments.url or arguments.shown:
            raise UsageError("which agent?", hint=f"Name one: {', '.join(AGENTS)}")
        return _list(output)
    agent = AGENTS[arguments.agent]
    if arguments.shown:
        return _show_recipe(agent, arguments, context, output)
    if output.as_json:
        raise UsageError(
            "--json goes with the list of agents, or with --print", hint=f"Try: mlxk launch {agent.name} --print --json"
        )
    if not agent.started:
        raise UsageError(
            f"{agent.title} is not started by this program", hint=f"Set it up: mlxk launch {agent.name} --print"
        )
    path = _program_path(agent)
    if path is None:
        raise ExecutionError(
            f"{agent.title} is not installed: there is no '{agent.program}'", hint=f"Install it: {agent.install}"
        )
    program = _Program(agent, path, arguments.words)
    key = context.settings.serve.api_key or Connection().key
    if arguments.url is not None:
        server = Server(_address(arguments.url), key)
        with Spinner(output, "Asking the server"):
            offered = [_remote_candidate(each) for each in served_models(server)]
        return ForegroundRunner().run(*program.command(_choose(offered, arguments, output).connection(server)))
    settings = computing_settings(arguments, context.settings)
    container = context.build(settings)
    if arguments.model:
        chosen = _named_candidate(arguments.model, container, output)
    else:
        with Spinner(output, "Reading the models"):
            offered = _local_candidates(container)
        chosen = _choose(offered, arguments, output)
    running = _running_server_with(chosen, key, container) if settings.use_server else None
    if running is None:
        return _run_on_own_server(program, chosen, settings.state_folder, output)
    output.note(
        f"[the server at {running.address} has {chosen.label} in memory and is used; --no-server starts another]"
    )
    return ForegroundRunner().run(*program.command(chosen.connection(running)))


def _list(output: Output) -> int:
    """List the agents that this program starts, then the others."""
    if output.as_json:
        output.document("launch", {"agents": [_agent_json(each) for each in AGENTS.values()], "recipe": None})
        return DONE
    started = [each for each in AGENTS.values() if each.started]
    rows = [[each.name, each.title, _program_path(each) or "not installed"] for each in started]
    output.table(table(["Agent", "Name", "Program"], rows, output.width, last=60))
    absent = [each for each in started if _program_path(each) is None]
    if absent:
        output.line("\nInstall what is not here:")
    for each in absent:
        output.line(f"  {each.install}")
    output.line(f"\nStart one: mlxk launch {started[0].name}")
    others = ", ".join(each.name for each in AGENTS.values() if not each.started)
    output.line(textwrap.fill(f"By hand, with --print: {others}", output.width or 80, break_on_hyphens=False))
    return DONE


def _agent_json(agent: Agent) -> dict[str, object]:
    return {
        "name": agent.name,
        "title": agent.title,
        "program": agent.program,
        "path": _program_path(agent),
        "install": agent.install,
        "started": agent.started,
    }


def _program_path(agent: Agent) -> str | None:
    return None if agent.program is None else shutil.which(agent.program)


def _show_recipe(agent: Agent, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print the commands and files that set an agent up by hand."""
    connection = Connection()
    serve = f"mlxk serve --model {shlex.quote(arguments.model or connection.model)}\n"
    if arguments.url is not None:
        connection = attrs.evolve(connection, address=_address(arguments.url), model=arguments.model or "MODEL")
        serve = ""
    elif arguments.model:
        chosen = _named_candidate(arguments.model, context.build(context.settings), output)
        connection = chosen.connection(Server(connection.address, connection.key))
    if output.as_json:
        recipe = {
            "model": connection.model,
            "url": f"{connection.address}/v1",
            "environment": agent.environment(connection),
            "commands": agent.commands(connection),
            "files": [{"path": each.path, "text": each.text} for each in agent.written(connection)],
            "remark": connection.fill(agent.remark) or None,
        }
        output.document("launch", {"agents": [_agent_json(agent)], "recipe": recipe})
        return DONE
    output.text(_recipe(agent, connection, serve))
    return DONE


def _recipe(agent: Agent, connection: Connection, serve: str) -> str:
    """Return the lines to copy; all other lines are shell comments."""
    parts = [f"# {agent.title}\n" if _program_path(agent) else f"# {agent.title}, which is not here: {agent.install}\n"]
    parts += [f"# The server, in a terminal of its own:\n{serve}"] if serve else []
    parts += [f"# In {each.path}:\n{each.text}" for each in agent.written(connection)]
    lines = agent.commands(connection)
    if lines:
        parts.append("# In the terminal of the agent:\n" + "".join(f"{line}\n" for line in lines))
    if agent.remark:
        parts.append(f"# {connection.fill(agent.remark)}\n")
    return "\n".join(parts)


def _address(url: str) -> str:
    """Return the address of a server without ``/v1``.

    Raises:
        UsageError: It is not an HTTP address, or has a user, a query or a fragment.
    """
    address = url.rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(address)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and parts.username is None
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or any(each.isspace() or not each.isprintable() for each in address):
        raise UsageError(f"--url: '{url}' is not an address", hint="For example: --url http://127.0.0.1:8000")
    return address


@attrs.frozen
class _Program:
    """An installed agent, and the user's arguments for it."""

    agent: Agent
    path: str
    words: Sequence[str]

    def command(self, connection: Connection) -> tuple[list[str], dict[str, str]]:
        """Return its command line and its environment."""
        environment = bypassing_proxies(inherited(self.agent.environment(connection)))
        return [self.path, *self.agent.arguments(connection), *self.words], environment


def _run_on_own_server(program: _Program, chosen: "_Candidate", state_folder: str, output: Output) -> int:
    """Run an agent on a server started for it; when either fails, print the path of the server's log."""
    log = server_log.make(state_folder, f"launch-{program.agent.name}")
    log_matters = False
    try:
        runner = ForegroundRunner()
        with contextlib.ExitStack() as stack:
            stack.enter_context(runner.signals_taken())
            with Spinner(output, f"Loading {chosen.label}"):
                server = stack.enter_context(own_server(chosen.reference, log))
            status = runner.run(*program.command(chosen.connection(server)))
            if server.ended():
                output.note("[the server ended before the agent did]")
            log_matters = status != DONE or server.ended()
    except MlxkError as error:
        log_matters = not isinstance(error, InterruptedRunError)
        raise
    finally:
        if log_matters:
            output.note(f"The server's log: {log}")
    return status


@attrs.frozen(kw_only=True)
class _Candidate:
    """A model that an agent may use."""

    label: str
    """Its name in messages."""
    reference: str
    """The ``--model`` of a server started for the agent."""
    directory: str = ""
    """Its directory; empty for a model of another server."""
    id: str
    """Its id in the server's API."""
    size_bytes: int | None
    context: int | None
    tools: bool
    fit: str
    """The memory estimate, as shown in the table: a ``MemoryFit``, ``loaded``, or empty."""

    @property
    def reservations(self) -> list[str]:
        """Why the model suits agents badly; continues a sentence that begins with its name."""
        reasons = []
        if self.context is not None and self.context < SMALLEST_CONTEXT:
            reasons.append(
                f"has a context window of {self.context:,} tokens; agents need at least {SMALLEST_CONTEXT:,}"
            )
        if not self.tools:
            reasons.append("has no tools, so that an agent can only talk")
        return reasons

    def connection(self, server: Server) -> Connection:
        """Return how an agent reaches the model on a server."""
        context = self.context or SMALLEST_CONTEXT
        return Connection(address=server.address, key=server.key, model=self.id, context=context)


def _local_candidate(details: ModelDetails, container: "Container", reference: str | None = None) -> _Candidate:
    """Return a model of this machine; the profile of a user's own name may limit its context window."""
    description, alias = details.description, details.description.handle.alias
    limit = None if alias is None else container.adapters.names.profiles[alias].context_limit
    windows = [each for each in (description.context_length, limit) if each is not None]
    return _Candidate(
        label=alias or description.handle.label,
        reference=reference or alias or description.handle.name,
        directory=description.handle.directory,
        id=alias or served_id(description.handle),
        size_bytes=description.size_bytes,
        context=min(windows, default=None),
        tools=details.supports_tools,
        fit=estimate_memory(description, container.adapters.memory_probe()).fit.value,
    )


def _running_server_with(chosen: _Candidate, key: str, container: "Container") -> Server | None:
    """Return a running server of this user that has the model in memory and accepts the key; None without one."""
    for each in container.adapters.running_servers().servers():
        if chosen.directory in {model.handle.directory for model in each.models}:
            server = Server(each.url, key)
            with contextlib.suppress(MlxkError):
                if chosen.id in {model.id for model in served_models(server)}:
                    return server
    return None


def _local_candidates(container: "Container") -> list[_Candidate]:
    """Return the runnable chat models of this machine, those under the user's own names first."""
    candidates, resolve = [], container.use_cases.resolve_model()
    models: tuple[str | ModelHandle, ...] = (*container.adapters.names.profiles, *resolve.matching())
    for each in models:
        with contextlib.suppress(MlxkError):  # just removed, or a user's own name for a model that is not here
            handle = resolve(each) if isinstance(each, str) else each
            details = container.use_cases.describe_model().details(handle)
            if details.description.runnable and details.description.can(Capability.CHAT):
                candidates.append(_local_candidate(details, container))
    return candidates


def _remote_candidate(model: ForeignModel) -> _Candidate:
    """Return a model of a running server; a server of another program reports fewer facts."""
    return _Candidate(
        label=model.id,
        reference=model.id,
        id=model.id,
        size_bytes=model.size_bytes,
        context=model.context_length,
        tools=model.supports_tools,
        fit="loaded" if model.loaded else "",
    )


def _named_candidate(reference: str, container: "Container", output: Output) -> _Candidate:
    """Return the model that ``--model`` names, and note its reservations.

    Raises:
        MlxkError: There is no such model, or it cannot chat here.
    """
    details = container.use_cases.show_model()(reference)
    require_text_model(details.description)
    require_chat(details.description)
    return _note_reservations(_local_candidate(details, container, reference), output)


def _note_reservations(chosen: _Candidate, output: Output) -> _Candidate:
    reasons = chosen.reservations
    if chosen.fit == MemoryFit.EXCEEDS.value:
        reasons.append("exceeds this machine's memory budget; expect swapping")
    for reason in () if output.as_json else reasons:
        output.note(f"[{chosen.label} {reason}]")
    return chosen


def _choose(offered: Sequence[_Candidate], arguments: argparse.Namespace, output: Output) -> _Candidate:
    """Return the model that ``--model`` names, or let the user choose on a terminal.

    Raises:
        UsageError: There is no terminal, or nothing was chosen.
        ModelNotFoundError: No model suits, or none has this name.
        AmbiguousModelError: The name fits several models.
    """
    if arguments.model is not None:
        by_id = {each.id: each for each in offered}
        match = only_match(arguments.model, by_id)
        if match is None:
            raise ModelNotFoundError(f"the server has no model '{arguments.model}'", matches=tuple(by_id))
        return _note_reservations(by_id[match], output)
    fitting = [each for each in offered if not each.reservations]
    if not fitting:
        raise ModelNotFoundError(
            f"no model here has tools and a context window of {SMALLEST_CONTEXT:,} tokens",
            hint=f"Find one: mlxk recommend --for code. Or name any: mlxk launch {arguments.agent} --model MODEL",
        )
    names = [each.label for each in fitting]
    if not (output.shows_progress and sys.stdin.isatty()):
        raise UsageError(
            "which model? There is no terminal to ask on",
            hint=f"Name one: mlxk launch {arguments.agent} --model {shlex.quote(names[0])}",
            matches=tuple(names),
        )
    rows = [
        [
            str(number),
            each.label,
            "unknown" if each.size_bytes is None else decimal_size(each.size_bytes),
            f"{each.context:,}" if each.context else "unknown",
            each.fit,
        ]
        for number, each in enumerate(fitting, 1)
    ]
    output.note(table(["", "Model", "Size", "Context", "Memory"], rows, output.width).rstrip())
    index = choose(output, "Which model?", names)
    if index is None:
        raise UsageError("no model was chosen", hint="Choose a number, or name one with --model.")
    return fitting[index]
