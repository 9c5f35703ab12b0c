"""Renders findings of ``doctor`` as text and JSON, with the reason why each fault matters and its remedy."""

import platform
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from mlxk import __version__
from mlxk.application.use_cases.diagnose import HostDiagnosis
from mlxk.domain.diagnosis import OLDEST_MACOS, CheckGroup, CheckStatus, Fault, Finding
from mlxk.domain.host_checks import Examination, HostFacts
from mlxk.domain.ranks import HostShare, RankHost
from mlxk.entrypoints.cli.render.formatting import counted, printable, table

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
    CheckGroup.HOSTS: "Hosts",
    CheckGroup.LINKS: "Links",
}
MARKS: Mapping[CheckStatus, str] = {CheckStatus.OK: "ok", CheckStatus.WARNING: "!", CheckStatus.FAILURE: "x"}

_OLDEST = ".".join(map(str, OLDEST_MACOS))

_COMPARED_VERSIONS = ("mlxk", "mlx", "mlx-lm")
"""Packages that must have the same version on all hosts."""

ADVICE: Mapping[Fault, tuple[str, str]] = {
    Fault.ADDRESS_ELSEWHERE: (
        "Its rank listens on that address, and on no other.",
        "Correct its ips in the file: ip -4 addr, or ifconfig, lists the addresses there.",
    ),
    Fault.ADDRESS_PUBLIC: (
        "What ranks exchange is neither encrypted nor signed: others could read and change it.",
        "Use addresses of a network of your own, such as a cable between the hosts.",
    ),
    Fault.BACKEND_MISSING: (
        "Ranks exchange by the ring, a part of MLX.",
        "Install MLX again there: pip install --force-reinstall --no-cache-dir mlx",
    ),
    Fault.BACKEND_NOT_USED: (
        "RDMA over Thunderbolt and NCCL are not used.",
        "Nothing to do, where the ring is fast enough.",
    ),
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
    Fault.FOLDER_NOT_WRITABLE: (
        "Nothing can be stored there.",
        "Make it yours: sudo mkdir -p {subject} && sudo chown -R $(id -un) {subject}",
    ),
    Fault.GPU_UNUSED: (
        "There is a GPU, but the library for it is not installed; the CPU is many times slower.",
        "Install it: pip install 'mlxk[cuda]'",
    ),
    Fault.HOST_FAILED: (
        "The program there ends before it answers, as one of an older version does.",
        "Try it there by hand: ssh {subject}, then mlxk doctor",
    ),
    Fault.HOST_KEY_CHANGED: (
        "Its key is another one than ssh knows: it is a new machine, or somebody stands between.",
        "When you know why, forget the old key: ssh-keygen -R {subject}. Then: ssh {subject}",
    ),
    Fault.HOST_KEY_UNKNOWN: (
        "ssh would ask whether the key of the host is the right one, and nobody could answer.",
        "Connect once, and answer it: ssh {subject}",
    ),
    Fault.HOST_REFUSED: (
        "ssh would ask for a password, and nobody could answer.",
        "Have it take a key without a passphrase, or of your agent: ssh-copy-id {subject}",
    ),
    Fault.HOST_SILENT: (
        "Ranks there would not start in time.",
        "Try: ssh -o BatchMode=yes {subject} true. Give slow hosts more time: mlxk doctor --timeout 60 --hosts FILE",
    ),
    Fault.HOST_UNREACHABLE: (
        "Ranks are started by ssh.",
        "Try: ssh {subject}. Its name, address and port there are those of ~/.ssh/config.",
    ),
    Fault.HUB_OFFLINE: ("Nothing can be fetched or published.", "Unset HF_HUB_OFFLINE when you want to fetch models."),
    Fault.HUB_UNREACHABLE: ("Nothing can be fetched or published.", "Check the network, HF_ENDPOINT and the proxies."),
    Fault.INTEL_MAC: ("MLX needs Apple silicon.", "Use a Mac with Apple silicon, or Linux."),
    Fault.LINKS_NOT_MEASURED: (
        "Whether the ranks reach each other is not known.",
        "Mend what keeps the hosts from answering and listening, then try again.",
    ),
    Fault.LINK_BROKEN: (
        "Ranks exchange over this connection.",
        "Allow connections to {subject} in the firewall there, and see whether both have the same network.",
    ),
    Fault.LINK_ELSEWHERE: (
        "The system takes another network for this way than the one of the file.",
        "See the way there: ip route get {subject}, or route -n get {subject}",
    ),
    Fault.LITTLE_ADDRESS_SPACE: ("The libraries cannot be loaded.", "Raise the limit: ulimit -v unlimited"),
    Fault.LITTLE_SPACE: ("A model needs several gigabytes.", "See what can go: mlxk prune --dry-run"),
    Fault.MEMORY_UNKNOWN: ("Whether a model fits is not judged.", "Nothing to do, where models run as they should."),
    Fault.MISSING_PACKAGE: ("The program needs it.", "Install what is missing: pip install --upgrade mlxk"),
    Fault.MODELS_UNREADABLE: ("None can be listed or run.", "Mend the folder that is named first."),
    Fault.MODEL_ABSENT: (
        "Each host reads the model from its own disk.",
        "Fetch it there: mlxk pull {subject}. A workspace needs the same path everywhere.",
    ),
    Fault.MODEL_DIFFERS: (
        "Ranks with different files would compute what no model is.",
        "Bring the same revision to all hosts: mlxk pull {subject} --force-resume",
    ),
    Fault.MODEL_INDIVISIBLE: (
        "It cannot be spread over these hosts.",
        "Take another number of hosts, or another model.",
    ),
    Fault.MODEL_NOT_COMPARED: (
        "A start would be refused.",
        "Check it there: mlxk health {subject} --deep",
    ),
    Fault.MODEL_TOO_LARGE: (
        "With it the machine would swap, and answer very slowly.",
        "Use a smaller one: mlxk recommend",
    ),
    Fault.NO_BLAS: (
        "Without a GPU, prompts are read many times slower than with OpenBLAS.",
        "Install it. Debian and Ubuntu: sudo apt install libopenblas0. Fedora: sudo dnf install openblas",
    ),
    Fault.NO_INTERPRETER: (
        "The path of the interpreter here is taken there, where the file does not name one.",
        'Name the one that has mlxk there: "python": "/path/to/python" in its entry of the file.',
    ),
    Fault.NO_METAL: (
        "Models would be computed on the CPU, if at all.",
        "Run it outside of a virtual machine, as a user of the machine's own system.",
    ),
    Fault.NO_PROGRAM: (
        "The interpreter there has no mlxk.",
        'Install it there, or name the interpreter that has it: "python": "/path/to/python" in its entry of the file.',
    ),
    Fault.NO_SSH: (
        "Other hosts are reached by ssh.",
        "Install OpenSSH. Debian and Ubuntu: sudo apt install openssh-client",
    ),
    Fault.OLD_MACOS: (
        f"MLX is built for macOS {_OLDEST} and later.",
        "Update macOS: softwareupdate --list",
    ),
    Fault.PARTIAL_DOWNLOAD: (
        "It takes space, and the model cannot be run yet.",
        "Complete it: mlxk pull {subject} --force-resume. Or remove what is there: mlxk prune {subject}",
    ),
    Fault.PORTS_TAKEN: (
        "Its rank needs a free port of that address.",
        "See what has them: ss -ltn, or netstat -an",
    ),
    Fault.PORT_TAKEN: ("A server cannot use it.", "Use another one: mlxk serve --port 0"),
    Fault.PYTHON_UNTESTED: ("This version is newer than those the program is tested with.", "Use Python 3.11 to 3.14."),
    Fault.ROSETTA: (
        "This Python is made for Intel and translated by Rosetta; MLX does not run in it.",
        "Install Python for arm64, and the program in it: uv tool install mlxk",
    ),
    Fault.SERVER_SILENT: ("It does not answer.", "See: mlxk ps"),
    Fault.SETTINGS_INVALID: ("Commands that use it refuse to run.", "Correct it: mlxk config edit"),
    Fault.SHARE_TOO_LARGE: (
        "The host would swap, and all would wait for it.",
        "Use more hosts, or a smaller model: mlxk recommend",
    ),
    Fault.TOKEN_REJECTED: ("Private models and publishing do not work.", "Log in again: hf auth login"),
    Fault.UNENCRYPTED_HUB: ("A token would be sent in clear.", "Write HF_ENDPOINT with https://"),
    Fault.UNKNOWN_VARIABLE: ("It is misspelt, or of another version.", "See docs/environment.md for the names."),
    Fault.UNTESTED_VERSION: (
        "The libraries change together; this version was not tested with the others.",
        "Install the tested one: pip install '{subject}'",
    ),
    Fault.VERSION_DIFFERS: (
        "Ranks of different versions may compute differently; a start is refused.",
        "Install the same there: {subject}",
    ),
    Fault.WIRED_LIMIT: (
        "The system needs memory, too; it may stop responding.",
        "Set the system's own limit: sudo sysctl iogpu.wired_limit_mb=0",
    ),
}
"""For each fault, why it matters, and its remedy; ``{subject}`` is that of the finding."""


