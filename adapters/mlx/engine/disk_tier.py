"""The disk tier of the prefix cache: moves snapshots between the engine's owner thread and a folder.

A snapshot passes three stages. The prefix cache *offers* it during prefill; it is queued, and shares its arrays with
the cache. The owner thread *copies* it to host memory between its steps, one layer at a time, and only every few steps
while anything is generated. A writer thread *writes* it.

The thread of a request looks its prompt up, reads the file and verifies it; the owner thread only creates the arrays,
as an entry of the prefix cache, whose limit bounds their memory.

A snapshot is written when it saves at least ``MIN_TOKENS``, and a ``1 / MIN_GROWTH`` of its own tokens, over the best
file in the folder: an agent's growing prompt is written now and then, not with every turn.
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
from mlxk.adapters.mlx.engine.quantized_cache import layer_bytes
from mlxk.adapters.mlx.engine.sequence import Sequence
from mlxk.adapters.mlx.engine.snapshot_folder import Label, PrefixFolder, token_count
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
"""Fewest tokens that a snapshot must save over the best file in the folder."""

MIN_GROWTH = 16
"""A snapshot must save at least one in so many of its tokens."""

_STEPS_PER_LAYER = 16
"""Steps of the owner thread for each copied layer while anything is generated."""

_MAX_ATTEMPTS = 3
"""Files read for a prompt while each of them is damaged."""

_POLL_SECONDS = 0.02
"""Interval of checking whether the writer has caught up."""

_CLOSING_SECONDS = 5.0
"""Time to write pending snapshots when the engine is closed."""

VERSIONS = f"{__version__} mlx {version('mlx')} mlx-lm {version('mlx-lm')}"
"""The versions of the programs that decide the values in a cache and its file format."""


@attrs.define(eq=False)
class _PendingSnapshot:
    """A snapshot that is offered or being copied."""

    identity: PrefixIdentity
    tokens: bytes
    cache: list[Any]
    size_bytes: int
    label: Label | None = None
    """Set when copying begins."""
    layout: list[Any] = attrs.field(factory=list)
    tensors: list[Tensor] = attrs.field(factory=list)


@attrs.frozen(eq=False)
class FetchedSnapshot:
    """A snapshot that was read from disk for a sequence."""

    name: str
    identity: PrefixIdentity
    snapshot: Snapshot


class DiskTier:
    """The disk tier of one engine.

    Args:
        limits: The folder and its limits.
        log: Receives failures.
        clock: Limits the time that closing takes.
        cache_bytes: Limit of the prefix cache in memory.

    Raises:
        StorageError: The folder cannot be used.
    """

    def __init__(self, limits: DiskLimits, log: EventLog, clock: Clock, cache_bytes: int) -> None:
        self.folder = PrefixFolder(limits.directory, limits.max_bytes, VERSIONS, log, limits.free_share)
        self._log = log
        self._clock = clock
        self._device = f"{mx.default_device()} {mx.device_info().get('device_name', '')}"
        self._hits = self._misses = 0
        self._pending: deque[_PendingSnapshot] = deque()
        self._max_pending_bytes = cache_bytes // 2
        """Limit of the pending snapshots if there are several: they hold memory that the prefix cache has evicted."""
        self._steps = 0
        self._unstorable: set[str] = set()
        """Models whose caches cannot be stored; each is logged once."""
        self._lock = threading.RLock()
        """Held while the next two change; reentrant, since the finalizer of a fetched snapshot may run anywhere."""
        self._fetched_bytes = 0
        """Size of the snapshots fetched for sequences that have not started; at most the prefix cache's limit."""
        self._writing: dict[str, Label] = {}
        """Names of files that are copied and not written yet."""
        self._writer: threading.Thread | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """Jobs of the writer; None ends it."""

    def fetch(self, sequence: Sequence, prefixes: PrefixCache) -> FetchedSnapshot | None:
        """Read the longest snapshot of a prompt if it saves more than the prefix cache; in the request's thread."""
        if sequence.media is not None or sequence.scored_alternatives is not None:
            return None
        identity, tokens = sequence.cache_identity, pack(sequence.prompt[:-1])
        if len(tokens) < MIN_TOKENS * BYTES_PER_TOKEN:
            return None
        label = self._label(identity)
        for _ in range(_MAX_ATTEMPTS):
            name = self.folder.longest(label, tokens)
            if name is None:
                break
            if token_count(name) < prefixes.covered(identity, tokens) + MIN_TOKENS:
                self.folder.touch(name)
                return None
            size = self.folder.size_of(name)
            if not self._reserve(size, prefixes.max_bytes):
                return None
            snapshot = self.folder.read(name, label)
            if snapshot is not None:
                fetched = FetchedSnapshot(name, identity, snapshot)
                weakref.finalize(fetched, self._reserve, -size)
                return fetched
            self._reserve(-size)
        self._misses += 1
        return None

    def _reserve(self, size: int, limit: int | None = None) -> bool:
        """Add to the fetched bytes, or subtract with a negative size; return False where the limit forbids it."""
        with self._lock:
            if limit is not None and self._fetched_bytes + size > limit:
                return False
            self._fetched_bytes += size
            return True

    def restore(self, fetched: FetchedSnapshot, prefixes: PrefixCache) -> None:
        """Make a fetched snapshot an entry of the prefix cache; on the owner thread."""
        try:
            cache = restored_cache(fetched.snapshot)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            self.folder.discard(fetched.name, type(error).__name__)
            return
        self._hits += prefixes.put(fetched.identity, memoryview(fetched.snapshot.tokens).cast("I").tolist(), cache)

    def offer(self, identity: PrefixIdentity, tokens: bytes, cache: list[Any]) -> None:
        """Queue a snapshot for copying; on the owner thread."""
        if len(tokens) < MIN_TOKENS * BYTES_PER_TOKEN:
            return
        if not can_be_stored(cache):
            if identity.model not in self._unstorable:
                self._unstorable.add(identity.model)
                kinds = sorted({type(layer).__name__ for layer in cache})
                self._log.info("prompts of this model are kept in memory only", caches=",".join(kinds))
            return
        self._pending.append(_PendingSnapshot(identity, tokens, cache, sum(map(layer_bytes, cache))))
        while len(self._pending) > 1 and sum(each.size_bytes for each in self._pending) > self._max_pending_bytes:
            self._pending.popleft()
            self.folder.counters.refusals += 1

    def step(self, *, busy: bool) -> bool:
        """Copy one layer of the oldest pending snapshot, when due; return whether to call again at once.

        Args:
            busy: Whether anything is generated.
        """
        self._steps += 1
        if self._writing:  # one copy in memory at a time
            self._start_writer()
            return False
        if not self._pending:
            return False
        if busy and self._steps % _STEPS_PER_LAYER:
            return True
        try:
            done = self._advance(self._pending[0])
        except Exception as error:  # noqa: BLE001 - boundary: running sequences must not fail with a snapshot
            self._log.warning("a prompt could not be kept on disk", error=type(error).__name__)
            done = True
        if done:
            self._pending.popleft()
        return True

    def close(self) -> None:
        """Write the pending snapshots, for a few seconds at most; on the owner thread."""
        end = self._clock.monotonic() + _CLOSING_SECONDS
        while self._pending and self._clock.monotonic() < end:
            if not self.step(busy=False):
                threading.Event().wait(_POLL_SECONDS)
        self._pending.clear()
        if self._writer is not None:
            self._jobs.put(None)
            self._writer.join(max(0.1, end - self._clock.monotonic()))

    def idle_seconds(self) -> float | None:
        """Return how long the owner thread may sleep before the next step; None without pending snapshots."""
        return _POLL_SECONDS if self._pending else None

    def state(self, tenant: str | None) -> DiskPrefixes:
        """Return the files of a tenant, or of all, and this process's counters; on any thread."""
        entries, size = self.folder.usage(tenant)
        counters = attrs.asdict(self.folder.counters)
        return DiskPrefixes(entries, size, self.folder.max_bytes, hits=self._hits, misses=self._misses, **counters)

    def forget(self, tenant: str | None) -> None:
        """Delete the files and the pending snapshots of a tenant, or of all; on the owner thread."""
        left = [each for each in self._pending if tenant not in (None, each.identity.tenant)]
        self._pending = deque(left)
        self.folder.clear(tenant)
        if self._writer is not None:
            self._jobs.put(lambda: self.folder.clear(tenant))  # after the writes that are queued before it

    def _advance(self, pending: _PendingSnapshot) -> bool:
        """Copy the next layer, and queue the snapshot for writing after the last one; return whether it is done."""
        if pending.label is None and not self._begin_copy(pending):
            return True
        pending.layout.append(stored_layer(pending.cache[len(pending.layout)], pending.tensors))
        if len(pending.layout) < len(pending.cache):
            return False
        self._queue_write(pending)
        return True

    def _begin_copy(self, pending: _PendingSnapshot) -> bool:
        """Set the label; return False where the snapshot saves too few tokens to be written."""
        label = self._label(pending.identity)
        with self._lock:
            writing = [name for name, each in self._writing.items() if each.prefix == label.prefix]
        tokens = len(pending.tokens) // BYTES_PER_TOKEN
        stored = self.folder.longest(label, pending.tokens, writing)
        saved = tokens - (0 if stored is None else token_count(stored))
        pending.label = label
        return saved >= max(MIN_TOKENS, tokens // MIN_GROWTH)

    def _queue_write(self, pending: _PendingSnapshot) -> None:
        label = pending.label
        if label is None:
            raise RuntimeError("a snapshot is written before it is copied")
        snapshot = Snapshot(label.facts, pending.tokens, pending.layout, tuple(pending.tensors))
        name = self.folder.name(label, pending.tokens)
        with self._lock:
            self._writing[name] = label
        self._jobs.put(lambda: self._write(name, snapshot))
        self._start_writer()

    def _start_writer(self) -> None:
        """Start the writer thread unless it runs; without a free thread, a later step tries again."""
        if self._writer is None:
            writer = threading.Thread(target=self._run_writer, name="mlxk-prefix-writer", daemon=True)
            with contextlib.suppress(RuntimeError):
                writer.start()
                self._writer = writer

    def _run_writer(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _write(self, name: str, snapshot: Snapshot) -> None:
        try:
            self.folder.write(name, snapshot)
        except Exception as error:  # noqa: BLE001 - boundary: the writer thread must go on
            self._log.warning("a prompt could not be kept on disk", error=type(error).__name__)
        finally:
            with self._lock:
                self._writing.pop(name, None)

    def _label(self, identity: PrefixIdentity) -> Label:
        facts = {"versions": VERSIONS, "model": identity.model, "kind": identity.kind, "device": self._device}
        return self.folder.label(identity.tenant, facts)
