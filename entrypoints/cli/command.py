"""The interface of a command, its context, and arguments, completion and fetching of models that commands share."""

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from mlxk.domain.errors import ModelNotFoundError, RevisionNotFoundError, UsageError, ValidationError
from mlxk.domain.models.model import Origin
from mlxk.domain.ranks import USED_BACKENDS, HostFile, read_hosts
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.text_files import read_json
from mlxk.entrypoints.server_address import ServerAddress
from mlxk.entrypoints.setting_table import BLAS_CHOICES, CPU_DTYPES, MOST_RANKS, RANK_TIMEOUTS
from mlxk.entrypoints.settings import ComputingSettings, ServerSettings, Settings, read_settings
from mlxk.entrypoints.wording import command_line_error, matrices_words

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<name>[^/\s?#@]+/[^/\s?#@]+)"
    r"(?:/(?:tree|blob|resolve|commit)/(?P<revision>[^/\s?#]+))?(?:[/?#]\S*)?",
    re.IGNORECASE,
)
"""Matches the URL of a model's page or file on the hub."""


def model_reference(text: str) -> str:
    """Return ``ORG/NAME`` or ``ORG/NAME@REVISION`` for the URL of a model's page, any other text unchanged."""
    page = _PAGE.fullmatch(text.strip())
    if page is None:
        return text
    return page["name"] + (f"@{page['revision']}" if page["revision"] else "")


Announcement = Callable[[ServerAddress], str]
"""Returns the line for standard output when a server is ready."""

Serve = Callable[[Settings, ServerSettings, Announcement], int]
"""Runs a server until a signal ends it, and returns the exit status."""


@attrs.frozen
class CommandContext:
    """What a command needs of the program: settings, the container, the server, and standard input."""

    settings: Settings
    build: Callable[[Settings], "Container"]
    """Builds the container; a command calls it at most once."""
    serve: Serve
    standard_input: int = 0
    """File descriptor."""


class Command(Protocol):
    """A module that has these two functions, or a class that has these two methods."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare positionals and flags."""

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Run the command and return the exit status.

        Raises:
            MlxkError: Any failure; the program prints it.
        """


MODEL_HELP = "a name, a unique part of one, NAME@REVISION, a path, or 'demo'"


def add_model_argument(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Declare MODEL as the next positional."""
    count = "?" if optional else None
    complete_models(parser.add_argument("model", metavar="MODEL", nargs=count, type=model_reference, help=MODEL_HELP))


def add_cached_pattern(parser: argparse.ArgumentParser) -> None:
    """Declare PATTERN, a part of the names of cached models, as the next positional."""
    action = parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="part of the names of cached models")
    complete_models(action, cached_only=True)


def add_server_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--server``."""
    parser.add_argument(
        "--server", action=argparse.BooleanOptionalAction, help="compute on a running server of yours, or not"
    )


def add_ranks_argument(parser: argparse._ActionsContainer) -> None:
    """Declare the flags that spread a model over several processes."""
    parser.add_argument(
        "--local-ranks",
        type=whole_number(1, MOST_RANKS),
        metavar="N",
        help="spread the model over N processes of this machine",
    )
    parser.add_argument("--hostfile", metavar="FILE", help="spread the model over the hosts of a file, this one first")
    parser.add_argument(
        "--rank-timeout",
        type=seconds_within(*RANK_TIMEOUTS),
        metavar="S",
        help="seconds of silence after which one of them counts as lost (5)",
    )


def ranks_flag(arguments: argparse.Namespace) -> str | None:
    """Return the flag that spreads the model over several processes; None where it is in one.

    Raises:
        UsageError: Both ``--local-ranks`` and ``--hostfile`` are given.
    """
    spread = getattr(arguments, "local_ranks", None) not in (None, 1)
    if getattr(arguments, "hostfile", None) is None:
        return "--local-ranks" if spread else None
    if spread:
        raise UsageError("--local-ranks and --hostfile exclude each other", hint="Leave one of them out.")
    return "--hostfile"


def hosts_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of ``ComputingSettings`` that the file of ``--hostfile`` gives; none without the flag.

    Raises:
        StorageError, ValidationError: The file cannot be read, or has an error; names its entry and field.
    """
    path = getattr(arguments, "hostfile", None)
    if path is None:
        return {}
    file = hosts_of_file("--hostfile", path)
    hosts = tuple((host.ssh, host.address, host.python) for host in file.hosts)
    return {"rank_hosts": hosts, "rank_backend": file.backend}


