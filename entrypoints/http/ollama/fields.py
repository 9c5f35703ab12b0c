"""The fields that ``/api/chat`` and ``/api/generate`` share: stream, format, options, think, keep_alive, logprobs.

Some ``options`` have an effect, some are ignored, and some are refused.
"""

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import attrs

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.named_media import is_address
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.settings import MAX_LOGPROB_ALTERNATIVES, Effort
from mlxk.domain.models.model import ServedModel
from mlxk.entrypoints.http.ollama.names import ModelFields
from mlxk.entrypoints.http.openai.chat.parts import ImagePart, MediaObject
from mlxk.entrypoints.http.openai.chat.request import JsonSchema, ResponseFormat
from mlxk.entrypoints.http.openai.sampling import Penalty, Seed, Share, Stop, register_sampling
from mlxk.entrypoints.http.requests.media import is_data_url, names_file
from mlxk.entrypoints.http.requests.validation import FieldError, Neutral, Range, StrictConverter, Unsupported

KeepAlive = float | str | None
"""Seconds, or a duration such as ``1h30m``; negative: forever, 0: unload after the response, None: not set."""

FOREVER = datetime.timedelta(microseconds=(2**63 - 1) // 1000)
"""Time until a model that stays in memory forever is unloaded: Ollama's longest duration."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"([+-]?)((?:{_PART.pattern})+)")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")

_MAX_CHARACTERS = 64

_KEEP_ALIVE_FAULT = "must be a number of seconds, or a duration such as 5m or 1h30m"


def keep_alive_seconds(value: KeepAlive) -> float | None:
    """Return how long an idle model stays in memory, in seconds: infinity for forever, None if not set.

    Raises:
        ValueError: The text is not a duration.
    """
    if value is None:
        return None
    seconds = _parsed(value) if isinstance(value, str) else float(value)
    return seconds if 0 <= seconds <= FOREVER.total_seconds() else math.inf


def _parsed(text: str) -> float:
    text = text.strip()
    if len(text) <= _MAX_CHARACTERS:
        if _NUMBER.fullmatch(text):
            return float(text)
        if match := _DURATION.fullmatch(text):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(match[2]))
            return -seconds if match[1] == "-" else seconds
    raise ValueError("no duration")


MAX_IMAGES = 64
"""Most images in one message."""

_RUNNER = Unsupported("the engine takes care of it")
_OLD_SAMPLING = Unsupported("is gone from Ollama, too")

OPTIONS_WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    "repeat_last_n": Unsupported("penalties apply to the whole answer; 0 switches them off", (0, -1)),
    "num_keep": Unsupported("a conversation is never cut"),
    "num_batch": _RUNNER,
    "num_gpu": _RUNNER,
    "main_gpu": _RUNNER,
    "num_thread": _RUNNER,
    "use_mmap": _RUNNER,
    "use_mlock": _RUNNER,
    "low_vram": _RUNNER,
    "numa": _RUNNER,
    "f16_kv": _RUNNER,
    "vocab_only": _RUNNER,
    "logits_all": _RUNNER,
    "embedding_only": _RUNNER,
    "draft_num_predict": _RUNNER,
    "mirostat": _OLD_SAMPLING,
    "mirostat_tau": _OLD_SAMPLING,
    "mirostat_eta": _OLD_SAMPLING,
    "tfs_z": _OLD_SAMPLING,
    "penalize_newline": _OLD_SAMPLING,
}
"""Options that are accepted and reported as ignored; neutral values are not reported."""


@attrs.frozen(kw_only=True)
class Options:
    """The options that have an effect. Defaults are the model's, not Ollama's."""

    temperature: Annotated[float, Range(0, 5)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Range(-1)] | None = None
    """-1 and 0 mean no limit."""
    min_p: Share | None = None
    typical_p: float | None = None
    """Refused unless 1, which has no effect."""
    seed: Seed | None = None
    """-1 for a random seed."""
    stop: Stop = None
    repeat_penalty: Annotated[float, Range(0.1, 10)] | None = None
    repeat_last_n: int | None = None
    """0 disables all penalties; otherwise they apply to the whole answer."""
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_predict: Annotated[int, Range(-2)] | None = None
    """Most tokens of the answer; 0 and less mean no limit."""
    num_ctx: Annotated[int, Range(0)] | None = None
    """Most tokens of prompt and answer together; 0 for the model's context window."""

    def faults(self) -> list[FieldError]:
        """Return the faults of unsupported values."""
        if self.typical_p not in {None, 1.0}:
            reason = "is not supported: there is no such sampling; leave it out, or use top_p or min_p"
            return [FieldError("options.typical_p", reason, unsupported=True)]
        return []

    @property
    def sampling(self) -> dict[str, Any]:
        """The corresponding fields of a chat request."""
        penalties = {
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        if self.repeat_last_n == 0:
            penalties = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": None if self.seed == -1 else self.seed,
            "stop": self.stop,
            "max_tokens": self.num_predict if self.num_predict is not None and self.num_predict > 0 else None,
            **penalties,
        }


_OPTION_NAMES: Mapping[str, str] = {
    **{name: f"options.{name}" for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")},
    "repetition_penalty": "options.repeat_penalty",
    "presence_penalty": "options.presence_penalty",
    "frequency_penalty": "options.frequency_penalty",
    "max_tokens": "options.num_predict",
}
"""Paths of options by the fields of a chat request."""

FormatName = Annotated[str, Range(1, None)]
"""``json``."""

Format = FormatName | dict[str, Any] | None
"""A name, or a JSON Schema."""

Think = bool | str | None
"""Whether the model reasons, or the effort."""

EFFORTS = {"low": Effort.LOW, "medium": Effort.MEDIUM, "high": Effort.HIGH, "max": Effort.XHIGH}
"""Efforts by the values of ``think``."""

NEUTRAL: Neutral = {"format": ("",), "keep_alive": ("",), "think": ("",), "top_logprobs": (0,)}
"""Values that mean "not set"."""

WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    "shift": Unsupported("an answer ends where the context window does", (False,)),
    **{f"options.{name}": reason for name, reason in OPTIONS_WITHOUT_EFFECT.items()},
}
"""Documented fields that are accepted and reported as ignored, by their paths."""

FIELD_NAMES: Mapping[str, str] = {
    **_OPTION_NAMES,
    "response_format.json_schema.schema": "format",
    "response_format": "format",
    "enable_thinking": "think",
    "reasoning_effort": "think",
}
"""Paths of these fields by the fields of a chat request."""


@attrs.frozen(kw_only=True)
class KeepAliveFields(ModelFields):
    """The model of a request, and how long it stays in memory."""

    keep_alive: KeepAlive = None

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields, and of the duration."""
        faults = super().faults()
        try:
            keep_alive_seconds(self.keep_alive)
        except ValueError:
            faults.append(FieldError("keep_alive", _KEEP_ALIVE_FAULT))
        return faults

    @property
    def keep_alive_seconds(self) -> float | None:
        """How long the idle model stays in memory, in seconds; None for the operator's setting."""
        return keep_alive_seconds(self.keep_alive)


@attrs.frozen(kw_only=True)
class GenerationFields(KeepAliveFields):
    """The shared fields. Null counts as absent."""

    stream: bool | None = None
    """Absent means yes."""
    format: Format = None
    options: Options | None = None
    think: Think = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Range(0, MAX_LOGPROB_ALTERNATIVES)] | None = None
    truncate: bool | None = None
    """Whether to drop the oldest turns of a conversation beyond the context window, and report it."""
    shift: bool | None = None

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        faults = super().faults()
        if isinstance(self.format, str) and self.format != "json":
            faults.append(FieldError("format", 'must be "json" or a JSON Schema'))
        if isinstance(self.think, str) and self.think not in EFFORTS:
            faults.append(FieldError("think", f"must be true, false or one of {', '.join(EFFORTS)}"))
        if self.top_logprobs is not None and not self.logprobs:
            faults.append(FieldError("top_logprobs", "needs logprobs to be true"))
        return [*faults, *(self.options.faults() if self.options is not None else ())]

    @property
    def streams(self) -> bool:
        """Whether to stream the response."""
        return self.stream is not False

    @property
    def thinks(self) -> bool:
        """Whether reasoning is requested."""
        return self.think not in {None, False}

    @property
    def _context_limit(self) -> int | None:
        """Most tokens of prompt and answer together; None for the model's context window."""
        return (self.options or Options()).num_ctx or None

    def adjusted(self, options: GenerationOptions) -> GenerationOptions:
        """Return generation options with the settings that a chat request cannot express."""
        return attrs.evolve(options, context_limit=self._context_limit, keep_alive_seconds=self.keep_alive_seconds)

    def excess(self, model: ServedModel) -> Sequence[str]:
        """Return the fields whose values exceed a model's limits."""
        window, limit = model.description.context_length, self._context_limit
        return ("options.num_ctx",) if window is not None and limit is not None and limit > window else ()

    def require_thinking(self, model: ServedModel, name: str) -> None:
        """Refuse a request for reasoning if the model cannot reason.

        Args:
            model: The model.
            name: Its name in the request.

        Raises:
            CapabilityError: It cannot; the message is Ollama's.
        """
        if self.thinks and not model.details.may_reason:
            raise CapabilityError(f'"{name}" does not support thinking')

    def chat_fields(self) -> dict[str, Any]:
        """Return the corresponding fields of a chat request."""
        effort = EFFORTS[self.think].value if isinstance(self.think, str) else None
        return {
            **(self.options or Options()).sampling,
            "stream": self.streams,
            "response_format": self._response_format,
            "enable_thinking": self.think if isinstance(self.think, bool) else None,
            "reasoning_effort": effort,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
        }

    @property
    def _response_format(self) -> ResponseFormat | None:
        if self.format is None:
            return None
        if isinstance(self.format, str):
            return ResponseFormat(type="json_object")
        return ResponseFormat(type="json_schema", json_schema=JsonSchema(name="format", schema=self.format))


