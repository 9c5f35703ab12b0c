"""The hosts over which a model is spread, in the form of MLX's launcher: a list of names for ssh, with addresses."""

import enum
import ipaddress
import re
from collections.abc import Mapping, Sequence

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.footprint import MemoryReading, MemoryVerdict, fit_of
from mlxk.domain.models.model import ModelHandle, Origin

_SSH_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:%-]*")
"""What ssh is given: never what it would take as an option."""

LOOPBACK = "127.0.0.1"

THIS_MACHINE = ("localhost", LOOPBACK)
"""Names of this machine, on which ranks are started without ssh."""


@attrs.frozen
class RankHost:
    """A host of one rank."""

    ssh: str
    """Its name for ssh."""
    address: str
    """The IP address on which its rank listens."""
    python: str | None = None
    """The interpreter that has this program there; None: at the same path as here."""

    @property
    def is_here(self) -> bool:
        """Whether its rank is started without ssh."""
        return self.ssh in THIS_MACHINE


def read_hosts(document: object) -> tuple[RankHost, ...]:
    """Return the hosts of a file: ``[{"ssh": "name", "ips": ["192.0.2.1"]}, …]``, of rank 0 first.

    Args:
        document: Parsed; what MLX's launcher knows beside is ignored.

    Raises:
        ValidationError: Names the entry and the field at fault.
    """
    entries = document.get("hosts") if isinstance(document, dict) else document
    if not isinstance(entries, list) or len(entries) < 2:
        raise ValidationError("it must list two hosts or more", hint=_EXAMPLE)
    hosts = tuple(_host(entry, f"host {number}") for number, entry in enumerate(entries, 1))
    addresses = [host.address for host in hosts if not ipaddress.ip_address(host.address).is_loopback]
    for address in addresses:
        if addresses.count(address) > 1:
            raise ValidationError(f"{address} is the address of two hosts", hint="Give each rank a host of its own.")
    return hosts


_EXAMPLE = 'For example: [{"ssh": "mac1", "ips": ["192.0.2.1"]}, {"ssh": "mac2", "ips": ["192.0.2.2"]}]'


def _host(entry: object, where: str) -> RankHost:
    if not isinstance(entry, dict):
        raise ValidationError(f"{where} is no object with ssh and ips", hint=_EXAMPLE)
    ssh, ips, python = entry.get("ssh"), entry.get("ips"), entry.get("python")
    if not isinstance(ssh, str) or not _SSH_NAME.fullmatch(ssh):
        raise ValidationError(f"{where}: ssh must be a name for ssh, such as mac1 or ada@mac1", hint=_EXAMPLE)
    if not isinstance(ips, list) or not ips or not all(isinstance(each, str) for each in ips):
        raise ValidationError(f"{where} ({ssh}): ips must list the host's IP address", hint=_EXAMPLE)
    try:
        address = ipaddress.ip_address(ips[0])
    except ValueError:
        raise ValidationError(f"{where} ({ssh}): '{ips[0]}' is no IP address") from None
    if address.is_unspecified or address.version != 4:
        raise ValidationError(f"{where} ({ssh}): {address} is not the IPv4 address of one network interface")
    if python is not None and (not isinstance(python, str) or not python.startswith("/")):
        raise ValidationError(f"{where} ({ssh}): python must be the absolute path of an interpreter")
    return RankHost(ssh, str(address), python)


@attrs.frozen
class HostAccount:
    """What a host says of itself and of a model; None where it did not say it."""

    reading: MemoryReading | None = None
    versions: Mapping[str, str] | None = None
    """Of what must be equal on all hosts, by name."""
    digest: str | None = None
    """Of the content of the model's files there."""
    is_absent: bool = False
    """Whether it says that it does not have the model."""
    cut: str | None = None
    """How the model is divided; asked of the first host only."""
    whole: str | None = None
    """Why it cannot be divided."""
    problem: str | None = None
    """Why something is not known, in a sentence."""


def name_everywhere(handle: ModelHandle) -> str:
    """Return the name by which other hosts find a model: a workspace by its path, others by name and revision."""
    name = handle.directory if handle.origin is Origin.WORKSPACE else handle.name
    return name if handle.revision is None else f"{name}@{handle.revision}"


class HostFiles(enum.Enum):
    """How the files of a model on a host relate to those of the first one."""

    SAME = "same"
    OTHER = "other"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@attrs.frozen
class HostShare:
    """A host's share of a model."""

    host: RankHost
    verdict: MemoryVerdict
    """Of the share, in the memory of the host."""
    files: HostFiles
    problem: str | None
    """Why something is not known, or else the first thing that has another version than on the first host."""


@attrs.frozen
class SpreadModel:
    """A model over hosts, before it is started."""

    shares: tuple[HostShare, ...]
    """That of rank 0 first."""
    cut: str | None
    """How the model is divided; None when it cannot be, or that is not known."""
    reason: str | None
    """Why it cannot be, or why that is not known."""

    @classmethod
    def judged(cls, hosts: Sequence[RankHost], accounts: Sequence[HostAccount], whole: MemoryVerdict) -> "SpreadModel":
        """Judge what hosts say of a model.

        Args:
            hosts: That of rank 0 first.
            accounts: What they say, in the same order.
            whole: The estimate for the whole model.
        """
        first = accounts[0]
        shares = tuple(
            HostShare(
                host,
                judge_share(whole, each.reading, len(hosts)),
                _files(each, first),
                each.problem or _version(each, first),
            )
            for host, each in zip(hosts, accounts, strict=True)
        )
        return cls(shares, first.cut, first.whole or (first.problem if first.cut is None else None))


def judge_share(whole: MemoryVerdict, reading: MemoryReading | None, shares: int) -> MemoryVerdict:
    """Estimate whether an equal share of a model fits: of the weights only, with the whole cache and reserve.

    Args:
        whole: Of the whole model, whose form all shares have.
        reading: The memory of the machine that would hold the share; None when it is not known.
        shares: How many there are.
    """
    weights = -(-whole.weights // shares)
    needed = whole.needed - whole.weights + weights
    budget = None if reading is None else reading.budget
    return attrs.evolve(whole, fit=fit_of(reading, needed), weights=weights, needed=needed, budget=budget)


def _version(account: HostAccount, first: HostAccount) -> str | None:
    if account.versions is None or first.versions is None:
        return None
    for name, here in first.versions.items():
        there = account.versions.get(name)
        if there != here:
            return f"it has {name} {there}, and the first host {here}"
    return None


def _files(account: HostAccount, first: HostAccount) -> HostFiles:
    if account.is_absent:
        return HostFiles.ABSENT
    if account.digest is None or first.digest is None:
        return HostFiles.UNKNOWN
    return HostFiles.SAME if account.digest == first.digest else HostFiles.OTHER
