"""Models spread over processes or hosts: the hosts file, in the format of MLX's launcher, and the share of a rank."""

import enum
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence

import attrs

from mlxk.domain.errors import Advice, CapabilityError, Remedy, ValidationError
from mlxk.domain.models.footprint import MemoryReading, MemoryVerdict, fit_of
from mlxk.domain.models.model import ModelDescription, ModelHandle, ModelType, Origin
from mlxk.domain.text import nearest

_SSH_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:%-]*")
"""A host name or alias for ssh; it never begins with ``-``, as an option does."""

LOOPBACK = "127.0.0.1"

THIS_MACHINE = ("localhost", LOOPBACK)
"""Names of this machine; ranks on it are started without ssh."""


@attrs.frozen
class RankHost:
    """The host of one rank."""

    ssh: str
    """Its host name or alias for ssh."""
    address: str
    """The IP address on which its rank listens."""
    python: str | None = None
    """Path of the interpreter that has this program there; None for the same path as here."""

    @property
    def is_here(self) -> bool:
        """Whether its rank is started without ssh."""
        return self.ssh in THIS_MACHINE


@attrs.frozen
class Division:
    """The processes over which a model is spread."""

    hosts: tuple[RankHost, ...]
    """The host of each rank, from rank 0, which is this machine."""
    same_files: bool
    """Whether all ranks read the files of one machine, so that their contents need not be compared."""
    silent_seconds: float
    """Time without a heartbeat after which a rank is lost."""

    @classmethod
    def of(cls, local_ranks: int, hosts: Iterable[tuple[str, str, str | None]], silent_seconds: float) -> "Division":
        """Return the division among hosts, or among processes of this machine where no hosts are given.

        Args:
            local_ranks: Number of processes of this machine.
            hosts: The fields of a ``RankHost`` for each rank.
            silent_seconds: Time without a heartbeat after which a rank is lost.
        """
        listed = tuple(RankHost(*fields) for fields in hosts)
        here = RankHost(THIS_MACHINE[0], LOOPBACK)
        return cls(listed or (here,) * local_ranks, not listed, silent_seconds)

    @property
    def shares_here(self) -> int:
        """Number of ranks on this machine."""
        return 1 + sum(host.is_here for host in self.hosts[1:])

    def held_here(self, model: ModelDescription) -> ModelDescription:
        """Return a model's description with the sizes of weights and KV cache that this machine's ranks hold."""
        return model if len(self.hosts) == 1 else share_of(model, len(self.hosts), self.shares_here)


def adapter_refused(name: str) -> CapabilityError:
    """Return the error for a LoRA adapter on a model that is spread over several processes."""
    return CapabilityError(
        f"'{name}' is an adapter, and a model is spread over several processes without one.",
        hint=Advice(Remedy.FUSE_FIRST, {"name": name}),
    )


def refuse_adapter(described: ModelDescription) -> None:
    """Refuse to spread an adapter.

    Raises:
        CapabilityError: The model is an adapter.
    """
    if described.model_type is ModelType.ADAPTER:
        raise adapter_refused(described.handle.name)


