"""``mlxk doctor``: whether the installation and this machine are as they should be, and what mends them."""

import argparse
import contextlib
import os
import platform
import re
import tempfile
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlxk import __version__
from mlxk.application.use_cases.diagnose_installation import Configuration
from mlxk.domain.diagnosis import OLDEST_MACOS, CheckGroup, CheckStatus, Fault, Finding
from mlxk.domain.errors import MlxkError
from mlxk.entrypoints.cli.command import CommandContext, model_names
from mlxk.entrypoints.cli.output import DONE, FAILED, RED, YELLOW, Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render.formatting import counted, printable
from mlxk.entrypoints.cli.settings_of_command import unknown_variables
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
        output.document("doctor", findings_json(findings))
    elif arguments.report:
        output.text(report(findings, settings.home, _names(container)))
    else:
        group = None
        for each in findings:
            if each.group is not group:
                output.line(TITLES[each.group] if group is None else f"\n{TITLES[each.group]}")
                group = each.group
            first, *others = finding_lines(each, output.width)
            output.line(output.paint(first, _STYLES[each.status]) if each.status in _STYLES else first)
            for line in others:
                output.line(line)
        output.line(f"\n{summary(findings)}")
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


Json = dict[str, object]

TITLES: Mapping[CheckGroup, str] = {
    CheckGroup.SYSTEM: "System",
    CheckGroup.PACKAGES: "Program and packages",
    CheckGroup.COMPUTING: "Computing",
    CheckGroup.STORAGE: "Folders",
    CheckGroup.HUB: "Hub",
    CheckGroup.MODELS: "Models",
    CheckGroup.SERVER: "Server",
    CheckGroup.SETTINGS: "Settings",
}
MARKS: Mapping[CheckStatus, str] = {CheckStatus.OK: "ok", CheckStatus.WARNING: "!", CheckStatus.FAILURE: "x"}

_OLDEST = ".".join(map(str, OLDEST_MACOS))

ADVICE: Mapping[Fault, tuple[str, str]] = {
    Fault.BROKEN_IMPORT: (
        "Models that need it cannot be run.",
        "Install it again: pip install --force-reinstall --no-cache-dir mlxk",
    ),
    Fault.BROKEN_MODEL: (
        "It cannot be run.",
        "See: mlxk health {subject}. Fetch a model of the hub again: mlxk pull {subject} --force-resume",
    ),
    Fault.CLOCK_WRONG: (
        "Certificates count as invalid, so that nothing can be fetched.",
        "Set the clock, or have the system set it by the network.",
    ),
    Fault.CROWDED_PATH: (
        "A plain 'mlxk' runs another installation than the one that says this.",
        "Remove one of them, or change PATH.",
    ),
    Fault.DUPLICATE_PACKAGE: (
        "Which of them is imported depends on the order of the search path.",
        "Remove one of them: pip uninstall {subject}",
    ),
    Fault.EXPOSED_SECRET: ("It holds a key or a token.", "Keep it for yourself: chmod 600 {subject}"),
    Fault.FEW_DESCRIPTORS: ("A server needs one for each client.", "Raise the limit: ulimit -n 1024"),
    Fault.FOLDER_MISSING_TARGET: (
        "Nothing can be read or written there.",
        "Connect the disk that it leads to, or remove the link: rm {subject}",
    ),
    Fault.FOLDER_NOT_A_FOLDER: ("Nothing can be stored there.", "Move the file away: mv {subject} {subject}.old"),
    Fault.FOLDER_NOT_WRITABLE: ("Nothing can be stored there.", "Make it yours: sudo chown -R $(id -un) {subject}"),
    Fault.GPU_UNUSED: (
        "There is a GPU, but the library for it is not installed; the CPU is many times slower.",
        "Install it: pip install 'mlxk[cuda]'",
    ),
    Fault.HUB_OFFLINE: ("Nothing can be fetched or published.", "Unset HF_HUB_OFFLINE when you want to fetch models."),
    Fault.HUB_UNREACHABLE: ("Nothing can be fetched or published.", "Check the network, HF_ENDPOINT and the proxies."),
    Fault.INTEL_MAC: ("MLX needs Apple silicon.", "Use a Mac with Apple silicon, or Linux."),
    Fault.LITTLE_ADDRESS_SPACE: ("The libraries cannot be loaded.", "Raise the limit: ulimit -v unlimited"),
    Fault.LITTLE_SPACE: ("A model needs several gigabytes.", "See what can go: mlxk prune --dry-run"),
    Fault.MEMORY_UNKNOWN: ("Whether a model fits is not judged.", "Nothing to do, where models run as they should."),
    Fault.MISSING_PACKAGE: ("The program needs it.", "Install what is missing: pip install --upgrade mlxk"),
    Fault.MODELS_UNREADABLE: ("None can be listed or run.", "Mend the folder that is named first."),
    Fault.MODEL_TOO_LARGE: (
        "With it the machine would swap, and answer very slowly.",
        "Use a smaller one: mlxk recommend",
    ),
    Fault.NO_BLAS: (
        "Without a GPU, prompts are read many times slower than with OpenBLAS.",
        "Install it. Debian and Ubuntu: sudo apt install libopenblas0. Fedora: sudo dnf install openblas",
    ),
    Fault.NO_METAL: (
        "Models would be computed on the CPU, if at all.",
        "Run it outside of a virtual machine, as a user of the machine's own system.",
    ),
    Fault.OLD_MACOS: (
        f"MLX is built for macOS {_OLDEST} and later.",
        "Update macOS: softwareupdate --list",
    ),
    Fault.PARTIAL_DOWNLOAD: (
        "It takes space, and the model cannot be run yet.",
        "Complete it: mlxk pull {subject} --force-resume. Or remove what is there: mlxk prune {subject}",
    ),
    Fault.PORT_TAKEN: ("A server cannot use it.", "Use another one: mlxk serve --port 0"),
    Fault.PYTHON_UNTESTED: ("This version is newer than those the program is tested with.", "Use Python 3.11 to 3.14."),
    Fault.ROSETTA: (
        "This Python is made for Intel and translated by Rosetta; MLX does not run in it.",
        "Install Python for arm64, and the program in it: uv tool install mlxk",
    ),
    Fault.SERVER_SILENT: ("It does not answer.", "See: mlxk ps"),
    Fault.SETTINGS_INVALID: ("Commands that use it refuse to run.", "Correct it: mlxk config edit"),
    Fault.TOKEN_REJECTED: ("Private models and publishing do not work.", "Log in again: hf auth login"),
    Fault.UNENCRYPTED_HUB: ("A token would be sent in clear.", "Write HF_ENDPOINT with https://"),
    Fault.UNKNOWN_VARIABLE: ("It is misspelt, or of another version.", "See docs/environment.md for the names."),
    Fault.UNTESTED_VERSION: (
        "The libraries change together; this version was not tested with the others.",
        "Install the tested one: pip install '{subject}'",
    ),
    Fault.WIRED_LIMIT: (
        "The system needs memory, too; it may stop responding.",
        "Set the system's own limit: sudo sysctl iogpu.wired_limit_mb=0",
    ),
}
"""For each fault, why it matters and what mends it."""