def note_backend(settings: ComputingSettings, hostfile: str | None, output: Output) -> None:
    """Print a note where the host file asks for another backend of communication than ranks use."""
    if settings.rank_backend not in USED_BACKENDS:
        output.note(f"[{hostfile} asks for {settings.rank_backend}; ranks exchange by MLX's ring over TCP]")


def hosts_of_file(flag: str, path: str) -> HostFile:
    """Read the host file that a flag names.

    Raises:
        StorageError, ValidationError: The file cannot be read, or has an error; names its entry and field.
    """
    document = read_json(path, flag)
    try:
        return read_hosts(document)
    except ValidationError as error:
        raise ValidationError(f"{flag}: {path}: {error.message}", hint=error.hint) from error


def add_cpu_argument(parser: argparse._ActionsContainer) -> None:
    """Declare the flags of computing on a CPU."""
    parser.add_argument(
        "--cpu-dtype",
        choices=CPU_DTYPES,
        help="without a GPU: 16-bit weights in float32, or as the model has them (as memory allows)",
    )
    parser.add_argument(
        "--blas", choices=BLAS_CHOICES, help="without a GPU: use an OpenBLAS, BLIS or MKL of this machine (auto)"
    )


def computing_settings(arguments: argparse.Namespace, settings: Settings) -> Settings:
    """Return the settings for the container, with the flags about where and how to compute.

    Raises:
        UsageError: Two of the flags exclude each other.
        StorageError, ValidationError: See ``hosts_of_file``.
    """
    names = ("cpu_dtype", "blas", "local_ranks", "rank_timeout")
    changes: dict[str, Any] = {name: getattr(arguments, name, None) for name in names}
    changes["use_server"] = getattr(arguments, "server", None)
    if (flag := ranks_flag(arguments)) is not None:
        if changes["use_server"]:
            raise UsageError(f"{flag} and --server exclude each other", hint="Leave one of them out.")
        changes["use_server"] = False
    changes |= hosts_settings(arguments)
    return attrs.evolve(settings, **{name: value for name, value in changes.items() if value is not None})


def print_place(container: "Container", output: Output) -> None:
    """Print where the last request was computed, or why not on a server, and on a CPU by which library."""
    place = container.adapters.running_servers().last_place()
    if place is not None:
        output.note(f"[computed by the server {place.server}]" if place.server else f"[computed here: {place.reason}]")
    if place is None or place.server is None:
        matrices = container.adapters.memory_probe().matrices()
        if matrices.on_cpu:
            output.note(f"[matrices are {matrices_words(matrices)}]")


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return a converter for ``argparse`` of a whole number in a range."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):  # also of a number of thousands of digits
            if text.isascii() and text.isdecimal() and least <= (number := int(text)) <= most:
                return number
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from {least} to {most}")

    return read


def seconds_within(least: float, most: float) -> Callable[[str], float]:
    """Return a converter for ``argparse`` of seconds in a range."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= (seconds := float(text)) <= most:
                return seconds
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds from {least:g} to {most:g}")

    return read


def number_of_bits(text: str) -> float:
    """Convert a number for ``argparse``; a whole one to an int."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from None
    return int(number) if number.is_integer() else number


