"""Text generation: requests, settings and events.

A stream yields any number of ``TextDelta``, ``ReasoningDelta`` and ``ToolCallDelta``, then one ``Finished`` with the
usage; a failure is raised as ``MlxkError`` instead. The text of a completion is the concatenation of its deltas.
"""

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, ToolCall
from mlxk.domain.generation.engine_options import EngineOptions
from mlxk.domain.generation.grammar import ForcedCall, Grammar
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.text import require_valid_unicode

MAX_STOP_SEQUENCES = 16
"""Most stop strings of a request; each costs work at every token."""

MAX_LOGPROB_ALTERNATIVES = 20
"""Most alternatives that a request may ask for at each token."""

MAX_LOGIT_BIASES = 1024
"""Most tokens with a logit bias in a request."""

SEED_RANGE = 2**64
"""Seeds are integers from 0 to this, exclusive."""

_SEED_STRIDE = 0x9E3779B97F4A7C15
"""Odd, so that the seeds of successive choices of one request never coincide."""


@attrs.frozen
class GenerationSettings:
    """Sampling settings and limits. ``None`` means the value of the model's generation_config, else our default."""

    max_tokens: int | None = None
    """Most tokens to generate; None means the remainder of the context window."""
    temperature: float | None = None
    """0 always selects the likeliest token."""
    top_p: float | None = None
    top_k: int | None = None
    """0 switches it off."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    """Divides the likelihood of tokens that the completion already has, 0.1 to 10; 1 switches it off."""
    presence_penalty: float | None = None
    """Subtracted from the logit of every token that the completion already has."""
    frequency_penalty: float | None = None
    """Subtracted from a token's logit once for each of its occurrences in the completion."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of token id and the value added to its logit, -100 to 100."""
    seed: int | None = None
    """The same seed gives the same text; None draws a random one."""
    stop: tuple[str, ...] = ()
    """Strings that end the completion; they are not part of it."""
    ignore_eos: bool = False
    """Whether to continue after the end-of-sequence token, up to ``max_tokens``; for benchmarks."""
    thinking_budget: int | None = None
    """Most tokens of reasoning, after which it is closed and the text begins; None sets no limit."""
    grammar: Grammar | None = None
    """Constrains the text of the completion, not its reasoning."""
    forced_call: ForcedCall | None = None
    """The tool call that the grammar enforces; the text is then emitted as that call."""
    logprobs: int | None = None
    """Number of alternatives reported with the log probability of every token; None reports none at all."""
    echo: bool = False
    """Whether the prompt is emitted before the completion, with log probabilities if ``logprobs`` asks for them."""

    def validate(self) -> None:
        """Check every range.

        Raises:
            ValidationError: Names each field out of range, all at once.
        """
        faults = [fault for fault in (rule(self) for rule in _RULES) if fault]
        if faults:
            raise ValidationError("; ".join(faults))

    def filled_from(self, defaults: "GenerationSettings") -> "GenerationSettings":
        """Return these settings with every None replaced by the default's value."""
        fields = (field.name for field in attrs.fields(GenerationSettings) if getattr(self, field.name) is None)
        return attrs.evolve(self, **{name: getattr(defaults, name) for name in fields})


PRODUCT_DEFAULTS = GenerationSettings(
    temperature=0.7,
    top_p=0.9,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)
"""Values that neither the request nor the model's generation_config sets."""


def _number(value: float | None, name: str, low: float, high: float) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{name} must be a number"
    if math.isfinite(value) and low <= value <= high:
        return None
    return f"{name} must be at least {low:g} and at most {high:g} (got {value:g})"


def _integer(value: int | None, name: str, low: int, high: int | None = None) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        return f"{name} must be a whole number"
    if value >= low and (high is None or value <= high):
        return None
    return f"{name} must be at least {low}{'' if high is None else f' and at most {high}'} (got {value})"


def _stop_fault(settings: GenerationSettings) -> str | None:
    if len(settings.stop) > MAX_STOP_SEQUENCES:
        return f"stop takes at most {MAX_STOP_SEQUENCES} strings (got {len(settings.stop)})"
    if not all(isinstance(stop, str) for stop in settings.stop):
        return "stop takes strings only"
    return "stop must not contain an empty string" if "" in settings.stop else None


def _bias_fault(settings: GenerationSettings) -> str | None:
    if len(settings.logit_bias) > MAX_LOGIT_BIASES:
        return f"logit_bias takes at most {MAX_LOGIT_BIASES} tokens (got {len(settings.logit_bias)})"
    faults = (_number(bias, f"logit_bias of token {token}", -100, 100) for token, bias in settings.logit_bias)
    return next((fault for fault in faults if fault), None)


_RULES = (
    lambda s: _integer(s.max_tokens, "max_tokens", 1),
    lambda s: _number(s.temperature, "temperature", 0, 5),
    lambda s: _number(s.top_p, "top_p", 0, 1),
    lambda s: _integer(s.top_k, "top_k", 0),
    lambda s: _number(s.min_p, "min_p", 0, 1),
    lambda s: _number(s.repetition_penalty, "repetition_penalty", 0.1, 10),
    lambda s: _number(s.presence_penalty, "presence_penalty", -2, 2),
    lambda s: _number(s.frequency_penalty, "frequency_penalty", -2, 2),
    lambda s: _integer(s.seed, "seed", 0, SEED_RANGE - 1),
    lambda s: _integer(s.thinking_budget, "thinking_budget", 0),
    lambda s: _integer(s.logprobs, "logprobs", 0, MAX_LOGPROB_ALTERNATIVES),
    lambda s: "grammar and ignore_eos exclude each other" if s.grammar is not None and s.ignore_eos else None,
    _bias_fault,
    _stop_fault,
)

