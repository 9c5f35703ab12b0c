"""Which prompt is computed between two decoding steps, and how many of its tokens: pure decisions, without MLX.

The scheduler asks, computes, and reports what it took; a simulated machine can do the same. The fairness rule:

- **Decoding sequences and waiting prompts share by time.** Between two tokens of a decoding sequence there is room for
  one chunk of a prompt, or for as many as there are waiting prompts to a decoding sequence, at most ``MAX_CHUNKS``.
  A chunk takes as long as ``CHUNK_PASSES`` passes over the weights, and not less than ``LEAST_STEPS`` decoding steps,
  so that a large batch does not starve prompts. A chunk includes a remainder of up to half of it, which would cost
  nearly a whole one by itself.
- **What a decoding sequence waits is bounded.** All chunks between two of its tokens take at most ``WAIT_STEPS`` of its
  steps, or ``WAIT_SECONDS`` where that is longer, unless ``SMALLEST_CHUNK`` tokens take more.
- **Prompts alternate.** A chunk goes to the prompt with the fewest tokens left, unless the previous chunk skipped the
  oldest prompt: then it goes to that one. So a short prompt behind long ones gets the next chunk or the one after it,
  and a long one, however many short ones keep coming, gets at least every other chunk.
- **Short prompts share a pass** where reading the weights takes longer than computing them (``together``).
- **A single prompt is fast.** A prompt that is alone in the engine is computed in chunks of a fixed size, the best one
  of the device, so that its text does not depend on measured times.

``PassCosts`` learns for each model what steps and chunks cost on the machine at hand. Until it knows, a chunk has
``FIRST_CHUNK`` tokens.
"""

import math
import statistics
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

CHUNK_PASSES = 8
"""Duration of a chunk, in passes over the weights. Reading the weights then takes an eighth of it: a longer chunk would
gain less than that, and a running answer would wait longer."""

LEAST_STEPS = 2
"""Duration of a chunk at least, in decoding steps: where the step of a large batch takes longer than some passes,
prompts still get two thirds of the time, and soon decode with the others."""

WAIT_STEPS = 32
"""What a running answer waits at most between two tokens, in its own steps: four chunks, when more prompts wait than
answers run, else one with its remainder. With fewer, prompts that come together would decode in small batches."""

WAIT_SECONDS = 0.05
"""What it may wait in any case: twenty tokens a second are faster than anyone reads."""

MAX_CHUNKS = 8
"""Chunks between two tokens at most, however many prompts wait."""

FIRST_CHUNK = 64
"""Tokens of a shared chunk while nothing is known of its cost: a fraction of a second on any machine that can run the
model at all."""

SMALLEST_CHUNK = 4
"""Tokens of a shared chunk at least, however long they take: after a hundred thousand tokens attention may take longer
than eight steps of an answer that is short."""

_MULTIPLE = 8
"""Larger chunks are multiples of it, to have few different sizes."""

SINGLE_CHUNK_GPU = 2048
"""Tokens at a time of a prompt that is alone, on a GPU: as in mlx-lm."""

SINGLE_CHUNK_CPU = 256
"""The same without a GPU: larger ones were not faster, and cannot be cancelled as soon."""

SINGLE_REMAINDER = 32
"""Last tokens of a prompt that is alone that are computed together with the chunk before them."""

_REMEMBERED = 9
"""Observations of a cost that count. Their median is used: a pause, or the compilation of a kernel, changes nothing."""

_ENOUGH = 3
"""Observations of which the median counts: the first ones may be of kernels that are compiled."""

_SAME_POSITIONS = 1024
"""Positions below it count as the same: attention to earlier tokens is a small part of their cost."""

_LEAST_OWN_SHARE = 0.25
"""Of a chunk's time, what is counted as its tokens' at least, however long a pass seems to take."""


