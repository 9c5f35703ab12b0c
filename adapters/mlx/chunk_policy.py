"""The chunk policy: which prompt is computed between two decoding steps, and how many tokens; pure, without MLX.

The scheduler asks for decisions, computes, and reports the times; a simulated machine can do the same. The fairness
rule:

- **Decoding sequences and waiting prompts share the time.** Between two tokens of a decoding sequence there is room for
  one prefill chunk; with more waiting prompts than decoding sequences, for their ratio, at most ``MAX_CHUNKS``. A chunk
  takes as long as ``CHUNK_PASSES`` passes over the weights, and at least ``LEAST_STEPS`` decoding steps, so that a
  large batch does not starve prompts. A chunk includes a remainder of up to half its size, which would cost nearly as
  much as a whole chunk by itself.
- **The wait of a decoding sequence is bounded.** All chunks between two of its tokens take at most ``WAIT_STEPS`` of
  its steps, or ``WAIT_SECONDS`` where that is longer, unless ``SMALLEST_CHUNK`` tokens take more.
- **Prompts alternate.** A chunk goes to the prompt with the fewest remaining tokens, unless the previous chunk skipped
  the oldest prompt, which then gets this one. So a short prompt behind long ones gets the next chunk or the one after
  it, and a long one gets at least every other chunk, however many short ones keep coming.
- **Short prompts share a pass** where reading the weights takes longer than computing the tokens (``together``).
- **A single prompt is fast.** A prompt that is alone in the engine is computed in chunks of a fixed size, the best for
  the device, so that its text does not depend on measured times.

``PassCosts`` measures for each model what steps and chunks cost on this machine. Before it has enough observations, a
chunk has ``FIRST_CHUNK`` tokens.
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
"""Minimum duration of a chunk, in decoding steps: where the step of a large batch takes longer than some passes,
prompts still get two thirds of the time, and soon decode with the others."""

WAIT_STEPS = 32
"""Maximum wait of a running answer between two tokens, in its own steps: four chunks where more prompts wait than
answers run, else one with its remainder. With less, prompts that arrive together would decode in small batches."""

WAIT_SECONDS = 0.05
"""A wait that is always allowed: twenty tokens a second are faster than anyone reads."""

MAX_CHUNKS = 8
"""Maximum number of chunks between two tokens, however many prompts wait."""

FIRST_CHUNK = 64
"""Tokens of a shared chunk of unknown cost: a fraction of a second on any machine that can run the model at all."""

SMALLEST_CHUNK = 4
"""Minimum number of tokens of a shared chunk, however long they take: after a hundred thousand tokens attention may
take longer than eight steps of a short answer."""

_MULTIPLE = 8
"""Larger chunks are multiples of this number, to have few different sizes."""

SINGLE_CHUNK_GPU = 2048
"""Tokens of a chunk of a prompt that is alone, on a GPU: as in mlx-lm."""

SINGLE_CHUNK_CPU = 256
"""The same without a GPU: larger chunks were not faster, and delay cancellation."""

SINGLE_REMAINDER = 32
"""A prompt that is alone: so many last tokens are computed together with the chunk before them."""

_REMEMBERED = 9
"""Observations kept of a cost. Their median is used, so that a pause or a kernel's compilation changes nothing."""

_ENOUGH = 3
"""Fewest observations for a median: the first ones may include the compilation of kernels."""

_SAME_POSITIONS = 1024
"""Size of the first class of positions, within which attention to earlier tokens is a small part of the cost."""

_LEAST_OWN_SHARE = 0.25
"""Smallest share of a chunk's time that is attributed to its tokens, however long a pass seems to take."""


