"""Speculative decoding: draft models and drafters that propose tokens, and the decision whether to use them.

A draft model reads tokens, like the target model. A drafter is a small network trained for one target model: it reads
hidden states of several layers (EAGLE-3, DFlash) or of the last one (MTP). Drafters are mlx-vlm's; ``loading.drafter``
checks that they fit the target.

A draft model that is the server's default, not required by the request, is used only while its sequence is the only one
of the target model, and while it makes tokens faster, as measured on that model's sequences. The generated text is the
same either way: the measurement affects speed only.

Shapes: L tokens of one sequence; V tokens in the vocabulary; hidden states [1, L, H], H the sum of the recorded layers'
sizes.
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

MAX_HIDDEN_STATES = 2048
"""Tokens whose hidden states are kept for a drafter: the last ones of a prompt."""


class Proposer(Protocol):
    """Proposes the next tokens of one sequence."""

    network: Any
    """The target model, possibly wrapped; verification must call it through this attribute."""
    usual_width: int
    """Default number of proposed tokens a step."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Size of its own KV cache."""

    @abstractmethod
    def is_ready(self, width: int) -> bool:
        """Whether it can process so many tokens and rewind to any of them."""

    @abstractmethod
    def propose(self, sampling: SamplingParameters, draws: list[float], last: int) -> list[int]:
        """Propose tokens.

        Args:
            sampling: Sampling parameters of the sequence.
            draws: The sequence's random number for each token to propose.
            last: The newest token, which the target model has not processed.
        """

    @abstractmethod
    def settle(self, last: int, proposed: list[int], accepted: int, token: int) -> None:
        """Update the state after the verification of a step.

        Args:
            last: The newest token before the step.
            proposed: Empty when the step had no proposals.
            accepted: Number of accepted proposals.
            token: The newest token after the step.
        """


def can_rewind(layer: Any, tokens: int) -> bool:  # noqa: ANN401
    """Whether a layer's cache can take so many tokens and be trimmed by any number of them."""
    offset, max_size = getattr(layer, "offset", None), getattr(layer, "max_size", math.inf)
    return layer.is_trimmable() and offset is not None and offset + tokens < max_size


class DraftModel(Proposer):
    """A smaller model with the same vocabulary.

    Args:
        network: The target model.
        draft: The draft model.
        cache: KV cache of the draft model, holding the prompt except for its last token.
        last: The last token of the prompt.
    """

    usual_width = DEFAULT_DRAFT_TOKENS

    def __init__(self, network: Any, draft: Any, cache: list[Any], last: int) -> None:  # noqa: ANN401
        self.network = network
        self._draft = draft
        self._cache = cache
        self._inputs = [last]
        """Tokens to process before proposing: the newest one, and sometimes the one before it."""

    @property
    def size_bytes(self) -> int:
        """Size of its KV cache."""
        return sum(layer.nbytes for layer in self._cache)

    def is_ready(self, width: int) -> bool:
        """Whether every layer can be trimmed afterwards; a full sliding window has evicted older tokens."""
        return all(can_rewind(layer, width) for layer in self._cache)

    def propose(self, sampling: SamplingParameters, draws: list[float], last: int) -> list[int]:
        """Propose the tokens that the draft model would generate with the random numbers of the sequence."""
        proposed: list[int] = []
        sampler = BatchSampler([sampling])
        for draw in draws:
            logits = exact_logits(self._draft, mx.array([self._inputs]), self._cache)[:, -1, :]
            token: Any = sampler.sample(logits, [draw] if sampler.drawn else [])[0].item()
            proposed.append(token)
            self._inputs = [token]
        return proposed

    def settle(self, last: int, proposed: list[int], accepted: int, token: int) -> None:
        """Trim rejected tokens from the draft model's cache."""
        surplus = len(proposed) - accepted - 1
        for layer in self._cache:
            if surplus > 0:
                layer.trim(surplus)
        if proposed:
            # The last proposal was never an input of the draft model; once accepted, it must become one.
            self._inputs = [proposed[-1]] if accepted == len(proposed) else []
        self._inputs.append(token)


