"""The disk tier of the prefix cache: between the engine's owner thread and a folder of snapshots.

A snapshot has three stages. *Offered* by the prefix cache while a prompt is computed, it is remembered only: its arrays
are the cache's own. It is *copied*, layer by layer, between steps of the owner thread, which are many to a layer while
anything is generated, and *written* by a thread of its own.

A prompt is looked up, and the file read and verified, in the thread of its request; the owner thread only makes the
arrays, as an entry of the prefix cache, by whose limit the memory for them is bounded.

A snapshot is written when it saves at least ``MIN_TOKENS``, and a ``1 / MIN_GROWTH`` of itself, over one that is there
already: so an agent's growing prompt is written now and then, not with every turn.
"""

import contextlib
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import attrs
import mlx.core as mx

from mlxk import __version__
from mlxk.adapters.mlx.engine.prefix_cache import BYTES_PER_TOKEN, PrefixCache, PrefixIdentity, pack
from mlxk.adapters.mlx.engine.quantized_cache import kept_bytes
from mlxk.adapters.mlx.engine.sequence import Sequence
from mlxk.adapters.mlx.engine.snapshot_folder import Label, PrefixFolder, tokens_in
from mlxk.adapters.mlx.engine.snapshots import (
    Snapshot,
    Tensor,
    can_be_stored,
    restored_cache,
    stored_layer,
)
from mlxk.adapters.mlx.memory import DiskLimits
from mlxk.application.ports.system import Clock, EventLog
from mlxk.application.ports.text_generator import DiskPrefixes

MIN_TOKENS = 64
"""Tokens that a snapshot saves over one that is there already, or over none."""

MIN_GROWTH = 16
"""A snapshot saves at least this part of its tokens, one in so many."""

_STEPS_TO_A_LAYER = 16
"""Steps of the owner thread for each copied layer while anything is generated."""

_MOST_TRIES = 3
"""Files that are read for a prompt, if those before are damaged."""

_LOOK_SECONDS = 0.02
"""Time between two checks whether the writer has caught up."""

_CLOSING_SECONDS = 5.0
"""Time to write what is left when the engine is closed."""

VERSIONS = f"{__version__} mlx {version('mlx')} mlx-lm {version('mlx-lm')}"
"""Of what decides which numbers are in a cache, and how they are stored."""


@attrs.define(eq=False)
class _Offered:
    """A snapshot on its way to the folder."""

    identity: PrefixIdentity
    tokens: bytes
    cache: list[Any]
    size_bytes: int
    label: Label | None = None
    """Set when its copying has begun."""
    layout: list[Any] = attrs.field(factory=list)
    tensors: list[Tensor] = attrs.field(factory=list)


@attrs.frozen(eq=False)
class KeptPrompt:
    """A snapshot that was read for a sequence."""

    name: str
    identity: PrefixIdentity
    snapshot: Snapshot


