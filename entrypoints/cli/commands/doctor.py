"""``mlxk doctor``: checks the installation and this machine, or the hosts of a file, and names remedies."""

import argparse
import contextlib
import os
import signal
import tempfile
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlxk.application.use_cases.diagnose import Configuration, HostDiagnosis
from mlxk.domain.diagnosis import CheckStatus, Finding
from mlxk.domain.errors import InterruptedRunError, MlxkError, UsageError
from mlxk.domain.host_checks import FIRST_OF_HOST
from mlxk.entrypoints.cli.command import CommandContext, hosts_of_file, model_names, whole_number
from mlxk.entrypoints.cli.output import DONE, FAILED, RED, YELLOW, Output
from mlxk.entrypoints.cli.processes import handling
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import findings as render
from mlxk.entrypoints.cli.settings_of_command import unknown_variables
from mlxk.entrypoints.settings import Settings
from mlxk.entrypoints.start_checks import FEWEST_BYTES, is_loopback

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy")
_HOST_SECONDS = 20
_STYLES = {CheckStatus.WARNING: YELLOW, CheckStatus.FAILURE: RED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checks and the form of the result."""
    parser.add_argument(
        "--online", action="store_true", help="ask the hub, too: whether it answers, and takes the token"
    )
    parser.add_argument(
        "--report", action="store_true", help="print a text for an issue, without names and paths of yours"
    )
    hosts = parser.add_argument_group("hosts over which a model is spread")
    hosts.add_argument(
        "--hosts", metavar="FILE", help="check the hosts of a file, as serve --hostfile takes it, instead"
    )
    hosts.add_argument("--model", metavar="MODEL", help="with --hosts: whether each has this model, and memory for it")
    hosts.add_argument(
        "--timeout",
        type=whole_number(1, 3600),
        metavar="SECONDS",
        help=f"with --hosts: give up a host that is silent for so long ({_HOST_SECONDS})",
    )


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print findings by group; the exit status is 1 when a check failed, and 0 otherwise, also with warnings."""
    settings = context.settings
    if arguments.hosts is not None:
        return _check_hosts(arguments, context, output)
    for flag in ("model", "timeout"):
        if getattr(arguments, flag) is not None:
            raise UsageError(f"--{flag} needs --hosts", hint="Name a file of hosts: mlxk doctor --hosts FILE")
    container = context.build(settings)
    with Spinner(output, "Looking at the installation"):
        findings = container.use_cases.diagnose_installation()(_configuration(settings), online=arguments.online)
    if output.as_json:
        output.document("doctor", render.findings_json(findings))
    elif arguments.report:
        output.text(render.report(findings, settings.home, _names(container)))
    else:
        _print(findings, output)
        output.line(f"\n{render.summary(findings)}")
    return _status(findings)


def _status(findings: Sequence[Finding]) -> int:
    return FAILED if any(each.status is CheckStatus.FAILURE for each in findings) else DONE


def _print(findings: Sequence[Finding], output: Output, before: str = "") -> None:
    """Print findings under the titles of their groups.

    Args:
        findings: Findings, ordered by group.
        output: Prints them.
        before: Text before the first title.
    """
    title = None
    for each in findings:
        if render.title(each) != title or each.check == FIRST_OF_HOST:  # two hosts of a file may have one name
            title = render.title(each)
            output.line(f"{before}{title}")
            before = "\n"
        first, *others = render.finding_lines(each, output.width)
        output.line(output.paint(first, _STYLES[each.status]) if each.status in _STYLES else first)
        for line in others:
            output.line(line)


def _check_hosts(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Check the hosts of a file and print findings; the exit status is that of ``execute``."""
    if arguments.online:
        raise UsageError("--hosts and --online exclude each other", hint="Leave one of them out.")
    file = hosts_of_file("--hosts", arguments.hosts)
    container = context.build(context.settings)
    # A signal becomes an exception, so that the processes on the hosts end with this command.
    with handling((signal.SIGTERM, signal.SIGHUP), _interrupt), Spinner(output, "Asking the hosts") as spinner:
        diagnose, seconds = container.use_cases.diagnose_hosts(), arguments.timeout or _HOST_SECONDS
        diagnosis = diagnose(file, arguments.model, seconds, lambda what: spinner.show(f"Asking the hosts: {what}"))
    if output.as_json:
        output.document("doctor", {**render.findings_json(diagnosis.findings), **render.hosts_json(diagnosis)})
    elif arguments.report:
        names = [*_names(container), *filter(None, [arguments.model])]
        output.text(render.report(diagnosis.findings, context.settings.home, names, file.hosts))
    else:
        _print_hosts(diagnosis, output)
    return _status(diagnosis.findings)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise InterruptedRunError("interrupted")


def _print_hosts(diagnosis: HostDiagnosis, output: Output) -> None:
    rows = [each for each in diagnosis.findings if not render.is_in_table(each)]
    _print(rows, output)
    if links := render.links_text(diagnosis.examination, output.width):
        output.text(f"\n{links}")
    output.line(f"\n{render.summary(diagnosis.findings)}")


def _names(container: "Container") -> list[str]:
    """Return the names of models; empty when they cannot be read."""
    with contextlib.suppress(MlxkError):
        return model_names(container)
    return []


def _configuration(settings: Settings) -> Configuration:
    address = urlsplit(settings.hub_endpoint)
    host = address.hostname or ""
    hub_address = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
    keys = settings.file.values("serve").get("api_key_file")
    secrets = settings.file.path if settings.file.has_secrets else None
    return Configuration(
        model_folder=settings.hub_cache,
        state_folder=settings.state_folder,
        temporary_folder=settings.temporary_folder or tempfile.gettempdir(),
        port=settings.serve.port or 8000,
        address=hub_address,
        encrypted=address.scheme == "https" or is_loopback(host),
        has_token=bool(settings.hub_token) or os.path.exists(settings.hub_token_file),
        offline=settings.hub_offline,
        proxies=tuple(name for name in _PROXIES if name in settings.set_variables),
        settings_path=settings.file.path,
        settings_faults=tuple(map(str, settings.file.faults)),
        unknown_variables=tuple(note.strip("[]") for note in unknown_variables(settings.set_variables)),
        secret_files=tuple(filter(None, (settings.hub_token_file, secrets, keys))),
        least_address_space=FEWEST_BYTES,
    )