class HiddenStateRecorder:
    """Calls a model and records hidden states of the tokens, for a drafter.

    Args:
        network: The target model.
        modules: Modules of the model whose outputs are recorded, in this order.
    """

    def __init__(self, network: Any, modules: list[nn.Module]) -> None:  # noqa: ANN401
        self.network = network
        self._modules = modules
        self._tokens: list[int] = []
        self._states: list[mx.array] = []

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        """Return the logits, shape [1, L, V], of tokens, shape [1, L]."""
        outputs: dict[int, mx.array] = {}
        with contextlib.ExitStack() as stack:
            for identity, module in {id(each): each for each in self._modules}.items():  # one may be listed twice
                stack.enter_context(_recorded(module, functools.partial(outputs.__setitem__, identity)))
            logits: mx.array = self.network(inputs, cache=cache)
        state = mx.concatenate([outputs[id(each)] for each in self._modules], axis=-1)
        # A lazy array would keep the whole graph that leads to it.
        mx.async_eval(state)  # type: ignore[no-untyped-call]
        tokens: Any = inputs[0].tolist()
        self._tokens = (self._tokens + tokens)[-MAX_HIDDEN_STATES:]
        self._states.append(state)
        while self._states[0].shape[1] <= sum(each.shape[1] for each in self._states) - MAX_HIDDEN_STATES:
            self._states.pop(0)
        return logits

    def take(self) -> tuple[list[int], Any]:
        """Return the tokens since the last call and their hidden states, shape [1, L, H]; None without tokens."""
        tokens, states = self._tokens, self._states
        self._tokens, self._states = [], []
        return tokens, mx.concatenate(states, axis=1)[:, -len(tokens) :] if states else None


@contextlib.contextmanager
def _recorded(module: nn.Module, record: Callable[[mx.array], None]) -> Iterator[None]:
    """Pass a module's output to a callback within the block; on the owner thread, which alone calls the module."""
    kind: Any = type(module)
    module.__class__, module.record_output = _recording_class(kind), record
    try:
        yield
    finally:
        module.__class__ = kind
        del module.record_output


@functools.cache
def _recording_class(kind: Any) -> Any:  # noqa: ANN401 - a class of modules
    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        output = kind.__call__(module, *args, **kwargs)
        module.record_output(output[0] if isinstance(output, tuple) else output)
        return output

    return type(kind.__name__, (kind,), {"__call__": call})


class Drafter(Proposer):
    """A drafter, which continues from the recorded hidden states of its target model.

    The generated text does not depend on the drafter, so it may start with a part of the context: the prefix that came
    from the prefix cache was not computed, and has no recorded hidden states.

    Args:
        recorder: The target model, which has computed the prompt except for its last token.
        drafter: Trained for that model.
    """

    def __init__(self, recorder: HiddenStateRecorder, drafter: LoadedDrafter) -> None:
        self.network = recorder
        self.usual_width = drafter.draft_tokens
        self._in_blocks = drafter.in_blocks
        # A shallow copy shares the weights and has its own state for this sequence.
        self._drafter = copy.copy(drafter.network)
        self._cache = self._drafter.reset(recorder.network)
        self._tokens, self._states = recorder.take()
        self._prefilled = self._has_gap = False

    @property
    def size_bytes(self) -> int:
        """Size of its KV cache."""
        return sum(layer.nbytes for layer in self._cache if getattr(layer, "keys", None) is not None)

    def is_ready(self, width: int) -> bool:
        """Whether there are hidden states, without a gap since the first proposal."""
        return self._states is not None and not self._has_gap

    def propose(self, sampling: SamplingParameters, draws: list[float], last: int) -> list[int]:
        """Propose the drafter's likeliest tokens."""
        if not self._in_blocks and not self._prefilled:
            context = mx.array([self._tokens])
            self._drafter.prefill_from_target_hidden(context, self._states, last, _likeliest, mx.int32, greedy=True)
        self._prefilled = True
        options = {} if self._in_blocks else {"greedy": True}
        block = (last, self._states, self._cache, len(draws) + 1, _likeliest, mx.int32)
        proposed: Any = self._drafter.draft_block(*block, **options)[0].tolist()
        return list(proposed)

    def settle(self, last: int, proposed: list[int], accepted: int, token: int) -> None:
        """Take over the hidden states of the accepted tokens."""
        tokens, states = self.network.take()
        if not proposed:
            self._has_gap = self._prefilled
            self._tokens += tokens
            recorded = [each for each in (self._states, states) if each is not None]
            self._states = mx.concatenate(recorded, axis=1)
        elif self._in_blocks:
            self._states = states[:, : accepted + 1]
        else:
            self._states = states[:, accepted : accepted + 1]
            drafts = mx.array([proposed])
            self._drafter.accept_verified_tokens(states, drafts, accepted, [token], _likeliest, mx.int32, greedy=True)


