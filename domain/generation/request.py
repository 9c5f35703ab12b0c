"""Text generation: requests, the events of a stream, and the figures of the engine.

A stream yields some ``PromptProgress`` while a long prompt is computed, then any number of ``TextDelta``,
``ReasoningDelta`` and ``ToolCallDelta``, then one ``Finished`` with the usage; a failure is raised as ``MlxkError``
instead. The text of a completion is the concatenation of its deltas.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Adaptation, Conversation, ToolCall
from mlxk.domain.generation.settings import SEED_RANGE, Effort, EngineOptions, GenerationSettings, settled
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.text import require_valid_unicode

_SEED_STRIDE = 0x9E3779B97F4A7C15
"""Odd, so that the seeds of successive choices of one request never coincide."""


class FinishReason(enum.Enum):
    """Why a completion ended."""

    STOP = "stop"
    """The model generated its end-of-sequence token, or a stop string was found."""
    LENGTH = "length"
    """The token limit or the context window was reached."""
    CANCELLED = "cancelled"
    """The caller cancelled it."""


@attrs.frozen
class Usage:
    """Token counts of one completion, or of several together."""

    prompt_tokens: int
    completion_tokens: int
    """Tokens generated, the end-of-sequence token included."""
    cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache."""
    reasoning_tokens: int = 0
    """Generated tokens that are reasoning, its tags included."""
    accepted_prediction_tokens: int = 0
    """Generated tokens that a draft model had proposed."""
    rejected_prediction_tokens: int = 0
    """Tokens that a draft model had proposed and the model rejected."""

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


def predictions(usages: Sequence[Usage]) -> dict[str, int]:
    """Return field name to sum for the prediction counts of completions; empty where no draft model proposed any."""
    sums = {
        name: sum(getattr(usage, name) for usage in usages)
        for name in ("accepted_prediction_tokens", "rejected_prediction_tokens")
    }
    return sums if any(sums.values()) else {}


@attrs.frozen
class Timings:
    """Wall-clock seconds of one completion."""

    load_seconds: float
    prompt_seconds: float
    """From the start of prefill to the first generated token."""
    generation_seconds: float
    """From the first generated token to the end."""
    queue_seconds: float = 0.0
    """Time in the queue of the engine."""

    @property
    def first_token_seconds(self) -> float:
        """From submission to the first generated token."""
        return self.load_seconds + self.queue_seconds + self.prompt_seconds


@attrs.frozen
class EngineFigures:
    """State and counters of a server's engine. Counters start at zero with its process."""

    running: int
    """Sequences being computed."""
    waiting: int
    """Sequences in the queue."""
    prompt_tokens: int
    """Prompt tokens so far, those from the prefix cache included."""
    cached_tokens: int
    """Prompt tokens taken from the prefix cache so far."""
    generated_tokens: int
    """Generated tokens so far."""
    array_bytes: int
    """Memory of all arrays: weights, KV caches of running sequences, prefix cache."""
    kept_prompt_bytes: int
    """Memory of the prefix cache."""
    responding: bool = True
    """Whether the engine responded in time; if not, every other figure is out of date."""


@attrs.frozen
class TokenAlternative:
    """One token and its log probability."""

    text: str
    """Its text; U+FFFD replaces bytes that are not valid UTF-8 alone."""
    utf8: bytes
    """Its exact bytes."""
    logprob: float
    """Natural logarithm of its probability: at most 0, always finite."""


@attrs.frozen
class TokenLogprob:
    """One generated token and the likeliest tokens at its position."""

    token: TokenAlternative
    alternatives: tuple[TokenAlternative, ...] = ()
    """Likeliest first; as many as requested."""


@attrs.frozen
class TextDelta:
    """A chunk of the text: never empty, complete characters."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """The tokens of this text, if the settings request log probabilities."""


@attrs.frozen
class PromptDelta(TextDelta):
    """The echoed prompt; its first token, which has no context, has the log probability 0."""


@attrs.frozen
class ReasoningDelta:
    """A chunk of the reasoning, never empty."""

    text: str


@attrs.frozen
class ToolCallDelta:
    """A part of a tool call.

    The first delta of an index begins the call and has its name and id; the arguments of all its deltas, joined, are
    JSON text. The call ends with the next event that is not a delta of its index.
    """

    index: int
    """Index of the call in the completion, from 0."""
    call: ToolCall

    @property
    def begins(self) -> bool:
        """Whether this is the first delta of its call."""
        return bool(self.call.name)


@attrs.frozen
class Finished:
    """The last event of a completion."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    token_limit: int | None = None
    """The limit that was reached, when the reason is LENGTH."""
    notes: tuple[str, ...] = ()
    """Sentences about deviations from normal operation, such as running outside the shared batch."""
    parts: "tuple[Finished, ...]" = ()
    """The last events of the completions that this one combines; empty for a single completion."""
    stop_sequence: str | None = None
    """The stop string that ended the completion; None for any other end."""
    window_full: bool = False
    """Whether the limit that was reached is the context window, not a limit of the request."""

    @classmethod
    def joined(cls, ends: "Sequence[Finished]") -> "Finished":
        """Return the last event for consecutive completions, at least one, that count as one."""
        cut = next((end for end in ends if end.reason is not FinishReason.STOP), ends[-1])
        usage = zip(*(attrs.astuple(end.usage) for end in ends), strict=True)
        timings = zip(*(attrs.astuple(end.timings) for end in ends), strict=True)
        return cls(
            cut.reason,
            Usage(*map(sum, usage)),
            Timings(*map(sum, timings)),
            cut.token_limit,
            tuple(dict.fromkeys(note for end in ends for note in end.notes)),
            tuple(ends) if len(ends) > 1 else (),
            cut.stop_sequence,
            cut.window_full,
        )