class DiskTier:
    """The tier of one engine.

    Args:
        limits: Where, and how much.
        log: Receives failures.
        clock: Measures the end.
        cache_bytes: Limit of the prefix cache.

    Raises:
        StorageError: The folder cannot be used.
    """

    def __init__(self, limits: DiskLimits, log: EventLog, clock: Clock, cache_bytes: int) -> None:
        self.folder = PrefixFolder(limits.directory, limits.max_bytes, VERSIONS, log, limits.free_share)
        self._log = log
        self._clock = clock
        self._device = f"{mx.default_device()} {mx.device_info().get('device_name', '')}"
        self._hits = self._misses = 0
        self._offered: deque[_Offered] = deque()
        self._most_offered_bytes = cache_bytes // 2
        """What waits to be copied, if that is more than one: the prefix cache may have evicted it."""
        self._steps = 0
        self._unstorable: set[str] = set()
        """Models whose caches cannot be stored, each of which is logged once."""
        self._lock = threading.RLock()
        """Held while the following two change; reentrant, since what was read may be finalized anywhere."""
        self._read_bytes = 0
        """Of what was read for prompts that have not been started, at most as much as the prefix cache may hold."""
        self._writing: dict[str, Label] = {}
        """Names of files that are copied and not written yet."""
        self._writer: threading.Thread | None = None
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """Of the writer; None ends it."""

    def fetch(self, sequence: Sequence, prefixes: PrefixCache) -> KeptPrompt | None:
        """Read what is kept of a prompt, if that is more than the prefix cache has; in the thread of its request."""
        if sequence.media is not None or sequence.scored_alternatives is not None:
            return None
        identity, tokens = sequence.cache_identity, pack(sequence.prompt[:-1])
        if len(tokens) < MIN_TOKENS * BYTES_PER_TOKEN:
            return None
        label = self._label(identity)
        for _ in range(_MOST_TRIES):
            name = self.folder.longest(label, tokens)
            if name is None:
                break
            if tokens_in(name) < prefixes.covered(identity, tokens) + MIN_TOKENS:
                self.folder.touch(name)
                return None
            size = self.folder.size_of(name)
            if not self._takes(size, prefixes.max_bytes):
                return None
            snapshot = self.folder.read(name, label)
            if snapshot is not None:
                kept = KeptPrompt(name, identity, snapshot)
                weakref.finalize(kept, self._takes, -size)
                return kept
            self._takes(-size)
        self._misses += 1
        return None

    def _takes(self, size: int, limit: int | None = None) -> bool:
        """Count bytes that are read and not in the prefix cache yet; return whether so many more may be."""
        with self._lock:
            if limit is not None and self._read_bytes + size > limit:
                return False
            self._read_bytes += size
            return True

    def restore(self, kept: KeptPrompt, prefixes: PrefixCache) -> None:
        """Make what was read an entry of the prefix cache; on the owner thread."""
        try:
            cache = restored_cache(kept.snapshot)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            self.folder.discard(kept.name, type(error).__name__)
            return
        self._hits += prefixes.put(kept.identity, memoryview(kept.snapshot.tokens).cast("I").tolist(), cache)

    def offer(self, identity: PrefixIdentity, tokens: bytes, cache: list[Any]) -> None:
        """Remember a snapshot, to be copied later; on the owner thread."""
        if len(tokens) < MIN_TOKENS * BYTES_PER_TOKEN:
            return
        if not can_be_stored(cache):
            if identity.model not in self._unstorable:
                self._unstorable.add(identity.model)
                kinds = sorted({type(layer).__name__ for layer in cache})
                self._log.info("prompts of this model are kept in memory only", caches=",".join(kinds))
            return
        self._offered.append(_Offered(identity, tokens, cache, sum(map(kept_bytes, cache))))
        while len(self._offered) > 1 and sum(each.size_bytes for each in self._offered) > self._most_offered_bytes:
            self._offered.popleft()
            self.folder.counters.refusals += 1

    def step(self, *, busy: bool) -> bool:
        """Copy one layer, of what was offered first, or not yet; return whether there is more to copy at once.

        Args:
            busy: Whether anything is generated.
        """
        self._steps += 1
        if not self._offered or self._writing:  # one copy in memory at a time
            return False
        if busy and self._steps % _STEPS_TO_A_LAYER:
            return True
        try:
            done = self._advance(self._offered[0])
        except Exception as error:  # noqa: BLE001 - boundary: what runs must not end because a prompt is not kept
            self._log.warning("a prompt could not be kept on disk", error=type(error).__name__)
            done = True
        if done:
            self._offered.popleft()
        return True

    def close(self) -> None:
        """Write what is left, as far as a few seconds allow; on the owner thread."""
        end = self._clock.monotonic() + _CLOSING_SECONDS
        while self._offered and self._clock.monotonic() < end:
            if not self.step(busy=False):
                threading.Event().wait(_LOOK_SECONDS)
        self._offered.clear()
        if self._writer is not None:
            self._orders.put(None)
            self._writer.join(max(0.1, end - self._clock.monotonic()))

    def idle_seconds(self) -> float | None:
        """Return how long the owner thread may sleep before another step; None: until something is offered."""
        return _LOOK_SECONDS if self._offered else None

    def state(self, tenant: str | None) -> DiskPrefixes:
        """Return what is kept for a tenant, or for all, with the totals of this process; on any thread."""
        entries, size = self.folder.held(tenant)
        counters = attrs.asdict(self.folder.counters)
        return DiskPrefixes(entries, size, self.folder.max_bytes, hits=self._hits, misses=self._misses, **counters)

    def forget(self, tenant: str | None) -> None:
        """Delete what is kept for a tenant, or for all, and what is about to be; on the owner thread."""
        left = [each for each in self._offered if tenant not in (None, each.identity.tenant)]
        self._offered = deque(left)
        self.folder.clear(tenant)
        if self._writer is not None:
            self._orders.put(lambda: self.folder.clear(tenant))  # after what it has to write

    def _advance(self, offered: _Offered) -> bool:
        """Copy the next layer of a snapshot, and have it written after the last one; return whether it is done with."""
        if offered.label is None and not self._begin(offered):
            return True
        offered.layout.append(stored_layer(offered.cache[len(offered.layout)], offered.tensors))
        if len(offered.layout) < len(offered.cache):
            return False
        self._write(offered)
        return True

    def _begin(self, offered: _Offered) -> bool:
        """Decide whether a snapshot is written."""
        label = self._label(offered.identity)
        with self._lock:
            pending = [name for name, each in self._writing.items() if each.prefix == label.prefix]
        tokens = len(offered.tokens) // BYTES_PER_TOKEN
        stored = self.folder.longest(label, offered.tokens, pending)
        saved = tokens - (0 if stored is None else tokens_in(stored))
        offered.label = label
        return saved >= max(MIN_TOKENS, tokens // MIN_GROWTH)

    def _write(self, offered: _Offered) -> None:
        label = offered.label
        if label is None:
            raise RuntimeError("a snapshot is written before it is copied")
        snapshot = Snapshot(label.facts, offered.tokens, offered.layout, tuple(offered.tensors))
        name = self.folder.name(label, offered.tokens)
        with self._lock:
            self._writing[name] = label
        self._orders.put(lambda: self._written(name, snapshot))
        if self._writer is None:
            writer = threading.Thread(target=self._run, name="mlxk-prefix-writer", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread to be had: it is written once there is one
                writer.start()
                self._writer = writer

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()

    def _written(self, name: str, snapshot: Snapshot) -> None:
        try:
            self.folder.write(name, snapshot)
        except Exception as error:  # noqa: BLE001 - boundary: the thread goes on with the next one
            self._log.warning("a prompt could not be kept on disk", error=type(error).__name__)
        finally:
            with self._lock:
                self._writing.pop(name, None)

    def _label(self, identity: PrefixIdentity) -> Label:
        facts = {"versions": VERSIONS, "model": identity.model, "kind": identity.kind, "device": self._device}
        return self.folder.label(identity.tenant, facts)
