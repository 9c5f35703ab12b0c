"""What proposes tokens to a sequence: a draft model, or a drafter; and whether it can be used, and is worth its time.

A draft model reads tokens, like the model itself. A drafter is a small network that was trained for one model: it reads
what chosen layers of that model give (EAGLE-3, DFlash), or its last one (MTP). Drafters are mlx-vlm's; which of them
fit is ``loading.drafter``'s matter.

A draft model that is a default, not a wish of the request, is used while its sequence is the only one of its model, and
as long as a token takes less time with it than without, measured on its sequences. The text is the same either way, so
that the clock decides about speed only.

Shapes: L tokens of one sequence; V tokens in the vocabulary; hidden states [1, L, H], H the sizes of all layers that
are read together.
"""

import contextlib
import copy
import functools
import math
import statistics
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import mlx.core as mx
from mlx import nn

from mlxk.adapters.mlx.engine.sampling import BatchSampler, SamplingParameters, exact_logits
from mlxk.adapters.mlx.loading.drafter import LoadedDrafter
from mlxk.adapters.mlx.loading.text_model import PooledModel
from mlxk.domain.errors import CapabilityError, MlxkError, ValidationError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import DEFAULT_DRAFT_TOKENS, GenerationSettings

MOST_READ = 2048
"""Hidden states of a prompt that are kept for a drafter: those of its last tokens."""


class Proposer(Protocol):
    """Proposes the next tokens of one sequence."""

    network: Any
    """The model, which is to be called through this."""
    usual_width: int
    """Tokens that it proposes at a time where nothing says otherwise."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Size of its own KV cache."""

    @abstractmethod
    def is_ready(self, width: int) -> bool:
        """Whether it can propose so many tokens, and go on whichever of them are right."""

    @abstractmethod
    def propose(self, sampling: SamplingParameters, draws: list[float], last: int) -> list[int]:
        """Propose tokens.

        Args:
            sampling: How the sequence is sampled.
            draws: The sequence's random number for each token to propose.
            last: The newest token, which the model has not computed.
        """

    @abstractmethod
    def settle(self, last: int, proposed: list[int], accepted: int, token: int) -> None:
        """Note what came of a step.

        Args:
            last: The newest token before it.
            proposed: None when the step had no proposals.
            accepted: How many of them were right.
            token: The newest token now.
        """


def can_rewind(layer: Any, tokens: int) -> bool:  # noqa: ANN401
    """Whether a layer's cache can compute so many tokens, and forget any number of them."""
    offset, max_size = getattr(layer, "offset", None), getattr(layer, "max_size", math.inf)
    return layer.is_trimmable() and offset is not None and offset + tokens < max_size


class DraftModel(Proposer):
    """A smaller model with the same vocabulary.

    Args:
        network: The model.
        draft: The draft model.
        cache: Its KV cache, holding the prompt except for its last token.
        last: That token.
    """

    usual_width = DEFAULT_DRAFT_TOKENS

    def __init__(self, network: Any, draft: Any, cache: list[Any], last: int) -> None:  # noqa: ANN401
        self.network = network
        self._draft = draft
        self._cache = cache
        self._inputs = [last]
        """What it computes before it proposes: the newest token, and sometimes the previous one."""

    @property
    def size_bytes(self) -> int:
        """Size of its KV cache."""
        return sum(layer.nbytes for layer in self._cache)

    def is_ready(self, width: int) -> bool:
        """Whether so many tokens could be computed and removed again; a sliding window evicts what it leaves."""
        return all(can_rewind(layer, width) for layer in self._cache)

    def propose(self, sampling: SamplingParameters, draws: list[float], last: int) -> list[int]:
        """Propose what it would generate itself, by the random numbers of the sequence."""
        proposed: list[int] = []
        sampler = BatchSampler([sampling])
        for draw in draws:
            logits = exact_logits(self._draft, mx.array([self._inputs]), self._cache)[:, -1, :]
            token: Any = sampler.sample(logits, [draw] if sampler.drawn else [])[0].item()
            proposed.append(token)
            self._inputs = [token]
        return proposed

    def settle(self, last: int, proposed: list[int], accepted: int, token: int) -> None:
        """Remove what was rejected from its cache."""
        surplus = len(proposed) - accepted - 1
        for layer in self._cache:
            if surplus > 0:
                layer.trim(surplus)
        if proposed:
            # It has not computed its own last proposal; when that was accepted, it still must.
            self._inputs = [proposed[-1]] if accepted == len(proposed) else []
        self._inputs.append(token)


