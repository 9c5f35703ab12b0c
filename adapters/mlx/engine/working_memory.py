"""Memory pressure while sequences are computed: what gives way, in which order.

Every decision reads the free memory anew. When it is too little, prefix cache entries are quantized, where the server
is set so, or evicted; then queued sequences wait; then prefill chunks get smaller, and the youngest running sequences
are preempted back into the queue. A sequence fails only when it is alone and not even the smallest chunk fits, or its
KV cache cannot grow: otherwise the system would end the process.

While the system moves memory to swap during computation, free memory counts as none, whatever the system reports:
prefixes are evicted, sequences wait and chunks are small. Running sequences continue, since the swapped memory may be
another program's.
"""

import math
from collections import deque
from collections.abc import Callable

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.chunk_policy import FIRST_CHUNK, SMALLEST_CHUNK
from mlxk.adapters.mlx.engine.prefix_cache import PrefixCache
from mlxk.adapters.mlx.memory import EngineLimits, return_freed_memory
from mlxk.application.ports.system import Clock, EventLog
from mlxk.domain.errors import InsufficientMemoryError

_NEGLIGIBLE_BYTES = 32 * 1024**2
"""Requests for less memory than this are granted without reading the system's free memory."""


@attrs.define
class MemoryDecisions:
    """Counts of what memory pressure caused since the engine started; written on the owner thread, read on any."""

    waits: int = 0
    """Sequences that waited for memory, not for the limit of running sequences."""
    evictions: int = 0
    """Prefixes evicted to make room for sequences."""
    smaller_chunks: int = 0
    """Prefill chunks that were made smaller."""
    step_backs: int = 0
    """Running sequences preempted back into the queue, to be computed again from their tokens."""
    swaps: int = 0
    """Times that the system began to move memory to swap while sequences were computed."""
    refusals: int = 0
    """Sequences that failed for lack of memory."""


_POLL_SECONDS = 2.0
"""Interval of reading the swap usage, which takes some milliseconds on macOS."""

_GROWTH_WINDOW_SECONDS = 10.0
"""Swap growth is measured over this time."""

_LEAST_GROWTH_BYTES = 128 * 1024**2
"""Growth below this is ignored: systems also swap out idle memory, little by little."""


class SwapWatch:
    """Detects that swap grows while sequences are computed; used on the owner thread only.

    Args:
        used_bytes: Returns the swap in use; None where that is unknown.
        clock: Times the readings.
        log: Receives a warning when swap begins to grow.
        decisions: Its ``swaps`` counts these times.
    """

    def __init__(
        self, used_bytes: Callable[[], int | None], clock: Clock, log: EventLog, decisions: MemoryDecisions
    ) -> None:
        self._used_bytes = used_bytes
        self._clock = clock
        self._log = log
        self._decisions = decisions
        self._readings: deque[tuple[float, int]] = deque()
        """Time and swap in use, oldest first."""
        self._next_poll = -math.inf
        self.grown_bytes = 0
        """Growth of swap within the last ``_GROWTH_WINDOW_SECONDS``; 0 where it is small."""

    def poll(self) -> bool:
        """Read the swap usage when due, and return whether it was read; call while sequences are computed."""
        now = self._clock.monotonic()
        if now < self._next_poll:
            return False
        self._next_poll = now + _POLL_SECONDS
        used = self._used_bytes()
        if used is None:
            return False
        while self._readings and now - self._readings[0][0] > _GROWTH_WINDOW_SECONDS:
            self._readings.popleft()  # growth during an idle time does not count
        self._readings.append((now, used))
        before, grown = self.grown_bytes, used - min(each for _, each in self._readings)
        self.grown_bytes = grown if grown >= _LEAST_GROWTH_BYTES else 0
        if self.grown_bytes and not before:
            self._decisions.swaps += 1
            self._log.warning("memory is moved to swap while answers are computed", grown_bytes=grown)
        return True


