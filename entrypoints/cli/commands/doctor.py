"""``mlxk doctor``: whether the installation and this machine are as they should be, and what mends them."""

import argparse
import contextlib
import os
import tempfile
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlxk.application.use_cases.diagnose_installation import Configuration
from mlxk.domain.diagnosis import CheckStatus
from mlxk.domain.errors import MlxkError
from mlxk.entrypoints.cli.command import CommandContext, model_names
from mlxk.entrypoints.cli.exit_status import DONE, FAILED
from mlxk.entrypoints.cli.output import RED, YELLOW, Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import diagnosis
from mlxk.entrypoints.cli.suggestions import unknown_variables
from mlxk.entrypoints.settings import Settings
from mlxk.entrypoints.start_checks import FEWEST_BYTES, is_loopback

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy")
_STYLES = {CheckStatus.WARNING: YELLOW, CheckStatus.FAILURE: RED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and how it is printed."""
    parser.add_argument(
        "--online", action="store_true", help="ask the hub, too: whether it answers, and takes the token"
    )
    parser.add_argument(
        "--report", action="store_true", help="print a text for an issue, without names and paths of yours"
    )


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print what was found by group; the exit status is 1 with a failure, 0 without, warnings included."""
    settings = context.settings
    container = context.build(settings)
    with Spinner(output, "Looking at the installation"):
        findings = container.use_cases.diagnose_installation()(_configuration(settings), online=arguments.online)
    failed = any(each.status is CheckStatus.FAILURE for each in findings)
    if output.as_json:
        output.document("doctor", diagnosis.findings_json(findings))
    elif arguments.report:
        output.text(diagnosis.report(findings, settings.home, _names(container)))
    else:
        group = None
        for each in findings:
            if each.group is not group:
                output.line(diagnosis.TITLES[each.group] if group is None else f"\n{diagnosis.TITLES[each.group]}")
                group = each.group
            first, *others = diagnosis.finding_lines(each, output.width)
            output.line(output.paint(first, _STYLES[each.status]) if each.status in _STYLES else first)
            for line in others:
                output.line(line)
        output.line(f"\n{diagnosis.summary(findings)}")
    return FAILED if failed else DONE


def _names(container: "Container") -> list[str]:
    """Return the names of models; none where they cannot be read."""
    with contextlib.suppress(MlxkError):
        return model_names(container)
    return []


def _configuration(settings: Settings) -> Configuration:
    address = urlsplit(settings.hub_endpoint)
    host = address.hostname or ""
    shown = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
    keys = settings.file.values("serve").get("api_key_file")
    secrets = settings.file.path if settings.file.has_secrets else None
    return Configuration(
        model_folder=settings.hub_cache,
        state_folder=settings.state_folder,
        temporary_folder=settings.temporary_folder or tempfile.gettempdir(),
        port=settings.serve.port or 8000,
        address=shown,
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