class ReadNetwork:
    """A model that keeps the hidden states of the tokens that it computes, for a drafter.

    Args:
        network: The model.
        modules: What of it to read, in order.
    """

    def __init__(self, network: Any, modules: list[nn.Module]) -> None:  # noqa: ANN401
        self.network = network
        self._modules = modules
        self._tokens: list[int] = []
        self._states: list[mx.array] = []

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        """Compute logits, shape [1, L, V], of tokens, shape [1, L]."""
        found: dict[int, mx.array] = {}
        with contextlib.ExitStack() as stack:
            for identity, module in {id(each): each for each in self._modules}.items():  # one may be read twice
                stack.enter_context(_read(module, functools.partial(found.__setitem__, identity)))
            logits: mx.array = self.network(inputs, cache=cache)
        state = mx.concatenate([found[id(each)] for each in self._modules], axis=-1)
        # Else it would hold on to all that led to it.
        mx.async_eval(state)  # type: ignore[no-untyped-call]
        tokens: Any = inputs[0].tolist()
        self._tokens = (self._tokens + tokens)[-MOST_READ:]
        self._states.append(state)
        while self._states[0].shape[1] <= sum(each.shape[1] for each in self._states) - MOST_READ:
            self._states.pop(0)
        return logits

    def take(self) -> tuple[list[int], Any]:
        """Return the tokens since the last call, and their hidden states, shape [1, L, H]; None without any."""
        tokens, states = self._tokens, self._states
        self._tokens, self._states = [], []
        return tokens, mx.concatenate(states, axis=1)[:, -len(tokens) :] if states else None


@contextlib.contextmanager
def _read(module: nn.Module, note: Callable[[mx.array], None]) -> Iterator[None]:
    """Have a module hand over what it returns; on the owner thread, which alone computes with it."""
    kind: Any = type(module)
    module.__class__, module.note = _reading(kind), note
    try:
        yield
    finally:
        module.__class__ = kind
        del module.note


@functools.cache
def _reading(kind: Any) -> Any:  # noqa: ANN401 - a class of modules
    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        found = kind.__call__(module, *args, **kwargs)
        module.note(found[0] if isinstance(found, tuple) else found)
        return found

    return type(kind.__name__, (kind,), {"__call__": call})


class Drafter(Proposer):
    """A drafter, which continues what it has read of its model.

    The text does not depend on it, so that it may begin with a part of the context: what the prefix cache had of the
    prompt is not computed, and was never read.

    Args:
        reading: The model, which has computed the prompt except for its last token.
        drafter: Made for it.
    """

    def __init__(self, reading: ReadNetwork, drafter: LoadedDrafter) -> None:
        self.network = reading
        self.usual_width = drafter.draft_tokens
        self._in_blocks = drafter.in_blocks
        # Shallow: weights are shared, what belongs to a sequence is not.
        self._drafter = copy.copy(drafter.network)
        self._cache = self._drafter.reset(reading.network)
        self._tokens, self._states = reading.take()
        self._begun = self._lost = False

    @property
    def size_bytes(self) -> int:
        """Size of its KV cache."""
        return sum(layer.nbytes for layer in self._cache if getattr(layer, "keys", None) is not None)

    def is_ready(self, width: int) -> bool:
        """Whether it has read something, and all since it began."""
        return self._states is not None and not self._lost

    def propose(self, sampling: SamplingParameters, draws: list[float], last: int) -> list[int]:
        """Propose its likeliest tokens."""
        if not self._in_blocks and not self._begun:
            read = mx.array([self._tokens])
            self._drafter.prefill_from_target_hidden(read, self._states, last, _likeliest, mx.int32, greedy=True)
        self._begun = True
        options = {} if self._in_blocks else {"greedy": True}
        block = (last, self._states, self._cache, len(draws) + 1, _likeliest, mx.int32)
        found: Any = self._drafter.draft_block(*block, **options)[0].tolist()
        return list(found)

    def settle(self, last: int, proposed: list[int], accepted: int, token: int) -> None:
        """Read what the model has computed of the tokens that are right."""
        tokens, states = self.network.take()
        if not proposed:
            self._lost = self._begun
            self._tokens += tokens
            known = [each for each in (self._states, states) if each is not None]
            self._states = mx.concatenate(known, axis=1)
        elif self._in_blocks:
            self._states = states[:, : accepted + 1]
        else:
            self._states = states[:, accepted : accepted + 1]
            drafts = mx.array([proposed])
            self._drafter.accept_verified_tokens(states, drafts, accepted, [token], _likeliest, mx.int32, greedy=True)