class WorkingMemory:
    """Grants memory to sequences by what is free now; used on the owner thread only.

    Args:
        limits: Has the functions that read the machine's free memory and swap.
        prefixes: The prefix cache, which is shrunk to make room.
        clock: Times the readings of swap.
        log: Receives a warning when swap begins to grow.
    """

    def __init__(self, limits: EngineLimits, prefixes: PrefixCache, clock: Clock, log: EventLog) -> None:
        self._free_bytes = limits.free_bytes
        self.prefixes = prefixes
        self.decisions = MemoryDecisions()
        self.swap = SwapWatch(limits.swap_used_bytes, clock, log, self.decisions)

    def evict(self, max_bytes: int) -> None:
        """Shrink the prefix cache to a size by quantizing or evicting entries; evictions are counted."""
        before = len(self.prefixes)
        self.prefixes.shrink(max(0, max_bytes))
        self.decisions.evictions += before - len(self.prefixes)

    def poll_swap(self) -> None:
        """Read the swap usage when due; where swap has grown, shrink the prefix cache by as many bytes."""
        if self.swap.poll() and self.swap.grown_bytes:
            self.evict(self.prefixes.size_bytes - self.swap.grown_bytes)
            return_freed_memory()

    def can_admit(self, needed: int) -> bool:
        """Whether a further sequence can have so many bytes, after making room for them as far as possible."""
        return not self.swap.grown_bytes and self.can_grow(needed)

    def can_grow(self, needed: int) -> bool:
        """Whether the running sequences can have so many more bytes, after making room as far as possible."""
        free = self._make_room(needed)
        return free is None or free >= needed

    def refusal(self, message: str, needed: int) -> InsufficientMemoryError:
        """Count a sequence that fails for lack of memory, and return its error."""
        self.decisions.refusals += 1
        return InsufficientMemoryError(
            message,
            hint="Send a shorter prompt, or use a smaller model.",
            detail={"needed_bytes": needed, "free_bytes": self._free()},
        )

    @property
    def can_refuse(self) -> bool:
        """Whether the machine's free memory is known, so that exceeding it would end the process."""
        return self._free_bytes() is not None

    def _make_room(self, needed: int) -> int | None:
        """Evict prefixes where so many bytes are not free; return the free bytes, None without a limit."""
        if needed < _NEGLIGIBLE_BYTES:
            return None
        free = self._free()
        if free is None or free >= needed:
            return free
        self.evict(self.prefixes.size_bytes - (needed - free))
        mx.clear_cache()
        return_freed_memory()
        return self._free()

    def fit_chunk(self, tokens: int, bytes_per_token: float, *, alone: bool) -> int:
        """Return the largest size of a prefill chunk that fits into memory.

        Args:
            tokens: Size of the chunk if memory allows it, at least one.
            bytes_per_token: Memory that each token of the chunk takes.
            alone: Whether no other sequence runs whose end would free memory.

        Raises:
            InsufficientMemoryError: ``SMALLEST_CHUNK`` tokens do not fit, and there is nothing to wait for.
        """
        size = min(tokens, FIRST_CHUNK) if self.swap.grown_bytes else tokens
        free = self._make_room(int(size * bytes_per_token))
        if free is not None and free < size * bytes_per_token:
            fitting, least = int(free / bytes_per_token), min(size, SMALLEST_CHUNK)
            if fitting < least and alone and self.can_refuse:
                raise self.refusal("There is no memory left for this prompt.", int(least * bytes_per_token))
            size = max(fitting, least)
        self.decisions.smaller_chunks += size < tokens
        return size

    def _free(self) -> int | None:
        readings = (self._free_bytes(), _working_set_left())
        return min((each for each in readings if each is not None), default=None)


def _working_set_left() -> int | None:
    """Return the unused part of the GPU's recommended working set, bytes; None where there is no Metal GPU."""
    if not mx.metal.is_available():
        return None
    return int(mx.device_info()["max_recommended_working_set_size"]) - mx.get_active_memory()
