"""Checks of the hosts over which a model is spread: the facts of an examination, and the rules that find faults.

A host's account of the model is in ``ranks``. Entrypoints word why a fault matters and how to fix it.
"""

import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from mlxk.domain.diagnosis import CheckGroup, Fault, Finding
from mlxk.domain.models.footprint import MemoryFit, MemoryReading
from mlxk.domain.ranks import RING, USED_BACKENDS, HostAccount, HostFiles, HostShare, RankHost, SpreadModel
from mlxk.domain.text import in_one_unit

FIRST_OF_HOST = "reached"
"""The first check of each host."""


@attrs.frozen
class HostFacts:
    """The facts about a host; for a host that did not answer only the reason."""

    host: RankHost
    obstacle: Fault | None = None
    """Why it did not answer; None when it did."""
    obstacle_message: str = ""
    """The same, in the words of ssh or of the program there."""
    seconds: float = 0.0
    """Time to its first answer."""
    python: str = ""
    """The version of its interpreter."""
    versions: Mapping[str, str | None] = attrs.field(factory=dict)
    """Name and version of each package that must be equal on all hosts; None where it is not installed."""
    reading: MemoryReading | None = None
    listen_fault: Fault | None = None
    """Why it cannot listen on its address; None when it can."""
    own_address: str | None = None
    """Its source address for connections to the first host; None without a route there."""
    account: HostAccount = attrs.field(factory=HostAccount)
    """Its account of MLX and of the model."""

    @property
    def answers(self) -> bool:
        """Whether it answered."""
        return self.obstacle is None

    @property
    def can_listen(self) -> bool:
        """Whether it answered and can listen on its address."""
        return self.answers and self.listen_fault is None


@attrs.frozen
class LinkFacts:
    """A trial of one connection that the ranks would make."""

    source: RankHost
    """The connecting host."""
    target: RankHost
    """The listening host."""
    round_trip_seconds: float | None = None
    """Median round-trip time; None when it was not measured."""
    bytes_per_second: float | None = None
    """Throughput from source to target; None when it was not measured."""
    came_from: str | None = None
    """The local address of the connection at the source."""
    problem: str | None = None
    """Why the link was not measured, in words."""


@attrs.frozen
class HostQuestion:
    """What an examination asks of the hosts."""

    seconds: float
    """Time without an answer after which a host counts as silent."""
    name: str | None = None
    """Name of the model; None to ask about no model."""
    backends: Sequence[str] = ()
    """The libraries that can run the model."""
    links: bool = True
    """Whether to measure the links between the hosts."""


@attrs.frozen
class Examination:
    """Facts about hosts and the links between them."""

    hosts: tuple[HostFacts, ...]
    """By rank, from 0."""
    links: tuple[LinkFacts, ...]
    """The links that were tried."""


Notify = Callable[[str], None]
"""Callback for the current step, in a few words; called on any thread."""

Examine = Callable[[Sequence[RankHost], HostQuestion, Notify], Examination]
"""Examines hosts, of which the first is this machine, and their links; it leaves no process running there."""


def links_between(count: int) -> tuple[tuple[int, int], ...]:
    """Return the connections as pairs of ranks: each rank to the next one in the ring, and all to rank 0."""
    ring = [(rank, (rank + 1) % count) for rank in range(count)]
    return (*ring, *((rank, 0) for rank in range(1, count - 1)))


def judge_hosts(
    found: Examination, backend: str | None, spread: SpreadModel | None, model: str | None
) -> Iterator[Finding]:
    """Yield the findings about hosts, by rank, then those about links.

    Args:
        found: The result of the examination.
        backend: The MLX communication backend that the hosts file asks for.
        spread: The model over these hosts; None when no model is examined.
        model: Name of the model.
    """
    first = found.hosts[0]
    for index, facts in enumerate(found.hosts):
        yield _reached(facts, index == 0)
        if facts.answers:
            yield _versions(facts, first)
            yield _address(facts, index)
            yield _ring(facts)
            yield _memory(facts, spread.shares[index] if spread else None)
            if spread and model:
                yield _files(spread.shares[index], facts, first, model)
    if spread is not None and first.answers:
        yield _division(spread, len(found.hosts))
    if backend not in USED_BACKENDS:
        seen = f"the file asks for {backend}; ranks exchange by MLX's ring over TCP"
        yield Finding("backend", CheckGroup.LINKS, seen, Fault.BACKEND_NOT_USED)
    yield from map(_link, found.links)
    planned = len(links_between(len(found.hosts)))
    if len(found.links) < planned:
        seen = f"{planned - len(found.links)} of {planned} connections could not be tried"
        yield Finding("links", CheckGroup.LINKS, seen, Fault.LINKS_NOT_MEASURED)
    yield _trust(found)


def _finding(check: str, facts: HostFacts, seen: str, fault: Fault | None = None, subject: str = "") -> Finding:
    return Finding(check, CheckGroup.HOSTS, seen, fault, subject or facts.host.ssh, facts.host.ssh)


def _reached(facts: HostFacts, is_first: bool) -> Finding:
    here = is_first or facts.host.is_here
    if facts.obstacle is not None:
        return _finding(FIRST_OF_HOST, facts, facts.obstacle_message, facts.obstacle)
    how = "it is this machine" if here else "ssh reaches it without a question"
    return _finding(FIRST_OF_HOST, facts, f"{how}; it answers after {facts.seconds:.1f} s")