class _Medians:
    """Running medians of a cost that depends on a size, in classes of sizes: each is twice the one before it."""

    def __init__(self) -> None:
        self._observed: dict[int, deque[float]] = {}

    def observe(self, size: int, value: float) -> None:
        self._observed.setdefault(size.bit_length(), deque(maxlen=_REMEMBERED)).append(value)

    def at(self, size: int) -> float | None:
        """Return the median in the class of a size, or in the nearest one, a smaller one first; None without any."""
        known = [each for each, values in self._observed.items() if len(values) >= _ENOUGH]
        if not known:
            return None
        wanted = size.bit_length()
        return statistics.median_low(
            self._observed[max((each for each in known if each <= wanted), default=min(known))]
        )


class PassCosts:
    """What a model's passes cost on this machine, learned while it computes; used on one thread.

    The estimate of a chunk is ``pass_seconds + tokens * token_seconds``; the latter grows with the position, since
    every token attends to all before it.
    """

    def __init__(self) -> None:
        self._steps = _Medians()
        self._tokens = _Medians()

    def observe_step(self, rows: int, seconds: float) -> None:
        """Note what a decoding step of so many sequences took."""
        if seconds > 0:
            self._steps.observe(rows, seconds)

    def observe_chunk(self, tokens: int, position: int, seconds: float) -> None:
        """Note what a chunk of so many tokens took; ``position`` tokens were before it."""
        if tokens >= SMALLEST_CHUNK and seconds > 0:
            own = max(seconds - self.pass_seconds, seconds * _LEAST_OWN_SHARE)
            self._tokens.observe(position // _SAME_POSITIONS, own / tokens)

    def step_seconds(self, rows: int) -> float | None:
        """Return what a decoding step of so many sequences takes; None before it was observed a few times."""
        return self._steps.at(rows)

    @property
    def pass_seconds(self) -> float:
        """What a pass takes that computes next to nothing: the step with the fewest sequences; 0 while unknown."""
        return self._steps.at(0) or 0.0

    def token_seconds(self, position: int) -> float | None:
        """Return what each token of a chunk takes after so many tokens; None before it was observed a few times."""
        return self._tokens.at(position // _SAME_POSITIONS)

    def chunk_tokens(self, seconds: float, position: int) -> int | None:
        """Return how many tokens a chunk of a duration has, None when unknown."""
        each = self.token_seconds(position)
        if each is None or self.pass_seconds == 0:
            return None
        fitting = int((seconds - self.pass_seconds) / each)
        return max(SMALLEST_CHUNK, fitting - fitting % _MULTIPLE)


class WaitingPrompt(Protocol):
    """A prompt that is being computed, or waits for it."""

    @property
    @abstractmethod
    def prefill_remaining(self) -> int:
        """Tokens still to compute; an upper bound before the first chunk."""

    @property
    @abstractmethod
    def prefill_position(self) -> int:
        """Tokens that are computed."""

    @property
    @abstractmethod
    def costs(self) -> PassCosts:
        """Of its model."""


P = TypeVar("P", bound=WaitingPrompt)


class ChunkPolicy(Generic[P]):
    """The decisions, a turn at a time: a turn is what is computed of prompts between two decoding steps.

    Args:
        single_chunk: Tokens at a time of a prompt that is alone.
    """

    def __init__(self, single_chunk: int) -> None:
        self._single_chunk = single_chunk
        self._single = False
        """Whether the prompt is alone in this turn."""
        self._step: float | None = None
        """What the decoding steps take together, seconds; None without one, or when unknown."""
        self._chunks_left = 0.0
        self._seconds_spent = 0.0
        self._oldest_served = True
        """Whether the last chunk went to the oldest prompt."""

    def begin_turn(self, prompts: int, batches: Iterable[tuple[PassCosts, int]]) -> None:
        """Begin a turn.

        Args:
            prompts: Prompts that are being computed, or wait for it; at least one.
            batches: The costs and the number of sequences of each batch that decodes.
        """
        decoding, steps = 0, []
        for costs, rows in batches:
            decoding += rows
            steps.append(costs.step_seconds(rows))
        known = [seconds for seconds in steps if seconds is not None]
        self._step = sum(known) if known and len(known) == len(steps) else None
        self._single = prompts == 1 and not decoding
        self._chunks_left = 1.0 if self._single else min(MAX_CHUNKS, -(-prompts // max(1, decoding)))
        self._seconds_spent = 0.0

    def choose(self, waiting: Sequence[P], *, ready: bool) -> P | None:
        """Return the prompt that gets the next chunk; None when the turn is over.

        Args:
            waiting: The prompts that are not computed, oldest first.
            ready: Whether one was completed in this turn: it does not wait for another prompt's chunk, unless that one
                is completed, too.
        """
        if not waiting or self._chunks_left <= 0:
            return None
        oldest = waiting[0]
        chosen = min(waiting, key=lambda each: each.prefill_remaining) if self._oldest_served else oldest
        if ready and chosen.prefill_remaining > self._size(chosen) * self._chunks_left:
            return None
        if self._seconds_spent and self._step is not None:
            longest = self._chunk_seconds(chosen.costs) * _WITH_REMAINDER
            if self._seconds_spent + longest > most_wait(self._step):
                return None
        self._oldest_served = chosen is oldest
        return chosen

    def tokens(self, prompt: P) -> int:
        """Return how many of its tokens are computed now; asked when it is known what a cache saves."""
        size, remaining = self._size(prompt), prompt.prefill_remaining
        chunk = min(size, math.ceil(size * self._chunks_left))
        remainder = SINGLE_REMAINDER if self._single else size // 2
        return remaining if remaining <= chunk + remainder else chunk

    def together(self, prompt: P, others: Iterable[P]) -> list[P]:
        """Return the prompts that are completed in one pass: this one, and others of its model if that pays.

        It pays while a prompt's tokens take no longer than a pass over the weights, which each prompt would need for
        itself; the pass is padded to the longest of them, and takes no longer than a chunk.

        Args:
            prompt: Chosen now.
            others: Further prompts whose caches can be merged with its own.
        """
        costs, found = prompt.costs, [prompt]
        each = costs.token_seconds(prompt.prefill_position)
        if self._single or each is None:
            return found
        most = costs.pass_seconds / each
        fitting = self._size(prompt) * min(1.0, self._chunks_left)
        same = [other for other in others if other.costs is costs]
        for other in (prompt, *sorted(same, key=lambda each: each.prefill_remaining)):
            longest = max(prompt.prefill_remaining, other.prefill_remaining)
            if not 0 < other.prefill_remaining <= most or longest * (len(found) + 1) > fitting:
                break
            if other is not prompt:
                found.append(other)
        return found

    def spend(self, prompt: P, tokens: int, seconds: float) -> None:
        """Note what was computed of a prompt, and what it took."""
        self._chunks_left -= tokens / self._size(prompt)
        self._seconds_spent += seconds

    def shared_chunk(self, costs: PassCosts, position: int = 0) -> int:
        """Return the tokens of a chunk beside others; ``position`` tokens are before it."""
        tokens = costs.chunk_tokens(self._chunk_seconds(costs), position)
        return min(self._single_chunk, FIRST_CHUNK if tokens is None else tokens)

    def _size(self, prompt: P) -> int:
        return self._single_chunk if self._single else self.shared_chunk(prompt.costs, prompt.prefill_position)

    def _chunk_seconds(self, costs: PassCosts) -> float:
        seconds = CHUNK_PASSES * costs.pass_seconds
        if self._step is None:
            return seconds
        return min(max(seconds, LEAST_STEPS * self._step), most_wait(self._step) / _WITH_REMAINDER)


_WITH_REMAINDER = 1.5
"""Size of a chunk with the largest remainder, in chunks."""


def most_wait(step: float) -> float:
    """Return what a decoding sequence waits at most between two tokens, seconds, given its step."""
    return max(WAIT_SECONDS, WAIT_STEPS * step)