def share_of(model: ModelDescription, ranks: int, held: int = 1) -> ModelDescription:
    """Return a model's description with the sizes that some ranks hold: equal parts of its layers, and all else.

    Args:
        model: The complete model.
        ranks: Number of all ranks.
        held: Number of ranks to count.
    """
    layers = model.weight_bytes - model.undivided_bytes
    weights = held * (model.undivided_bytes + -(-layers // ranks))
    half_bytes = -(-model.half_bytes * weights // max(1, model.weight_bytes))
    cache = -(-held * model.cache_per_token // ranks)
    return attrs.evolve(model, weight_bytes=weights, half_bytes=half_bytes, cache_per_token=cache, plain_bytes=None)


@attrs.frozen
class HostFile:
    """The content of a hosts file."""

    hosts: tuple[RankHost, ...]
    """By rank, from 0."""
    backend: str | None = None
    """The MLX communication backend that the file asks for; None where it names none."""


MOST_HOSTS = 64

RING = "ring"
"""The MLX communication backend in use."""

BACKENDS = ("any", RING, "jaccl", "jaccl-ring", "nccl", "mpi")
"""The communication backends that MLX's launcher knows."""

USED_BACKENDS = (None, "any", RING)
"""The backends of a hosts file that the ring satisfies."""

_FILE_FIELDS = ("hosts", "backend", "envs")
_HOST_FIELDS = ("ssh", "ips", "python", "rdma")
"""The fields of MLX's launcher, and ``python``."""


def read_hosts(document: object) -> HostFile:
    """Read a hosts file: ``[{"ssh": "name", "ips": ["192.0.2.1"]}, …]``, rank 0 first.

    Args:
        document: The parsed JSON. ``envs`` and ``rdma``, fields of MLX's launcher, are accepted and not used.

    Raises:
        ValidationError: Names the entry and the field at fault.
    """
    fields = document if isinstance(document, dict) else {"hosts": document}
    _require_known(fields, _FILE_FIELDS, "", "the file")
    entries, backend = fields.get("hosts"), fields.get("backend")
    if not isinstance(entries, list) or len(entries) < 2:
        raise ValidationError("hosts: there must be a list of two hosts or more", hint=_EXAMPLE)
    if len(entries) > MOST_HOSTS:
        raise ValidationError(f"hosts: it lists {len(entries)}, and {MOST_HOSTS} is the most")
    if backend not in (None, "", *BACKENDS):
        raise ValidationError(f"backend: {_shown(backend)} is none of {', '.join(BACKENDS)}")
    hosts = tuple(_host(entry, f"host {number}") for number, entry in enumerate(entries, 1))
    numbers: dict[str, int] = {}
    for number, host in enumerate(hosts, 1):
        first = numbers.setdefault(host.address, number)
        if first != number and not ipaddress.ip_address(host.address).is_loopback:
            fault = f"host {number} ({host.ssh}): ips: {host.address} is the address of two hosts, {first} and {number}"
            raise ValidationError(fault, hint="Give each rank a host of its own.")
    return HostFile(hosts, backend or None)


_EXAMPLE = 'For example: [{"ssh": "mac1", "ips": ["192.0.2.1"]}, {"ssh": "mac2", "ips": ["192.0.2.2"]}]'


def _require_known(fields: Mapping[str, object], known: Sequence[str], prefix: str, owner: str) -> None:
    for field in fields:
        if field not in known:
            near = nearest(field, known)
            hint = f"Did you mean {near[0]}?" if near else f"Known fields: {', '.join(known)}."
            if field in ("port", "ports"):
                hint = "Leave it out: free ports are chosen at each start."
            raise ValidationError(f"{prefix}{_shown(field)} is no field of {owner}", hint=hint)


def _shown(value: object) -> str:
    """Return a value for an error message, truncated."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


_SHOWN_CHARACTERS = 60


def _host(entry: object, where: str) -> RankHost:
    if not isinstance(entry, dict):
        raise ValidationError(f"{where} is no object with ssh and ips", hint=_EXAMPLE)
    ssh, ips, python = entry.get("ssh"), entry.get("ips"), entry.get("python")
    if not isinstance(ssh, str) or not _SSH_NAME.fullmatch(ssh):
        raise ValidationError(f"{where}: ssh must be a name for ssh, such as mac1 or ada@mac1", hint=_EXAMPLE)
    where = f"{where} ({_shown(ssh)[1:-1]})"
    _require_known(entry, _HOST_FIELDS, f"{where}: ", "a host")
    if not isinstance(ips, list) or not ips or not all(isinstance(ip, str) for ip in ips):
        raise ValidationError(f"{where}: ips must list the host's IP address", hint=_EXAMPLE)
    addresses = [_address(ip, where) for ip in ips]
    if python is not None and (not isinstance(python, str) or not _PYTHON.fullmatch(python)):
        raise ValidationError(f"{where}: python must be the absolute path of an interpreter")
    return RankHost(ssh, addresses[0], python)


_PYTHON = re.compile(r"/[^\x00-\x1f\x7f]+")


def _address(text: str, where: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        fault = f"{where}: ips: {_shown(text)} is no IP address"
        if re.fullmatch(r"[\d.]+:\d+|\[.*\]:\d+", text):
            raise ValidationError(fault, hint="Leave the port out: free ports are chosen at each start.") from None
        raise ValidationError(fault, hint="Give the address of the network that ranks shall use, no name.") from None
    if address.version != 4 or address.is_unspecified or address.is_multicast or address == _BROADCAST:
        raise ValidationError(f"{where}: ips: {address} is not the IPv4 address of one network interface")
    return str(address)


_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


@attrs.frozen
class HostAccount:
    """A host's account of itself and of a model; None for what it did not report."""

    reading: MemoryReading | None = None
    versions: Mapping[str, str] | None = None
    """Name and version of each package that must be equal on all hosts."""
    digest: str | None = None
    """Digest of the content of the model's files there."""
    backends: Mapping[str, bool] | None = None
    """Name of each MLX communication backend, and whether it is available there."""
    is_absent: bool = False
    """Whether it reports that it does not have the model."""
    cut: str | None = None
    """How the model is divided, ``tensor`` or ``pipeline``; reported by the first host only."""
    whole: str | None = None
    """Why the model cannot be divided."""
    problem: str | None = None
    """Why something is unknown, in a sentence."""


def name_everywhere(handle: ModelHandle) -> str:
    """Return the name by which other hosts find a model: the path of a workspace, else name and revision."""
    name = handle.directory if handle.origin is Origin.WORKSPACE else handle.name
    return name if handle.revision is None else f"{name}@{handle.revision}"


class HostFiles(enum.Enum):
    """How a host's files of a model compare with the first host's."""

    SAME = "same"
    OTHER = "other"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@attrs.frozen
class HostShare:
    """A host's share of a model."""

    host: RankHost
    verdict: MemoryVerdict
    """Whether the share fits into the host's memory."""
    files: HostFiles
    problem: str | None
    """Why something is unknown, else the first package whose version differs from the first host's."""


@attrs.frozen
class SpreadModel:
    """A model over hosts, judged before it is started."""

    shares: tuple[HostShare, ...]
    """By rank, from 0."""
    cut: str | None
    """How the model is divided, ``tensor`` or ``pipeline``; None when it cannot be divided, or that is unknown."""
    reason: str | None
    """Why it cannot be divided, or why that is unknown."""

    @classmethod
    def judged(cls, hosts: Sequence[RankHost], accounts: Sequence[HostAccount], share: MemoryVerdict) -> "SpreadModel":
        """Judge the accounts of the hosts.

        Args:
            hosts: By rank, from 0.
            accounts: Their accounts, in the same order.
            share: The estimate for the share of one rank.
        """
        first = accounts[0]
        machines = ["" if rank == 0 or host.is_here else host.ssh for rank, host in enumerate(hosts)]
        shares = tuple(
            HostShare(
                host,
                _share_verdict(account.reading, share, machines.count(machine)),
                _compared_files(account, first),
                account.problem or _version_difference(account, first),
            )
            for host, machine, account in zip(hosts, machines, accounts, strict=True)
        )
        return cls(shares, first.cut, first.whole or (first.problem if first.cut is None else None))


def _share_verdict(reading: MemoryReading | None, share: MemoryVerdict, held: int) -> MemoryVerdict:
    """Return the verdict for one share on a machine that holds ``held`` of them."""
    budget = None if reading is None else reading.budget
    return attrs.evolve(share, fit=fit_of(reading, held * share.needed), budget=budget)


def _version_difference(account: HostAccount, first: HostAccount) -> str | None:
    if account.versions is None or first.versions is None:
        return None
    for name, here in first.versions.items():
        there = account.versions.get(name)
        if there != here:
            return f"it has {name} {there}, and the first host {here}"
    return None


def _compared_files(account: HostAccount, first: HostAccount) -> HostFiles:
    if account.is_absent:
        return HostFiles.ABSENT
    if account.digest is None or first.digest is None:
        return HostFiles.UNKNOWN
    return HostFiles.SAME if account.digest == first.digest else HostFiles.OTHER