def _versions(facts: HostFacts, first: HostFacts) -> Finding:
    listed = ", ".join(f"{name} {version or 'is not installed'}" for name, version in facts.versions.items())
    others = [name for name, version in first.versions.items() if facts.versions.get(name) != version]
    missing = [name for name, version in facts.versions.items() if version is None]
    seen = f"{listed}, Python {facts.python}"
    if others:
        wanted = ", ".join(f"{name} {first.versions[name]}" for name in others)
        return _finding("versions", facts, f"{seen}; the first host has {wanted}", Fault.VERSION_DIFFERS, wanted)
    return _finding("versions", facts, seen, Fault.MISSING_PACKAGE if missing else None)


def _address(facts: HostFacts, index: int) -> Finding:
    address, own = facts.host.address, facts.own_address
    if facts.listen_fault is Fault.ADDRESS_ELSEWHERE:
        seen = f"{address} is no address of this host"
        if own is not None and index:
            seen += f"; by {own} it reaches the first host"
        return _finding("address", facts, seen, facts.listen_fault, address)
    if facts.listen_fault is not None:
        return _finding("address", facts, f"no port of {address} is free", facts.listen_fault, address)
    is_public = ipaddress.ip_address(address).is_global
    fault = Fault.ADDRESS_PUBLIC if is_public else None
    seen = f"{address} is its address" + (", and one of the public network" if is_public else ", with free ports")
    return _finding("address", facts, seen, fault, address)


def _ring(facts: HostFacts) -> Finding:
    available = facts.account.backends
    if available is None:
        return _finding("backend", facts, facts.account.problem or "MLX does not answer", Fault.BACKEND_MISSING)
    others = [name for name, is_there in available.items() if is_there and name != RING]
    seen = "MLX has the ring" if available.get(RING) else "MLX has no ring"
    seen += f", and {', '.join(others)}" if others else ""
    return _finding("backend", facts, seen, None if available.get(RING) else Fault.BACKEND_MISSING)


def _memory(facts: HostFacts, share: HostShare | None) -> Finding:
    if facts.reading is None:
        return _finding("memory", facts, "it does not say how much memory it has", Fault.MEMORY_UNKNOWN)
    free, total = in_one_unit(facts.reading.available, facts.reading.total)
    seen = f"{free} of {total} memory are free"
    if share is None or share.verdict.budget is None:
        return _finding("memory", facts, seen)
    needed, budget = in_one_unit(share.verdict.needed, share.verdict.budget)
    fault = Fault.SHARE_TOO_LARGE if share.verdict.fit is MemoryFit.EXCEEDS else None
    return _finding("memory", facts, f"{seen}; its share takes about {needed} of {budget}", fault)


def _files(share: HostShare, facts: HostFacts, first: HostFacts, model: str) -> Finding:
    if share.files is HostFiles.SAME:
        seen = "they are here" if facts is first else "they are the same as on the first host"
        return _finding("model", facts, f"files of {model}: {seen}", None)
    if share.files is HostFiles.ABSENT:
        return _finding("model", facts, f"{model} is not there", Fault.MODEL_ABSENT, model)
    if share.files is HostFiles.OTHER:
        seen = f"files of {model}: they are others than on the first host"
        return _finding("model", facts, seen, Fault.MODEL_DIFFERS, model)
    why = facts.account.problem or "the first host has none to compare them with"
    return _finding("model", facts, f"files of {model}: {why}", Fault.MODEL_NOT_COMPARED, model)


_CUTS = {"tensor": "every layer is cut", "pipeline": "the layers are distributed"}


def _division(spread: SpreadModel, count: int) -> Finding:
    if spread.cut is not None:
        return Finding("division", CheckGroup.MODELS, f"{_CUTS[spread.cut]} over {count} hosts")
    return Finding("division", CheckGroup.MODELS, spread.reason or "it is not known how", Fault.MODEL_INDIVISIBLE)


def _link(link: LinkFacts) -> Finding:
    ends = f"{link.source.ssh} to {link.target.ssh}"
    if link.round_trip_seconds is None or link.bytes_per_second is None:
        seen = f"{ends} at {link.target.address}: {link.problem}"
        return Finding("link", CheckGroup.LINKS, seen, Fault.LINK_BROKEN, link.target.address)
    seen = f"{ends}: {link.round_trip_seconds * 1000:.2f} ms, {link.bytes_per_second / 1e6:.1f} MB/s"
    if link.came_from in (None, link.source.address) or ipaddress.ip_address(link.target.address).is_loopback:
        return Finding("link", CheckGroup.LINKS, seen)
    seen += f", from {link.came_from} and not from {link.source.address}"
    return Finding("link", CheckGroup.LINKS, seen, Fault.LINK_ELSEWHERE, link.target.address)


def _trust(found: Examination) -> Finding:
    seen = "what ranks exchange is neither encrypted nor signed: this network is trusted"
    if all(ipaddress.ip_address(facts.host.address).is_loopback for facts in found.hosts):
        seen = "what ranks exchange does not leave this machine"
    return Finding("network", CheckGroup.LINKS, seen)