def reason(finding: Finding) -> str | None:
    """Return why a fault matters; None without one."""
    return None if finding.fault is None else ADVICE[finding.fault][0]


def remedy(finding: Finding) -> str | None:
    """Return what mends a fault; None without one."""
    return None if finding.fault is None else ADVICE[finding.fault][1].format(subject=finding.subject)


def findings_json(findings: Sequence[Finding]) -> Json:
    """Return the data of ``doctor``."""
    return {
        "checks": [
            {
                "check": each.check,
                "group": each.group.value,
                "status": each.status.value,
                "evidence": each.evidence,
                "fault": each.fault.value if each.fault else None,
                "reason": reason(each),
                "remedy": remedy(each),
            }
            for each in findings
        ],
        **{f"{status.value}_count": count for status, count in _counts(findings).items()},
    }


def _counts(findings: Sequence[Finding]) -> dict[CheckStatus, int]:
    counts = Counter(each.status for each in findings)
    return {status: counts[status] for status in CheckStatus}


def finding_lines(finding: Finding, width: int | None) -> tuple[str, ...]:
    """Return the lines of a finding: a mark with what was seen, and for a fault why it matters and what mends it.

    Args:
        finding: The result of a check.
        width: Characters of the terminal; None for a file or a pipe, whose lines are not broken.
    """
    evidence = printable(finding.evidence)
    mark = f"[{MARKS[finding.status]}]".ljust(4)
    texts = [f"{mark} {evidence}", *(f"     {printable(each)}" for each in (reason(finding), remedy(finding)) if each)]
    if width is None:
        return tuple(texts)
    wrap = textwrap.TextWrapper(width, subsequent_indent="     ", break_long_words=False, break_on_hyphens=False)
    return tuple(line for text in texts for line in _wrapped(wrap, text))


def _wrapped(wrap: textwrap.TextWrapper, text: str) -> list[str]:
    wrap.initial_indent = text[: len(text) - len(text.lstrip())]
    return wrap.wrap(text.lstrip())


def summary(findings: Sequence[Finding]) -> str:
    """Return the last line."""
    counts = _counts(findings)
    if not counts[CheckStatus.FAILURE] and not counts[CheckStatus.WARNING]:
        return "All is well."
    failures, warnings = (
        counted(counts[status], status.value) for status in (CheckStatus.FAILURE, CheckStatus.WARNING)
    )
    return f"{failures}, {warnings}"


def report(findings: Sequence[Finding], home: str, names: Sequence[str]) -> str:
    """Return a text for an issue: nothing in it names the user, the machine or a model.

    Args:
        findings: The results.
        home: The home directory, which becomes ``~``.
        names: Of models, which become ``MODEL``.
    """
    lines = [f"mlxk {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}", ""]
    for each in findings:
        fault = f" ({each.fault.value})" if each.fault else ""
        lines.append(f"{each.status.value:<7} {each.check}{fault}: {printable(each.evidence)}")
    text = "\n".join(lines) + "\n"
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, "MODEL")
    if len(home.rstrip("/")) > 1:
        text = text.replace(home.rstrip("/"), "~")
    return _PERSONAL.sub(r"\1USER", text)


_PERSONAL = re.compile(r"((?:/home/|/Users/|/Volumes/|/media/|/mnt/))[^/\s,:]+")
"""Folders whose next part is somebody's name, or that of somebody's disk."""