class _Medians:
    """Running medians of a cost that depends on a size, by classes of sizes, each twice as wide as the one before."""

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
    """Measured costs of a model's passes on this machine; used on one thread.

    A chunk takes ``pass_seconds + tokens * token_seconds``; ``token_seconds`` grows with the position, since every
    token attends to all before it.
    """

    def __init__(self) -> None:
        self._steps = _Medians()
        self._tokens = _Medians()

    def observe_step(self, rows: int, seconds: float) -> None:
        """Record the duration of a decoding step of so many sequences."""
        if seconds > 0:
            self._steps.observe(rows, seconds)

    def observe_chunk(self, tokens: int, position: int, seconds: float) -> None:
        """Record the duration of a chunk of so many tokens; ``position`` tokens were before it."""
        if tokens >= SMALLEST_CHUNK and seconds > 0:
            own = max(seconds - self.pass_seconds, seconds * _LEAST_OWN_SHARE)
            self._tokens.observe(position // _SAME_POSITIONS, own / tokens)

    def step_seconds(self, rows: int) -> float | None:
        """Return the duration of a decoding step of so many sequences; None with too few observations."""
        return self._steps.at(rows)

    @property
    def pass_seconds(self) -> float:
        """Duration of one pass over the weights: that of the step with the fewest sequences; 0 while unknown."""
        return self._steps.at(0) or 0.0

    def token_seconds(self, position: int) -> float | None:
        """Return the duration a token of a chunk at a position; None with too few observations."""
        return self._tokens.at(position // _SAME_POSITIONS)

    def chunk_tokens(self, seconds: float, position: int) -> int | None:
        """Return the number of tokens of a chunk with a duration; None while the costs are unknown."""
        token_seconds = self.token_seconds(position)
        if token_seconds is None or self.pass_seconds == 0:
            return None
        fitting = int((seconds - self.pass_seconds) / token_seconds)
        return max(SMALLEST_CHUNK, fitting - fitting % _MULTIPLE)


class WaitingPrompt(Protocol):
    """A prompt in prefill."""

    @property
    @abstractmethod
    def prefill_remaining(self) -> int:
        """Tokens still to compute; an upper bound before the first chunk."""

    @property
    @abstractmethod
    def prefill_position(self) -> int:
        """Tokens computed so far."""

    @property
    @abstractmethod
    def costs(self) -> PassCosts:
        """Costs of its model."""


P = TypeVar("P", bound=WaitingPrompt)


class ChunkPolicy(Generic[P]):
    """Chooses prefill chunks, one turn at a time: a turn is the time between two decoding steps.

    Args:
        single_chunk: Tokens of a chunk of a prompt that is alone.
    """

    def __init__(self, single_chunk: int) -> None:
        self._single_chunk = single_chunk
        self._single = False
        """Whether the prompt is alone in this turn."""
        self._step: float | None = None
        """Duration of one decoding step of every batch together, seconds; None without batches, or when unknown."""
        self._chunks_left = 0.0
        self._seconds_spent = 0.0
        self._oldest_served = True
        """Whether the last chunk went to the oldest prompt."""

    def begin_turn(self, prompts: int, batches: Iterable[tuple[PassCosts, int]]) -> None:
        """Begin a turn.

        Args:
            prompts: Number of prompts in prefill, at least one.
            batches: Costs and number of sequences of each decoding batch.
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
            waiting: The prompts in prefill, oldest first.
            ready: Whether a prompt was completed in this turn. It does not wait for another prompt's chunk, unless
                that completes a prompt, too.
        """
        if not waiting or self._chunks_left <= 0:
            return None
        oldest = waiting[0]
        chosen = min(waiting, key=lambda each: each.prefill_remaining) if self._oldest_served else oldest
        if ready and chosen.prefill_remaining > self._size(chosen) * self._chunks_left:
            return None
        if self._seconds_spent and self._step is not None:
            longest = self._chunk_seconds(chosen.costs) * _WITH_REMAINDER
            if self._seconds_spent + longest > max_wait(self._step):
                return None
        self._oldest_served = chosen is oldest
        return chosen

    def tokens(self, prompt: P) -> int:
        """Return the size of the chosen prompt's next chunk; call after the prefix cache was looked up."""
        size, remaining = self._size(prompt), prompt.prefill_remaining
        chunk = min(size, math.ceil(size * self._chunks_left))
        remainder = SINGLE_REMAINDER if self._single else size // 2
        return remaining if remaining <= chunk + remainder else chunk

    def together(self, prompt: P, others: Iterable[P]) -> list[P]:
        """Return the prompts to complete in one pass: this one, and others of its model if that pays.

        It pays while a prompt's tokens take no longer than the pass over the weights that each prompt would need alone.
        The pass is padded to the longest prompt, and takes no longer than a chunk.

        Args:
            prompt: The chosen prompt.
            others: Further prompts in prefill.
        """
        costs, group = prompt.costs, [prompt]
        token_seconds = costs.token_seconds(prompt.prefill_position)
        if self._single or token_seconds is None:
            return group
        max_tokens = costs.pass_seconds / token_seconds
        pass_tokens = self._size(prompt) * min(1.0, self._chunks_left)
        same_model = [other for other in others if other.costs is costs]
        for other in (prompt, *sorted(same_model, key=lambda each: each.prefill_remaining)):
            longest = max(prompt.prefill_remaining, other.prefill_remaining)
            if not 0 < other.prefill_remaining <= max_tokens or longest * (len(group) + 1) > pass_tokens:
                break
            if other is not prompt:
                group.append(other)
        return group

    def spend(self, prompt: P, tokens: int, seconds: float) -> None:
        """Record a computed chunk of a prompt and its duration."""
        self._chunks_left -= tokens / self._size(prompt)
        self._seconds_spent += seconds

    def shared_chunk(self, costs: PassCosts, position: int = 0) -> int:
        """Return the number of tokens of a shared chunk; ``position`` tokens are before it."""
        tokens = costs.chunk_tokens(self._chunk_seconds(costs), position)
        return min(self._single_chunk, FIRST_CHUNK if tokens is None else tokens)

    def _size(self, prompt: P) -> int:
        return self._single_chunk if self._single else self.shared_chunk(prompt.costs, prompt.prefill_position)

    def _chunk_seconds(self, costs: PassCosts) -> float:
        seconds = CHUNK_PASSES * costs.pass_seconds
        if self._step is None:
            return seconds
        return min(max(seconds, LEAST_STEPS * self._step), max_wait(self._step) / _WITH_REMAINDER)


_WITH_REMAINDER = 1.5
"""Size of a chunk with the largest remainder, in chunks."""


def max_wait(step: float) -> float:
    """Return the maximum wait of a decoding sequence between two tokens, given the duration of its step; seconds."""
    return max(WAIT_SECONDS, WAIT_STEPS * step)