def add_pull_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--pull``."""
    parser.add_argument(
        "--pull", action="store_true", help="fetch a model that is not here, or not whole, without asking"
    )


@contextlib.contextmanager
def suggesting_pull(settings: Settings) -> Iterator[None]:
    """Add ``--pull`` to the hint of an error about a missing model that can be fetched, or why it cannot be now."""
    try:
        yield
    except (ModelNotFoundError, RevisionNotFoundError) as error:
        hint = command_line_error(error)[1]
        if not hint or "mlxk pull " not in hint:
            raise
        more = f"{hint} (once HF_HUB_OFFLINE is unset)" if settings.hub_offline else f"{hint} (or add --pull)"
        raise type(error)(error.message, hint=more, matches=error.matches, detail=error.detail) from error


def fetch_absent(
    references: Iterable[str | None], build: Callable[[], "Container"], output: Output, *, pull: bool
) -> None:
    """Fetch the models of a command line that are missing or incomplete.

    Without ``--pull`` the user is asked, on a terminal. Where there is none, or the hub is set offline, this does
    nothing, and the command itself reports the missing model.

    Args:
        references: Models as typed; None for one that was left out.
        build: Returns the container; called only when something may have to be fetched.
        output: Where to show facts and progress and ask.
        pull: Whether ``--pull`` was given.

    Raises:
        ModelNotFoundError, RevisionNotFoundError: A model is missing, and the user declined, or the hub lacks it.
        MlxkError: The hub, the network or the disk refuses; see ``ModelHub``.
    """
    typed = tuple(dict.fromkeys(reference for reference in references if reference))
    if not typed or not (pull or (output.interactive and output.shows_progress and sys.stdin.isatty())):
        return
    container = build()
    if container.adapters.settings.hub_offline and not pull:
        return  # a yes could not be followed by a download
    use_cases = container.use_cases
    resolve = use_cases.resolve_model()
    for reference in typed:
        try:
            handle = resolve(reference)
        except (ModelNotFoundError, RevisionNotFoundError) as error:
            from mlxk.entrypoints.cli.fetching import fetch_unknown  # noqa: PLC0415 - it loads half of the use cases

            fetch_unknown(error, use_cases, output, pull=pull)
        else:
            health = use_cases.describe_model().health(handle) if handle.origin is Origin.CACHE else None
            if health is not None and not health.healthy and (pull or health.unfinished):
                from mlxk.entrypoints.cli.fetching import complete  # noqa: PLC0415 - as above

                reference = reference if handle.alias is None else resolve.aliases[handle.alias]
                complete(reference, handle.name, health, use_cases, output, pull=pull)


def complete_models(action: argparse.Action, *, cached_only: bool = False) -> None:
    """Have the shell complete an argument with the names of the models on this disk, or of those in the cache."""
    names = _cached_names if cached_only else complete_model_name
    action.completer = names  # type: ignore[attr-defined]  # argcomplete's interface


def _cached_names(prefix: str, **_context: object) -> list[str]:
    return _names(prefix, {Origin.CACHE})


def complete_model_name(prefix: str, **_context: object) -> list[str]:
    """Return the names of models on this disk that start with a prefix, for argcomplete."""
    return _names(prefix, set(Origin))


def _names(prefix: str, origins: Collection[Origin]) -> list[str]:
    """Return the names of models that start with a prefix, with and without their owner."""
    from mlxk.entrypoints.container import build  # noqa: PLC0415 - only completion needs it

    return [name for name in model_names(build(read_settings()), origins) if name.startswith(prefix)]


def model_names(container: "Container", origins: Collection[Origin] = frozenset(Origin)) -> list[str]:
    """Return the user's own names, and those of the models on this disk, with and without their owner."""
    handles = container.use_cases.resolve_model().matching()
    names = [handle.display_name or handle.name for handle in handles if handle.origin in origins]
    own = container.adapters.names.profiles if len(origins) > 1 else ()
    return [*own, *names, *(name.rpartition("/")[2] for name in names)]
