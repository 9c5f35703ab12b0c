"""How to generate: sampling settings, reasoning effort and engine options."""

import enum
import math
from collections.abc import Mapping

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.grammar import ForcedCall, Grammar
from mlxk.domain.models.kv_cache import (
    KV_GROUP_SIZES,
    KV_SCHEMES,
    MIN_KV_SIZE,
    PREFIX_CACHE_BITS,
    TURBOQUANT,
    TURBOQUANT_USUAL_BITS,
    kv_bits_fault,
    quantized_cache_bytes,
    turboquant_cache_bytes,
)
from mlxk.domain.models.model import ModelDescription, ModelHandle

MAX_STOP_SEQUENCES = 16
"""Most stop strings of a request; each is searched at every token."""

MAX_LOGPROB_ALTERNATIVES = 20
"""Most alternatives per token that a request may ask for."""

MAX_LOGIT_BIASES = 1024
"""Most tokens with a logit bias in a request."""

SEED_RANGE = 2**64
"""Seeds are integers from 0 up to, not including, this."""


@attrs.frozen
class GenerationSettings:
    """Sampling settings and limits.

    Where not stated otherwise, None means the value of the model's generation_config, else of ``PRODUCT_DEFAULTS``.
    """

    max_tokens: int | None = None
    """Most tokens to generate; None means the remainder of the context window."""
    temperature: float | None = None
    """0 always selects the likeliest token."""
    top_p: float | None = None
    """Probability mass from which to sample; 1 switches it off."""
    top_k: int | None = None
    """Number of likeliest tokens from which to sample; 0 switches it off."""
    min_p: float | None = None
    """Least probability of a token, as a share of the likeliest token's; 0 switches it off."""
    repetition_penalty: float | None = None
    """Divides the likelihood of tokens that the completion already has, 0.1 to 10; 1 switches it off."""
    presence_penalty: float | None = None
    """Subtracted from the logit of every token that the completion already has."""
    frequency_penalty: float | None = None
    """Subtracted from a token's logit once for each of its occurrences in the completion."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of token id and the value added to its logit, -100 to 100."""
    seed: int | None = None
    """The same seed gives the same text; None draws a random seed."""
    stop: tuple[str, ...] = ()
    """Strings that end the completion and are not part of it."""
    ignore_eos: bool = False
    """Whether to continue after the end-of-sequence token, up to ``max_tokens``; for benchmarks."""
    thinking_budget: int | None = None
    """Most tokens of reasoning, after which it is closed and the answer begins; None sets no limit."""
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
"""Used where neither the request nor the model's generation_config has a value."""


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
"""The texts that begin and end reasoning, where the model's own are unknown."""


class Effort(enum.Enum):
    """How much a model reasons, from least to most; values are the names in the JSON API.

    A chat template gets the nearest value that it knows: a level, or reasoning switched on or off.
    """

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    """The default of templates with levels."""
    HIGH = "high"
    XHIGH = "xhigh"


DEFAULT_DRAFT_TOKENS = 3
"""Tokens that a draft model proposes at a time, by default."""

DRAFT_KINDS = ("model", "eagle3", "dflash", "mtp")
"""``model`` is a draft model, which reads tokens; the others are drafters, which read their model's hidden states."""

MAX_DRAFT_TOKENS = 16
"""Most tokens that a draft model may propose at a time; more are rarely accepted."""

ACTIVATION_MODES = ("mxfp8", "nvfp4")
"""Quantization modes of weights that support quantized activations."""

_NEEDED = {
    "kv_group_size": ("kv_bits", "Say how many bits keys and values have."),
    "kv_scheme": ("kv_bits", "Say how many bits keys and values have."),
    "draft_tokens": ("draft_model", "Name the model that proposes the tokens."),
    "draft_kind": ("draft_model", "Name the model that proposes the tokens."),
}
"""Option to the option that it refines, without which it has no effect, and a hint."""


def require_needed(given: Mapping[str, object]) -> None:
    """Refuse options without the option that they refine.

    Args:
        given: Name to value; None, or no entry, for an option that is not given.

    Raises:
        ValidationError: Names both options.
    """
    for name, (needed, hint) in _NEEDED.items():
        if given.get(name) is not None and given.get(needed) is None:
            raise ValidationError(f"{name} needs {needed}", hint=hint, options=(name, needed))