def title(finding: Finding) -> str:
    """Return the heading of a finding."""
    return TITLES[finding.group] if finding.host is None else f"Host {printable(finding.host)}"


def reason(finding: Finding) -> str | None:
    """Return why a fault matters; None without one."""
    return None if finding.fault is None else ADVICE[finding.fault][0]


def remedy(finding: Finding) -> str | None:
    """Return the remedy for a fault; None without one."""
    return None if finding.fault is None else ADVICE[finding.fault][1].format(subject=finding.subject)


def findings_json(findings: Sequence[Finding]) -> Json:
    """Return the data of ``doctor``."""
    return {
        "checks": [
            {
                "check": each.check,
                "group": each.group.value,
                **({} if each.host is None else {"host": each.host}),
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
    """Return the lines of a finding: its mark and evidence, and for a fault the reason and the remedy.

    Args:
        finding: The result of a check.
        width: Characters of the terminal; None for a file or a pipe, where lines are not wrapped.
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
    """Return the last line: the numbers of failures and warnings."""
    counts = _counts(findings)
    if not counts[CheckStatus.FAILURE] and not counts[CheckStatus.WARNING]:
        return "All is well."
    failures, warnings = (
        counted(counts[status], status.value) for status in (CheckStatus.FAILURE, CheckStatus.WARNING)
    )
    return f"{failures}, {warnings}"


def hosts_json(found: HostDiagnosis) -> Json:
    """Return the fields of ``doctor`` about the hosts of a file and their links."""
    shares = found.spread.shares if found.spread else [None] * len(found.examination.hosts)
    return {
        "hosts": [_host_json(*each) for each in zip(found.examination.hosts, shares, strict=True)],
        "links": [
            {
                "from": each.source.ssh,
                "to": each.target.ssh,
                "address": each.target.address,
                "round_trip_seconds": each.round_trip_seconds,
                "bytes_per_second": each.bytes_per_second,
                "problem": each.problem,
            }
            for each in found.examination.links
        ],
    }


def _host_json(facts: HostFacts, share: HostShare | None) -> Json:
    reading = facts.reading
    return {
        "host": facts.host.ssh,
        "address": facts.host.address,
        "answers": facts.answers,
        "python": facts.python or None,
        "versions": {name: facts.versions.get(name) for name in _COMPARED_VERSIONS} if facts.versions else None,
        "backends": [name for name, is_there in (facts.account.backends or {}).items() if is_there],
        "memory_bytes": None if reading is None else reading.total,
        "free_bytes": None if reading is None else reading.available,
        "needed_bytes": None if share is None else share.verdict.needed,
        "budget_bytes": None if share is None else share.verdict.budget,
        "fit": None if share is None else share.verdict.fit.value,
        "files": None if share is None else share.files.value,
        "content_digest": facts.account.digest,
    }


def is_in_table(finding: Finding) -> bool:
    """Whether a finding is a link without a fault, which the table of links shows."""
    return finding.check == "link" and finding.fault is None


def links_text(found: Examination, width: int | None) -> str:
    """Return the table of measured links; an empty string without one."""
    rows = [
        (
            each.source.ssh,
            each.target.ssh,
            f"{each.round_trip_seconds * 1000:.2f} ms",
            f"{each.bytes_per_second / 1e6:.1f} MB/s",
        )
        for each in found.links
        if each.round_trip_seconds is not None and each.bytes_per_second is not None
    ]
    return table(("From", "To", "Round trip", "Speed"), rows, width) if rows else ""


def report(findings: Sequence[Finding], home: str, names: Sequence[str], hosts: Sequence[RankHost] = ()) -> str:
    """Return a text for an issue, in which nothing names the user, the machine or a model.

    Args:
        findings: The results.
        home: The home directory, which becomes ``~``.
        names: Names of models, which become ``MODEL``.
        hosts: The examined hosts, which become ``HOST1``, ``HOST2`` …; every IPv4 address becomes ``ADDRESS``.
    """
    lines = [f"mlxk {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}", ""]
    for each in findings:
        fault = f" ({each.fault.value})" if each.fault else ""
        of_host = f" of {each.host}" if each.host else ""
        lines.append(f"{each.status.value:<7} {each.check}{fault}{of_host}: {printable(each.evidence)}")
    text = "\n".join(lines) + "\n"
    for number, host in enumerate(hosts, 1):
        text = re.sub(rf"(?<![\w.@-]){re.escape(host.ssh)}(?![\w@-])", f"HOST{number}", text)
    if hosts:
        text = _ADDRESSES.sub("ADDRESS", _LOGINS.sub("USER@HOST", text))
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, "MODEL")
    if len(home.rstrip("/")) > 1:
        text = re.sub(rf"{re.escape(home.rstrip('/'))}(?![\w-])", "~", text)  # "/home/al" is no part of "/home/alan"
    return _PERSONAL.sub(r"\1USER", text)


_PERSONAL = re.compile(r"((?:/home/|/Users/|/Volumes/|/media/|/mnt/))[^/\s,:]+")
"""Folders whose entries are named after users or their disks, with the name of the entry."""

_LOGINS = re.compile(r"[^\s@]+@[^\s:]+")
_ADDRESSES = re.compile(r"\b\d{1,3}(\.\d{1,3}){3}\b")