def _likeliest(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1)


PLAIN_STEPS = 4
"""Steps without proposals at the beginning; the first step of either kind is a warm-up and not measured."""

WINDOW = 8
"""Steps with proposals between two comparisons of their speed."""

MAX_SKIPPED = 32
"""Maximum number of sequences that skip the draft model before it is tried again."""


class DraftRecord:
    """Backs off from a draft model that did not pay: each further loss doubles the sequences that skip it."""

    def __init__(self) -> None:
        self._losses = 0
        self._to_skip = 0

    def tries(self) -> bool:
        """Return whether the next sequence tries the draft model; call once for each sequence."""
        skips, self._to_skip = self._to_skip > 0, max(0, self._to_skip - 1)
        return not skips

    def judge(self, *, pays: bool) -> None:
        """Record whether proposals made a sequence faster."""
        self._losses = 0 if pays else self._losses + 1
        self._to_skip = 0 if pays else min(2**self._losses, MAX_SKIPPED)


class DraftTrial:
    """Compares the time a token takes with and without proposals, for one sequence.

    Args:
        record: Record of the target and the draft model.
    """

    def __init__(self, record: DraftRecord) -> None:
        self._record = record
        self._plain: list[float] = []
        self._drafted: list[tuple[float, int]] = []
        self._warm = False
        self.pays = True
        """Whether the last comparison favoured proposals; True before the first one."""

    @property
    def proposes(self) -> bool:
        """Whether the next step has proposals; the first ``PLAIN_STEPS`` have none."""
        return len(self._plain) >= PLAIN_STEPS

    def observe(self, seconds: float, tokens: int) -> None:
        """Record the duration of a step and the number of tokens it produced."""
        if not self.proposes:
            self._plain.append(seconds)
        elif not self._warm:
            self._warm = True
        else:
            self._drafted.append((seconds, tokens))
        if len(self._drafted) == WINDOW:
            # Medians, so that another process using the device for a moment does not decide.
            step = statistics.median(each[0] for each in self._drafted)
            tokens_a_step = sum(each[1] for each in self._drafted) / WINDOW
            self.pays = step / tokens_a_step < statistics.median(self._plain[1:])
            self._record.judge(pays=self.pays)
            self._drafted.clear()


def draft_exclusion(
    request: GenerationRequest, settings: GenerationSettings, models: tuple[PooledModel, ...]
) -> str | None:
    """Return why the default draft model cannot be used for a request; None when it can.

    Args:
        request: The request.
        settings: Its settings, filled in.
        models: The target model and the draft model.

    Raises:
        CapabilityError: The draft model is required, but has another vocabulary, or the target supports none.
        ValidationError: The draft model is required, but a setting excludes it.
    """
    model, draft = (each.model for each in models)
    options = request.engine_options
    error: MlxkError | None = None
    excluding = {"grammar": settings.grammar, "thinking_budget": settings.thinking_budget}
    if not options.draft_required:  # where it is required, the options' own validation refuses the pair
        excluding["max_kv_size"] = options.max_kv_size
    name = next((name for name, value in excluding.items() if value is not None), None)
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
