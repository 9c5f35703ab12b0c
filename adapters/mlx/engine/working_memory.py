"""Memory while sequences are computed: what gives way when it is short.

Nothing is decided once and for all: what is free is read anew for each decision. When it is too little, prefixes are
quantized, where that was asked for, or evicted; then queued sequences wait; then chunks of prompts get smaller, and the
youngest of the running sequences step back into the queue; and one is refused only when it is alone and not even the
smallest chunk of it fits, or its cache cannot grow, since the system would end the process.

Where the system moves memory to swap while sequences are computed, nothing is free, whatever it says: prefixes go,
sequences wait and chunks are small. Nothing that runs is stopped by it: it may be another program's memory that moves.
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
"""What needs less than this is computed without asking the system what is free."""


@attrs.define
class MemoryDecisions:
    """What lack of memory has decided since the engine started; written on the owner thread, readable from any."""

    waits: int = 0
    """Sequences that had to wait though fewer than the most were running."""
    evictions: int = 0
    """Prefixes that made room for sequences."""
    smaller_chunks: int = 0
    """Chunks of prompts that were smaller than they would have been."""
    step_backs: int = 0
    """Running sequences that stepped back into the queue, to be computed again from their tokens."""
    swaps: int = 0
    """Times that the system began to move memory to swap while sequences were computed."""
    refusals: int = 0
    """Sequences that were ended, since nothing else was left."""


_SECONDS_BETWEEN_LOOKS = 2.0
"""At swap, for which macOS takes some milliseconds."""

_SECONDS_OF_GROWTH = 10.0
"""Swap that has grown within these grows."""

_LEAST_GROWTH_BYTES = 128 * 1024**2
"""Systems also move what nobody has used for long, little by little."""


class SwapWatch:
    """Whether swap grows while sequences are computed; used on the owner thread only.

    Args:
        used_bytes: Returns what lies in swap; None where that is unknown.
        clock: Tells when to look again.
        log: Is told when it begins to grow.
        decisions: Counts that.
    """

    def __init__(
        self, used_bytes: Callable[[], int | None], clock: Clock, log: EventLog, decisions: MemoryDecisions
    ) -> None:
        self._used_bytes = used_bytes
        self._clock = clock
        self._log = log
        self._decisions = decisions
        self._seen: deque[tuple[float, int]] = deque()
        """When, and what lay in swap; the newest last."""
        self._look_at = -math.inf
        self.grown_bytes = 0
        """What has been moved to swap in the last seconds; 0 where that is little."""

    def looks(self) -> bool:
        """Look at swap where that is due, and return whether it was; call it while sequences are computed."""
        now = self._clock.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + _SECONDS_BETWEEN_LOOKS
        used = self._used_bytes()
        if used is None:
            return False
        while self._seen and now - self._seen[0][0] > _SECONDS_OF_GROWTH:
            self._seen.popleft()  # so that what was moved while nothing was computed does not count
        self._seen.append((now, used))
        before, grown = self.grown_bytes, used - min(each for _, each in self._seen)
        self.grown_bytes = grown if grown >= _LEAST_GROWTH_BYTES else 0
        if self.grown_bytes and not before:
            self._decisions.swaps += 1
            self._log.warning("memory is moved to swap while answers are computed", grown_bytes=grown)
        return True


class WorkingMemory:
    """Decides with what is free now; used on the owner thread only.

    Args:
        limits: Say what the machine has free, more than which would end the process, and what lies in swap.
        prefixes: The prefix cache, which makes room.
        clock: Tells when to look at swap.
        log: Is told that swap grows.
    """

    def __init__(self, limits: EngineLimits, prefixes: PrefixCache, clock: Clock, log: EventLog) -> None:
        self._free_bytes = limits.free_bytes
        self.prefixes = prefixes
        self.decisions = MemoryDecisions()
        self.swap = SwapWatch(limits.swap_used_bytes, clock, log, self.decisions)

    def evict(self, max_bytes: int) -> None:
        """Have prefixes take no more than a size: quantized, or evicted, which is counted."""
        before = len(self.prefixes)
        self.prefixes.shrink(max(0, max_bytes))
        self.decisions.evictions += before - len(self.prefixes)

    def look(self) -> None:
        """Look at swap where that is due; prefixes make room for what has been moved there."""
        if self.swap.looks() and self.swap.grown_bytes:
            self.evict(self.prefixes.size_bytes - self.swap.grown_bytes)
            return_freed_memory()

    def has_room(self, needed: int) -> bool:
        """Whether a further sequence can have so many bytes, after making room for them as far as possible."""
        return not self.swap.grown_bytes and self.lets_grow(needed)

    def lets_grow(self, needed: int) -> bool:
        """Whether what is computed can have so many bytes more, after making room for them as far as possible."""
        free = self._room(needed)
        return free is None or free >= needed

    def refusal(self, message: str, needed: int) -> InsufficientMemoryError:
        """Count a sequence that is ended for lack of memory, and return its error."""
        self.decisions.refusals += 1
        return InsufficientMemoryError(
            message,
            hint="Send a shorter prompt, or use a smaller model.",
            detail={"needed_bytes": needed, "free_bytes": self._free()},
        )

    @property
    def can_refuse(self) -> bool:
        """Whether the system ends a process that uses more than is free."""
        return self._free_bytes() is not None

    def _room(self, needed: int) -> int | None:
        """Return what is free after making room for so many bytes, as far as possible; None when nothing limits it."""
        if needed < _NEGLIGIBLE_BYTES:
            return None
        free = self._free()
        if free is None or free >= needed:
            return free
        self.evict(self.prefixes.size_bytes - (needed - free))
        mx.clear_cache()
        return_freed_memory()
        return self._free()

    def fitting(self, tokens: int, each: float, *, alone: bool) -> int:
        """Return how many of so many tokens of a prompt can be computed at once.

        Args:
            tokens: At least one.
            each: Bytes that each of them takes.
            alone: Whether no other sequence runs whose end would free memory.

        Raises:
            InsufficientMemoryError: Not even a few fit, and there is nothing to wait for.
        """
        wanted = min(tokens, FIRST_CHUNK) if self.swap.grown_bytes else tokens
        free = self._room(int(wanted * each))
        if free is not None and free < wanted * each:
            fitting, least = int(free / each), min(wanted, SMALLEST_CHUNK)
            if fitting < least and alone and self.can_refuse:
                raise self.refusal("There is no memory left for this prompt.", int(least * each))
            wanted = max(fitting, least)
        self.decisions.smaller_chunks += wanted < tokens
        return wanted

    def _free(self) -> int | None:
        known = (self._free_bytes(), _working_set_left())
        return min((each for each in known if each is not None), default=None)


def _working_set_left() -> int | None:
    """Return what is left of the memory that a GPU uses without becoming slow; None where there is no such limit."""
    if not mx.metal.is_available():
        return None
    return int(mx.device_info()["max_recommended_working_set_size"]) - mx.get_active_memory()