DEFAULT_THINKING_TAGS = ("<think>", "</think>")
"""The texts that begin and end reasoning where nothing else is known."""


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
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    """Tokens generated, the end-of-sequence token included."""
    cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache."""
    reasoning_tokens: int = 0
    """Generated tokens that are reasoning, its tags included."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@attrs.frozen
class Timings:
    """Wall-clock seconds of one completion."""

    load_seconds: float
    prompt_seconds: float
    """From the start of prefill to the first generated token."""
    generation_seconds: float
    queue_seconds: float = 0.0
    """Time in the queue of the engine."""


@attrs.frozen
class TokenAlternative:
    """One token and its log probability."""

    text: str
    """Its text, in which U+FFFD replaces bytes that are not UTF-8 by themselves."""
    utf8: bytes
    """Its bytes, exactly."""
    logprob: float
    """Natural logarithm of its probability, at most 0, always finite."""


@attrs.frozen
class TokenLogprob:
    """One generated token and the likeliest tokens at its position."""

    token: TokenAlternative
    alternatives: tuple[TokenAlternative, ...] = ()
    """Likeliest first; as many as requested."""


@attrs.frozen
class TextDelta:
    """A chunk of the text, never empty, of complete characters."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """The tokens of this text, if the settings request log probabilities."""


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
        """Whether it is the first delta of its call."""
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
    """The stop string that was found."""
    window_full: bool = False
    """Whether the limit that was reached is the context window, not one of the request."""

    @classmethod
    def joined(cls, ends: "Sequence[Finished]") -> "Finished":
        """Return the last event of consecutive completions, at least one, that are read as one."""
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

TokenIds = tuple[int, ...]
"""A tokenized prompt."""


class Effort(enum.Enum):
    """How much a model reasons, from least to most; values are the names in the JSON API.

    Chat templates get the nearest that they know: a level, or reasoning switched on or off.
    """

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    """The default of templates with levels."""
    HIGH = "high"
    XHIGH = "xhigh"


def nobody_left() -> bool:
    """Return False: the caller is still waiting."""
    return False


@attrs.frozen
class GenerationRequest:
    """A request for one completion."""

    model: ModelHandle
    prompt: Conversation | str | TokenIds
    """A conversation, rendered with the model's chat template; or text or tokens, passed on unchanged."""
    settings: GenerationSettings = GenerationSettings()
    thinking: bool | None = None
    """Whether the model reasons first; None leaves it to the chat template."""
    engine_options: EngineOptions = attrs.field(factory=EngineOptions)
    backends: tuple[str, ...] = ()
    """The backends for the model, the preferred one first; empty leaves the choice to the engine."""
    effort: Effort | None = None
    """How much the model reasons; None leaves it to the chat template."""
    parse_special: bool = False
    """Whether control tokens that the messages of a conversation spell out, such as ``<|im_end|>``, are control tokens;
    by default they are text. A prompt that is plain text is not affected: there they always are."""
    template_options: Mapping[str, Any] = attrs.field(factory=dict)
    """Further variables for the chat template, by its own names; JSON values."""
    thinking_tags: tuple[str, str] | None = None
    """The texts that begin and end the reasoning; None as they are known of the model."""
    is_abandoned: Callable[[], bool] = attrs.field(default=nobody_left, eq=False)
    """Whether the client has gone, before it has a stream that can be cancelled."""
    context_limit: int | None = None
    """Most tokens of prompt and completion together, where the model's context window has more; None sets no limit."""
    keep_alive_seconds: float | None = None
    """Idle time after which the model is unloaded, from now on; None leaves it, infinity means never."""

    @property
    def reasons(self) -> bool | None:
        """Whether the model reasons first, by whichever field says so; None leaves it to the chat template."""
        if self.thinking is not None:
            return self.thinking
        stated = (self.template_options.get(name) for name in ("enable_thinking", "thinking"))
        found = next((value for value in stated if isinstance(value, bool)), None)
        return False if found is None and self.effort is Effort.NONE else found

    @property
    def has_images(self) -> bool:
        """Whether the prompt has images."""
        return isinstance(self.prompt, Conversation) and bool(self.prompt.images)

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

    def validate(self) -> None:
        """Check every range, those of the settings included.

        Raises:
            ValidationError: Names each field out of range.
        """
        if not isinstance(self.prompt, (str, tuple, Conversation)):
            raise ValidationError("prompt must be text, tokens or a conversation")
        if isinstance(self.prompt, str):
            require_valid_unicode(self.prompt, "prompt")
        self.settings.validate()
        self.engine_options.validate()

    def choices(self, count: int) -> tuple["GenerationRequest", ...]:
        """Return ``count`` requests for alternative completions: this one, and others with seeds derived from its own.

        Without a seed every completion draws its own.
        """
        seed = self.settings.seed
        if seed is None:
            return (self,) * count
        seeds = ((seed + index * _SEED_STRIDE) % SEED_RANGE for index in range(count))
        return tuple(attrs.evolve(self, settings=attrs.evolve(self.settings, seed=each)) for each in seeds)
