"""Text generation: requests, settings and events.

A stream yields any number of ``TextDelta``, ``ReasoningDelta`` and ``ToolCallDelta``, then one ``Finished`` with the
usage; a failure is raised as ``MlxkError`` instead. The text of a completion is the concatenation of its deltas, so
that streamed and whole responses are equal by construction. HTTP APIs and the terminal render these events.
"""

import enum
import math
from collections.abc import Sequence

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, ToolCall, require_valid_unicode
from mlxk.domain.generation.engine_options import EngineOptions
from mlxk.domain.generation.grammar import Grammar
from mlxk.domain.models.model import ModelHandle

MAX_STOP_SEQUENCES = 16
"""Stop strings a request may carry; each costs work at every token."""

MAX_LOGPROB_ALTERNATIVES = 20
"""Alternatives a request may ask to see at each token."""

MAX_LOGIT_BIASES = 1024
"""Tokens whose likelihood a request may shift."""

SEED_RANGE = 2**64
"""Seeds are whole numbers from 0 up to, not including, this."""

_SEED_STRIDE = 0x9E3779B97F4A7C15
"""Odd, so that the seeds of successive choices of one request never coincide."""


@attrs.frozen
class GenerationSettings:
    """How to sample and when to stop. ``None`` means: as the model's own generation_config says, else our default."""

    max_tokens: int | None = None
    """Most tokens to generate; None fills what the context window leaves."""
    temperature: float | None = None
    """0 takes the likeliest token, always."""
    top_p: float | None = None
    top_k: int | None = None
    """0 switches it off."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    """Divides the likelihood of tokens the answer already holds, 0.1 to 10; 1 switches it off."""
    presence_penalty: float | None = None
    """Subtracted from the logit of every token the answer already holds."""
    frequency_penalty: float | None = None
    """Subtracted from a token's logit once for each time the answer holds it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of token id and what to add to its logit, -100 to 100."""
    seed: int | None = None
    """The same seed gives the same text; None draws a fresh one."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of it."""
    ignore_eos: bool = False
    """Generate on after the model's end-of-turn token, up to max_tokens; for measurements."""
    thinking_budget: int | None = None
    """Most tokens of reasoning; then the model is made to answer. None sets no limit."""
    grammar: Grammar | None = None
    """What the answer must look like, reasoning aside."""
    logprobs: int | None = None
    """Report the log probability of every token, with this many alternatives; None reports nothing."""

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
"""What holds when neither the user nor the model's generation_config says otherwise."""


def _number(value: float | None, name: str, low: float, high: float, low_open: bool = False) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{name} must be a number"
    above = value > low if low_open else value >= low
    if math.isfinite(value) and above and value <= high:
        return None
    return f"{name} must be {'above' if low_open else 'at least'} {low:g} and at most {high:g} (got {value:g})"


def _whole(value: int | None, name: str, low: int, high: int | None = None) -> str | None:
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
    lambda s: _whole(s.max_tokens, "max_tokens", 1),
    lambda s: _number(s.temperature, "temperature", 0, 5),
    lambda s: _number(s.top_p, "top_p", 0, 1, low_open=True),
    lambda s: _whole(s.top_k, "top_k", 0),
    lambda s: _number(s.min_p, "min_p", 0, 1),
    lambda s: _number(s.repetition_penalty, "repetition_penalty", 0.1, 10),
    lambda s: _number(s.presence_penalty, "presence_penalty", -2, 2),
    lambda s: _number(s.frequency_penalty, "frequency_penalty", -2, 2),
    lambda s: _whole(s.seed, "seed", 0, SEED_RANGE - 1),
    lambda s: _whole(s.thinking_budget, "thinking_budget", 0),
    lambda s: _whole(s.logprobs, "logprobs", 0, MAX_LOGPROB_ALTERNATIVES),
    lambda s: "grammar and ignore_eos exclude each other" if s.grammar is not None and s.ignore_eos else None,
    _bias_fault,
    _stop_fault,
)