def image_part(encoded: str) -> ImagePart:
    """Return the message part for an image in base64 or as a data URL, address or path."""
    is_reference = is_data_url(encoded) or is_address(encoded) or names_file(encoded)
    return ImagePart(image_url=MediaObject(url=encoded if is_reference else f"data:;base64,{encoded}"))


def register_fields(converter: StrictConverter) -> None:
    """Register the unions of these fields with a converter."""
    register_sampling(converter)
    converter.union(Format, _format_kind)
    converter.union(Think, _think_kind)
    converter.union(KeepAlive, keep_alive_kind)


def _format_kind(value: object) -> object:
    if isinstance(value, str):
        return FormatName
    if isinstance(value, dict):
        return dict[str, Any]
    raise TypeError('must be "json" or a JSON Schema')


def _think_kind(value: object) -> object:
    if isinstance(value, bool):
        return bool
    if isinstance(value, str):
        return str
    raise TypeError(f"must be true, false or one of {', '.join(EFFORTS)}")


def keep_alive_kind(value: object) -> object:
    """Return the type that a value of ``keep_alive`` is structured as.

    Raises:
        TypeError: It is neither a number nor a string.
    """
    if isinstance(value, str):
        return str
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float
    raise TypeError(_KEEP_ALIVE_FAULT)