@attrs.frozen
class EngineOptions:
    """Trade-offs between memory, speed and exactness. By default all are off."""

    adapter: str | None = None
    """Absolute directory of a LoRA adapter to apply to the model."""
    draft_model: ModelHandle | None = None
    """A small model with the same vocabulary, for speculative decoding; it does not change the text."""
    draft_required: bool = True
    """Whether a request that cannot use the draft model is refused. If not, it is computed without, and the draft model
    is used only while it is faster."""
    draft_tokens: int | None = None
    """Tokens proposed at a time; None takes ``DEFAULT_DRAFT_TOKENS``."""
    kv_bits: float | None = None
    """Bits of a quantized KV cache; None does not quantize it, unless the scheme has a default (see ``settled``)."""
    kv_scheme: str | None = None
    """Quantization scheme of the KV cache, one of ``KV_SCHEMES``; None takes the first."""
    kv_group_size: int | None = None
    """Numbers of the KV cache that share a scale; None takes 64, or 32 where 64 does not divide an attention head."""
    max_kv_size: int | None = None
    """Tokens of a rotating KV cache, which keeps the first few and the last ones; None keeps all."""
    prefix_cache_bits: int | None = None
    """Bits to which the prefix cache is quantized once memory is short; None evicts entries instead."""
    quantize_activations: bool | None = None
    """Whether the inputs of quantized layers are quantized as well; None means False."""
    cache_required: bool = True
    """Whether a model that does not support such a KV cache is refused. If not, it keeps its usual cache, and a note
    says so."""

    @property
    def batchable(self) -> bool:
        """Whether the sequence can share a batch with others of the same KV quantization."""
        drafted = self.draft_model is not None and self.draft_required
        return not drafted and self.max_kv_size is None

    @property
    def is_turboquant(self) -> bool:
        """Whether the KV cache is quantized by TurboQuant."""
        return self.kv_scheme == TURBOQUANT

    @property
    def stored_bits(self) -> int | None:
        """Bits to which the prefix cache is quantized once memory is short; None for never, or where it already is."""
        return self.prefix_cache_bits if self.kv_bits is None else None

    def cache_bytes(self, model: ModelDescription) -> int:
        """Return the size of a model's KV cache with these options, bytes per token."""
        bits = settled(self).kv_bits
        if bits is None:
            return model.cache_per_token
        if self.is_turboquant:
            return turboquant_cache_bytes(model.cache_shape, bits)
        return quantized_cache_bytes(model.cache_per_token, int(bits), self.kv_group_size)

    def validate(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValidationError: Names each field out of range, or the options that exclude each other.
        """
        faults = self._cache_faults()
        if self.draft_tokens is not None and not 1 <= self.draft_tokens <= MAX_DRAFT_TOKENS:
            faults.append(f"draft_tokens must be at least 1 and at most {MAX_DRAFT_TOKENS} (got {self.draft_tokens})")
        if self.max_kv_size is not None and self.draft_model is not None and self.draft_required:
            faults.append("max_kv_size and draft_model exclude each other")
        if self.quantize_activations and self.adapter is not None:
            faults.append("quantize_activations and adapter exclude each other")
        if faults:
            raise ValidationError("; ".join(faults))
        given = settled(self)
        require_needed({name: getattr(given, name) for name in ("kv_group_size", "kv_scheme", "kv_bits")})

    def _cache_faults(self) -> list[str]:
        faults = []
        if self.kv_scheme is not None and self.kv_scheme not in KV_SCHEMES:
            faults.append(f"kv_scheme must be one of {', '.join(KV_SCHEMES)} (got {self.kv_scheme})")
        if self.kv_bits is not None and (fault := kv_bits_fault(self.kv_bits, self.kv_scheme)):
            faults.append(f"kv_bits {fault}")
        if self.is_turboquant and self.kv_group_size is not None:
            faults.append("kv_group_size and kv_scheme turboquant exclude each other: it has no groups")
        for name, sizes in (("kv_group_size", KV_GROUP_SIZES), ("prefix_cache_bits", PREFIX_CACHE_BITS)):
            if (size := getattr(self, name)) is not None and size not in sizes:
                faults.append(f"{name} must be one of {', '.join(map(str, sizes))} (got {size})")
        if self.max_kv_size is not None and self.max_kv_size < MIN_KV_SIZE:
            faults.append(f"max_kv_size must be at least {MIN_KV_SIZE} (got {self.max_kv_size})")
        if self.max_kv_size is not None and (self.kv_bits is not None or self.is_turboquant):
            faults.append(f"max_kv_size and {'kv_scheme' if self.kv_bits is None else 'kv_bits'} exclude each other")
        return faults


def settled(options: EngineOptions) -> EngineOptions:
    """Return options with the scheme's default bits filled in; call it once profiles and defaults are merged."""
    if options.kv_bits is not None or not options.is_turboquant:
        return options
    return attrs.evolve(options, kv_bits=TURBOQUANT_USUAL_BITS)