def _likeliest(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1)


PLAIN_STEPS = 4
"""Steps without proposals at the beginning; the first step of either kind is not counted: it compiles and warms up."""

WINDOW = 8
"""Steps with proposals after which their speed is judged, again and again."""

MOST_SKIPPED = 32
"""Most sequences that are computed before the draft model is tried again."""


class DraftRecord:
    """How often a draft model did not pay for a model: the next sequences then do without, twice as many each time."""

    def __init__(self) -> None:
        self._losses = 0
        self._skipped = 0

    def tries(self) -> bool:
        """Return whether the next sequence tries the draft model; called once for each."""
        skips, self._skipped = self._skipped > 0, max(0, self._skipped - 1)
        return not skips

    def judge(self, *, pays: bool) -> None:
        """Note a judgement of a sequence's draft model."""
        self._losses = 0 if pays else self._losses + 1
        self._skipped = 0 if pays else min(2**self._losses, MOST_SKIPPED)


class DraftTrial:
    """Compares the seconds of a token with and without proposals, for one sequence.

    Args:
        record: Of its model.
    """

    def __init__(self, record: DraftRecord) -> None:
        self._record = record
        self._plain: list[float] = []
        self._drafted: list[tuple[float, int]] = []
        self._warm = False
        self.pays = True
        """Whether proposals have not been slower than none, as far as is known."""

    @property
    def proposes(self) -> bool:
        """Whether the next step has proposals; the first ones have none."""
        return len(self._plain) >= PLAIN_STEPS

    def observe(self, seconds: float, tokens: int) -> None:
        """Note the duration of a step and how many tokens it gave."""
        if not self.proposes:
            self._plain.append(seconds)
        elif not self._warm:
            self._warm = True
        else:
            self._drafted.append((seconds, tokens))
        if len(self._drafted) == WINDOW:
            # Medians: another process that takes the device for a moment must not decide.
            step = statistics.median(each[0] for each in self._drafted)
            tokens_a_step = sum(each[1] for each in self._drafted) / WINDOW
            self.pays = step / tokens_a_step < statistics.median(self._plain[1:])
            self._record.judge(pays=self.pays)
            self._drafted.clear()


def draft_exclusion(
    request: GenerationRequest, settings: GenerationSettings, models: tuple[PooledModel, ...]
) -> str | None:
    """Return why a draft model that is a default cannot be used for a request; None when it can.

    Args:
        request: The request.
        settings: Its settings, filled in.
        models: The model, and the draft model.

    Raises:
        CapabilityError: One that the request wishes has another vocabulary, or the model takes none.
        ValidationError: Settings exclude it.
    """
    model, draft = (each.model for each in models)
    options = request.engine_options
    error: MlxkError | None = None
    given = {"grammar": settings.grammar, "thinking_budget": settings.thinking_budget}
    if not options.draft_required:  # else it is a fault of the options
        given["max_kv_size"] = options.max_kv_size
    name = next((name for name, value in given.items() if value is not None), None)
    if model.vision is not None:
        error = CapabilityError("draft_model: vision models take no draft model.")
    elif isinstance(draft, LoadedDrafter):
        error = draft.unfit(model.network, model.name)
    elif draft.vocabulary_hash != model.vocabulary_hash:
        error = CapabilityError(
            f"draft_model: '{draft.name}' speaks other tokens than '{model.name}'.",
            hint="A draft model must have the same tokenizer.",
        )
    if error is None and name is not None:
        error = ValidationError(f"draft_model and {name} exclude each other")
    if error is not None and options.draft_required:
        raise error
    return None if error is None else error.message