class FinishReason(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"
    """The model ended its turn, or a stop string was met."""
    LENGTH = "length"
    """The token limit or the context window was reached."""
    CANCELLED = "cancelled"
    """The caller asked for no more."""


@attrs.frozen
class Usage:
    """Tokens spent."""

    prompt_tokens: int
    completion_tokens: int
    """Tokens generated, the model's end-of-turn token included."""
    cached_tokens: int = 0
    """Prompt tokens that were not computed again."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@attrs.frozen
class Timings:
    """Wall-clock seconds of one answer."""

    load_seconds: float
    prompt_seconds: float
    """From the first prompt token computed to the first token generated."""
    generation_seconds: float
    queue_seconds: float = 0.0
    """Waiting for a place among the running answers."""


@attrs.frozen
class TokenAlternative:
    """One token and how likely it was."""

    text: str
    """Its text; bytes that are no UTF-8 by themselves are shown as U+FFFD."""
    utf8: bytes
    """Its bytes, exactly."""
    logprob: float
    """Natural logarithm of its probability, at most 0, always finite."""


@attrs.frozen
class TokenLogprob:
    """One generated token with the likeliest tokens at its place."""

    token: TokenAlternative
    alternatives: tuple[TokenAlternative, ...] = ()
    """Likeliest first; as many as were asked for."""


@attrs.frozen
class TextDelta:
    """One piece of text, never empty, never half a character."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """The tokens that completed this text, when the settings asked for them."""


@attrs.frozen
class ReasoningDelta:
    """One piece of what the model thinks before or between what it says, never empty."""

    text: str


@attrs.frozen
class ToolCallDelta:
    """A part of a tool call.

    The first delta of an index begins the call and has its name and id; the arguments of all its deltas, joined, are
    JSON text. The call ends with the next event that is not a delta of its index.
    """

    index: int
    """Which call of the completion, from 0."""
    call: ToolCall

    @property
    def begins(self) -> bool:
        """Whether it is the first delta of its call."""
        return bool(self.call.name)


@attrs.frozen
class Finished:
    """The last event of an answer."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    token_limit: int | None = None
    """The limit that cut the answer, when the reason is LENGTH."""
    notes: tuple[str, ...] = ()
    """What was done otherwise than usual, such as running outside the common batch, a sentence each."""
    parts: "tuple[Finished, ...]" = ()
    """The ends this one was joined of; empty for a single completion."""

    @classmethod
    def joined(cls, ends: "Sequence[Finished]") -> "Finished":
        """Return the end of several completions that are read one after the other; at least one."""
        cut = next((end for end in ends if end.reason is not FinishReason.STOP), ends[-1])
        usage, timings = [end.usage for end in ends], [end.timings for end in ends]
        return cls(
            cut.reason,
            Usage(
                sum(each.prompt_tokens for each in usage),
                sum(each.completion_tokens for each in usage),
                sum(each.cached_tokens for each in usage),
            ),
            Timings(
                sum(each.load_seconds for each in timings),
                sum(each.prompt_seconds for each in timings),
                sum(each.generation_seconds for each in timings),
                sum(each.queue_seconds for each in timings),
            ),
            cut.token_limit,
            tuple(dict.fromkeys(note for end in ends for note in end.notes)),
            tuple(ends) if len(ends) > 1 else (),
        )


AnswerDelta = TextDelta | ReasoningDelta | ToolCallDelta
"""A piece of the answer itself."""

GenerationEvent = AnswerDelta | Finished


TokenIds = tuple[int, ...]
"""A prompt as the model itself reads it."""


class Effort(enum.Enum):
    """How much a model is to reason, where its chat template knows degrees; values are the names on the wire."""

    LOW = "low"
    MEDIUM = "medium"
    """As if nothing were said: templates that know degrees take it by themselves."""
    HIGH = "high"


@attrs.frozen
class GenerationRequest:
    """One answer to generate."""

    model: ModelHandle
    prompt: Conversation | str | TokenIds
    """A conversation, rendered with the model's chat template; or text or tokens, taken as they are."""
    settings: GenerationSettings = GenerationSettings()
    thinking: bool | None = None
    """Whether the model is to reason first; None leaves it to the chat template."""
    engine_options: EngineOptions = attrs.field(factory=EngineOptions)
    backends: tuple[str, ...] = ()
    """The backends for the model, the preferred one first; empty leaves the choice to the engine."""
    effort: Effort | None = None
    """How much the model is to reason; None leaves it to the chat template."""

    @property
    def has_images(self) -> bool:
        """Whether the prompt has images in it."""
        return isinstance(self.prompt, Conversation) and bool(self.prompt.images)

    @property
    def has_audio(self) -> bool:
        """Whether the prompt has recordings in it."""
        return isinstance(self.prompt, Conversation) and bool(self.prompt.sounds)

    def routed(self, backends: tuple[str, ...]) -> "GenerationRequest":
        """Return this request with the backends for its model; about media, sampling is greedy by default.

        Args:
            backends: See ``Runtime.backends``.
        """
        settings = self.settings
        if self.has_images or self.has_audio:
            settings = attrs.evolve(settings, temperature=settings.temperature or 0.0)
        return attrs.evolve(self, settings=settings, backends=backends)

    def validate(self) -> None:
        """Check every range, of the settings too.

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
        """Return ``count`` requests for alternative answers: this one, and others with seeds derived from its own.

        Without a seed every answer draws its own.
        """
        seed = self.settings.seed
        if seed is None:
            return (self,) * count
        seeds = ((seed + index * _SEED_STRIDE) % SEED_RANGE for index in range(count))
        return tuple(attrs.evolve(self, settings=attrs.evolve(self.settings, seed=each)) for each in seeds)