AnswerDelta = TextDelta | ReasoningDelta | ToolCallDelta
"""An event with a part of the completion."""


GenerationEvent = AnswerDelta | Finished
"""An event of a completion."""


@attrs.frozen
class PromptProgress:
    """Progress of the prefill of a long prompt; no part of the completion, and only before its first delta."""

    done: int
    """Computed tokens, those taken from the prefix cache included."""
    total: int
    """Tokens of the prompt."""


StreamEvent = GenerationEvent | PromptProgress
"""An event of a stream."""


TokenIds = tuple[int, ...]
"""A tokenized prompt."""


def nobody_left() -> bool:
    """Return False, as the default of ``is_abandoned``: the client is still there."""
    return False


@attrs.frozen
class GenerationRequest:
    """A request for one completion."""

    model: ModelHandle
    prompt: Conversation | str | TokenIds
    """A conversation, rendered with the model's chat template; or text or tokens, used unchanged."""
    settings: GenerationSettings = attrs.field(factory=GenerationSettings)
    thinking: bool | None = None
    """Whether the model reasons first; None leaves it to the chat template."""
    engine_options: EngineOptions = attrs.field(factory=EngineOptions, converter=settled)
    backends: tuple[str, ...] = ()
    """The backends for the model, the preferred one first; empty leaves the choice to the engine."""
    effort: Effort | None = None
    """How much the model reasons; None leaves it to the chat template."""
    parse_special: bool = False
    """Whether the text of a control token in a message, such as ``<|im_end|>``, is encoded as that token; by default it
    is plain text. In a prompt of plain text it always is the token."""
    template_options: Mapping[str, Any] = attrs.field(factory=dict)
    """Further chat template variables, name to JSON value."""
    thinking_tags: tuple[str, str] | None = None
    """The texts that begin and end the reasoning; None means the model's known tags."""
    is_abandoned: Callable[[], bool] = attrs.field(default=nobody_left, eq=False)
    """Callback: whether the client has disconnected. For the time before there is a stream to cancel."""
    context_limit: int | None = None
    """Most tokens of prompt and completion together, if below the model's context window; None sets no limit."""
    keep_alive_seconds: float | None = None
    """Idle time after which the model is unloaded, from now on; None keeps the current time, infinity means never."""
    alternatives_limit: int | None = None
    """Most alternatives reported with a log probability, where the settings ask for more; None sets no limit."""
    tenant: str = ""
    """Opaque identifier of the prompt's owner; prefix cache entries of other tenants are never used."""

    @property
    def reasons(self) -> bool | None:
        """Whether the model reasons first, by any of the fields that set it; None leaves it to the chat template."""
        if self.thinking is not None:
            return self.thinking
        options = (self.template_options.get(name) for name in ("enable_thinking", "thinking"))
        stated = next((value for value in options if isinstance(value, bool)), None)
        return False if stated is None and self.effort is Effort.NONE else stated

    @property
    def has_images(self) -> bool:
        """Whether the prompt has images or clips."""
        return isinstance(self.prompt, Conversation) and bool(self.prompt.images or self.prompt.videos)

    @property
    def has_audio(self) -> bool:
        """Whether the prompt has audio."""
        return isinstance(self.prompt, Conversation) and bool(self.prompt.audio)

    def routed(self, backends: tuple[str, ...]) -> "GenerationRequest":
        """Return this request with the backends for its model; with media, sampling is greedy by default.

        Args:
            backends: See ``Runtime.backends``.
        """
        settings = self.settings
        if self.has_images or self.has_audio:
            settings = attrs.evolve(settings, temperature=settings.temperature or 0.0)
        return attrs.evolve(self, settings=settings, backends=backends)

    def within_limits(self) -> tuple["GenerationRequest", tuple[Adaptation, ...]]:
        """Return this request with at most ``alternatives_limit`` alternatives, and the adaptations made."""
        requested, limit = self.settings.logprobs, self.alternatives_limit
        if requested is None or limit is None or requested <= limit:
            return self, ()
        sentence = f"Log probabilities come with {limit} alternatives at most, not with the {requested} asked for."
        settings = attrs.evolve(self.settings, logprobs=limit)
        return attrs.evolve(self, settings=settings), (Adaptation("top-logprobs-limited", sentence),)

    def validate(self) -> None:
        """Check the prompt, the settings and the engine options.

        Raises:
            ValidationError: Names each field at fault.
        """
        if not isinstance(self.prompt, (str, tuple, Conversation)):
            raise ValidationError("prompt must be text, tokens or a conversation")
        if isinstance(self.prompt, str):
            require_valid_unicode(self.prompt, "prompt")
        self.settings.validate()
        self.engine_options.validate()

    def choices(self, count: int) -> tuple["GenerationRequest", ...]:
        """Return ``count`` requests for alternative completions: this one, and others with seeds derived from its seed.

        Without a seed, every completion draws its own.
        """
        first = self.settings.seed
        if first is None:
            return (self,) * count
        seeds = ((first + index * _SEED_STRIDE) % SEED_RANGE for index in range(count))
        return tuple(attrs.evolve(self, settings=attrs.evolve(self.settings, seed=seed)) for seed in seeds)
