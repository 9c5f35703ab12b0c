"""The hosts over which a model is spread, in the form of MLX's launcher: a list of names for ssh, with addresses."""

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


@attrs.frozen
class Division:
    """Over which processes a model is spread."""

    hosts: tuple[RankHost, ...]
    """One for each rank, that of rank 0 first, which is this machine."""
    same_files: bool
    """Whether all ranks read the files of one machine, so that their contents need not be compared."""
    silent_seconds: float
    """A rank that shows no sign of life for so long is lost."""

    @classmethod
    def of(cls, local_ranks: int, hosts: Iterable[tuple[str, str, str | None]], silent_seconds: float) -> "Division":
        """Return the division among processes of this machine, or among hosts.

        Args:
            local_ranks: Processes of this machine.
            hosts: The fields of a host for each rank instead.
            silent_seconds: A rank that shows no sign of life for so long is lost.
        """
        listed = tuple(RankHost(*each) for each in hosts)
        here = RankHost(THIS_MACHINE[0], LOOPBACK)
        return cls(listed or (here,) * local_ranks, not listed, silent_seconds)

    @property
    def shares_here(self) -> int:
        """How many of the ranks this machine runs."""
        return 1 + sum(host.is_here for host in self.hosts[1:])

    def held_here(self, model: ModelDescription) -> ModelDescription:
        """Return the description of a model with what all ranks of this machine hold of it: weights and cache."""
        return model if len(self.hosts) == 1 else share_of(model, len(self.hosts), self.shares_here)


def adapter_refused(name: str) -> CapabilityError:
    """Return the error for an adapter that is to be used with a model over several processes."""
    return CapabilityError(
        f"'{name}' is an adapter, and a model is spread over several processes without one.",
        hint=Advice(Remedy.FUSE_FIRST, {"name": name}),
    )


def refuse_adapter(described: ModelDescription) -> None:
    """Refuse an adapter.

    Raises:
        CapabilityError: It is one.
    """
    if described.model_type is ModelType.ADAPTER:
        raise adapter_refused(described.handle.name)


def share_of(model: ModelDescription, ranks: int, held: int = 1) -> ModelDescription:
    """Return the description of a model with what some ranks hold of it: equal parts of its layers, and all else.

    Args:
        model: The whole model.
        ranks: How many there are.
        held: How many of them are meant.
    """
    layers = model.weight_bytes - model.undivided_bytes
    weights = held * (model.undivided_bytes + -(-layers // ranks))
    half_bytes = -(-model.half_bytes * weights // max(1, model.weight_bytes))
    cache = -(-held * model.cache_per_token // ranks)
    return attrs.evolve(model, weight_bytes=weights, half_bytes=half_bytes, cache_per_token=cache, plain_bytes=None)


@attrs.frozen
class HostFile:
    """A file of hosts."""

    hosts: tuple[RankHost, ...]
    """That of rank 0 first."""
    backend: str | None = None
    """The layer of MLX by which the file wants ranks to exchange; None where it leaves that open."""


MOST_HOSTS = 64

RING = "ring"
"""The layer of MLX by which ranks exchange."""

BACKENDS = ("any", RING, "jaccl", "jaccl-ring", "nccl", "mpi")
"""Those that MLX's launcher knows."""

USED_BACKENDS = (None, "any", RING)
"""What a file may ask for that is as it is done."""

_FILE_FIELDS = ("hosts", "backend", "envs")
_HOST_FIELDS = ("ssh", "ips", "python", "rdma")
"""Those of MLX's launcher, and ``python``."""


def read_hosts(document: object) -> HostFile:
    """Return what a file of hosts says: ``[{"ssh": "name", "ips": ["192.0.2.1"]}, …]``, of rank 0 first.

    Args:
        document: Parsed. Of what MLX's launcher knows beside, ``envs`` and ``rdma`` are not used.

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
    known: dict[str, int] = {}
    for number, host in enumerate(hosts, 1):
        before = known.setdefault(host.address, number)
        if before != number and not ipaddress.ip_address(host.address).is_loopback:
            fault = (
                f"host {number} ({host.ssh}): ips: {host.address} is the address of two hosts, {before} and {number}"
            )
            raise ValidationError(fault, hint="Give each rank a host of its own.")
    return HostFile(hosts, backend or None)


_EXAMPLE = 'For example: [{"ssh": "mac1", "ips": ["192.0.2.1"]}, {"ssh": "mac2", "ips": ["192.0.2.2"]}]'


def _require_known(fields: Mapping[str, object], known: Sequence[str], where: str, whose: str) -> None:
    for field in fields:
        if field not in known:
            near = nearest(field, known)
            hint = f"Did you mean {near[0]}?" if near else f"Known fields: {', '.join(known)}."
            if field in ("port", "ports"):
                hint = "Leave it out: free ports are chosen at each start."
            raise ValidationError(f"{where}{_shown(field)} is no field of {whose}", hint=hint)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


_SHOWN = 60
"""Characters of a value in an error."""


def _host(entry: object, where: str) -> RankHost:
    if not isinstance(entry, dict):
        raise ValidationError(f"{where} is no object with ssh and ips", hint=_EXAMPLE)
    ssh, ips, python = entry.get("ssh"), entry.get("ips"), entry.get("python")
    if not isinstance(ssh, str) or not _SSH_NAME.fullmatch(ssh):
        raise ValidationError(f"{where}: ssh must be a name for ssh, such as mac1 or ada@mac1", hint=_EXAMPLE)
    where = f"{where} ({_shown(ssh)[1:-1]})"
    _require_known(entry, _HOST_FIELDS, f"{where}: ", "a host")
    if not isinstance(ips, list) or not ips or not all(isinstance(each, str) for each in ips):
        raise ValidationError(f"{where}: ips must list the host's IP address", hint=_EXAMPLE)
    addresses = [_address(each, where) for each in ips]
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
    if address.version != 4 or address.is_unspecified or address.is_multicast or address == _EVERYONE:
        raise ValidationError(f"{where}: ips: {address} is not the IPv4 address of one network interface")
    return str(address)


_EVERYONE = ipaddress.IPv4Address("255.255.255.255")


@attrs.frozen
class HostAccount:
    """What a host says of itself and of a model; None where it did not say it."""

    reading: MemoryReading | None = None
    versions: Mapping[str, str] | None = None
    """Of what must be equal on all hosts, by name."""
    digest: str | None = None
    """Of the content of the model's files there."""
    backends: Mapping[str, bool] | None = None
    """Layers of MLX by which ranks may exchange, by name, and whether they are available there."""
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
    def judged(cls, hosts: Sequence[RankHost], accounts: Sequence[HostAccount], share: MemoryVerdict) -> "SpreadModel":
        """Judge what hosts say of a model.

        Args:
            hosts: That of rank 0 first.
            accounts: What they say, in the same order.
            share: The estimate for the share of one host.
        """
        first = accounts[0]
        machines = ["" if number == 0 or host.is_here else host.ssh for number, host in enumerate(hosts)]
        shares = tuple(
            HostShare(
                host,
                _on(each.reading, share, machines.count(machine)),
                _files(each, first),
                each.problem or _version(each, first),
            )
            for host, machine, each in zip(hosts, machines, accounts, strict=True)
        )
        return cls(shares, first.cut, first.whole or (first.problem if first.cut is None else None))


def _on(reading: MemoryReading | None, share: MemoryVerdict, held: int) -> MemoryVerdict:
    """Return the verdict for a share on a machine that holds so many of them."""
    budget = None if reading is None else reading.budget
    return attrs.evolve(share, fit=fit_of(reading, held * share.needed), budget=budget)


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
