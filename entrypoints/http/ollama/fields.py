"""The fields that ``/api/chat`` and ``/api/generate`` share: stream, format, options, think, keep_alive, logprobs.

Of the ``options`` some are honoured, some have no effect here, and some are refused.
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
"""Seconds, or a duration such as ``1h30m``; negative for ever, 0 until the end of the response, None says nothing."""

FOREVER = datetime.timedelta(microseconds=(2**63 - 1) // 1000)
"""The time until a model that stays in memory is unloaded: the longest duration of Ollama."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"([+-]?)((?:{_PART.pattern})+)")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")

_LONGEST_CHARACTERS = 64


def keep_alive_seconds(value: KeepAlive) -> float | None:
    """Return how long an idle model stays in memory, seconds: infinity for ever; None when nothing is said.

    Raises:
        ValueError: It is no duration.
    """
    if value is None:
        return None
    seconds = _parsed(value) if isinstance(value, str) else float(value)
    return seconds if 0 <= seconds <= FOREVER.total_seconds() else math.inf


def _parsed(text: str) -> float:
    text = text.strip()
    if len(text) <= _LONGEST_CHARACTERS:
        if _NUMBER.fullmatch(text):
            return float(text)
        if found := _DURATION.fullmatch(text):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(found[2]))
            return -seconds if found[1] == "-" else seconds
    raise ValueError("no duration")


MAX_IMAGES = 64
"""Images of one message."""

_OF_THE_RUNNER = Unsupported("the engine takes care of it")
_OLD_SAMPLING = Unsupported("is gone from Ollama, too")

OPTIONS_WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    "repeat_last_n": Unsupported("penalties apply to the whole answer; 0 switches them off", (0, -1)),
    "num_keep": Unsupported("a conversation is never cut"),
    "num_batch": _OF_THE_RUNNER,
    "num_gpu": _OF_THE_RUNNER,
    "main_gpu": _OF_THE_RUNNER,
    "num_thread": _OF_THE_RUNNER,
    "use_mmap": _OF_THE_RUNNER,
    "use_mlock": _OF_THE_RUNNER,
    "low_vram": _OF_THE_RUNNER,
    "numa": _OF_THE_RUNNER,
    "f16_kv": _OF_THE_RUNNER,
    "vocab_only": _OF_THE_RUNNER,
    "logits_all": _OF_THE_RUNNER,
    "embedding_only": _OF_THE_RUNNER,
    "draft_num_predict": _OF_THE_RUNNER,
    "mirostat": _OLD_SAMPLING,
    "mirostat_tau": _OLD_SAMPLING,
    "mirostat_eta": _OLD_SAMPLING,
    "tfs_z": _OLD_SAMPLING,
    "penalize_newline": _OLD_SAMPLING,
}
"""Options that are accepted and reported as ignored; the values beside them ask for nothing."""


@attrs.frozen(kw_only=True)
class Options:
    """The options that have an effect. What a request leaves out has the model's value, not Ollama's."""

    temperature: Annotated[float, Range(0, 5)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Range(-1)] | None = None
    """-1 and 0 keep all tokens."""
    min_p: Share | None = None
    typical_p: float | None = None
    """Refused unless 1, which changes nothing."""
    seed: Seed | None = None
    """-1 draws a random one."""
    stop: Stop = None
    repeat_penalty: Annotated[float, Range(0.1, 10)] | None = None
    repeat_last_n: int | None = None
    """0 switches the penalties off; they apply to the whole answer otherwise."""
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_predict: Annotated[int, Range(-2)] | None = None
    """Most tokens of the answer; 0 and less set no limit."""
    num_ctx: Annotated[int, Range(0)] | None = None
    """Most tokens of prompt and answer together; 0 sets no limit beside the model's."""

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations, and of values that are not supported."""
        if self.typical_p not in {None, 1.0}:
            reason = "is not supported: there is no such sampling; leave it out, or use top_p or min_p"
            return [FieldError("options.typical_p", reason, unsupported=True)]
        return []

    @property
    def context_limit(self) -> int | None:
        """Most tokens of prompt and answer together; None for the model's window."""
        return self.num_ctx or None

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of a chat request that say the same."""
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
"""The paths of options, by the fields of a chat request."""


def register_options(converter: StrictConverter) -> None:
    """Register the unions of these fields with a converter."""
    register_sampling(converter)


Format = str | dict[str, Any] | None
"""``json``, or a JSON Schema."""

Think = bool | str | None
"""Whether the model reasons, or how much."""

EFFORTS = {"low": Effort.LOW, "medium": Effort.MEDIUM, "high": Effort.HIGH, "max": Effort.XHIGH}
"""Efforts by the levels of ``think``."""

NEUTRAL: Neutral = {"format": ("",), "keep_alive": ("",), "think": ("",), "top_logprobs": (0,)}
"""Values with which a field asks for nothing."""

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
"""The paths of these fields, by the fields of a chat request."""


@attrs.frozen(kw_only=True)
class GenerationFields(ModelFields):
    """The shared fields. A field with a null value counts as absent."""

    stream: bool | None = None
    """Absent means to stream."""
    format: Format = None
    options: Options | None = None
    think: Think = None
    keep_alive: KeepAlive = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Range(0, MAX_LOGPROB_ALTERNATIVES)] | None = None
    truncate: bool | None = None
    """Whether the oldest turns are left out of a conversation beyond the context window, and that is reported."""
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
        try:
            keep_alive_seconds(self.keep_alive)
        except ValueError:
            faults.append(FieldError("keep_alive", "must be a number of seconds, or a duration such as 5m or 1h30m"))
        return [*faults, *(self.options.faults() if self.options is not None else ())]

    @property
    def streams(self) -> bool:
        """Whether to stream the response."""
        return self.stream is not False

    @property
    def keep_alive_seconds(self) -> float | None:
        """How long the model stays in memory when it is idle; None as the operator says."""
        return keep_alive_seconds(self.keep_alive)

    @property
    def thinks(self) -> bool:
        """Whether the model is to reason."""
        return self.think not in {None, False}

    def adjusted(self, options: GenerationOptions) -> GenerationOptions:
        """Return the options of a generation with what a chat request cannot say."""
        limit = self.options.context_limit if self.options is not None else None
        return attrs.evolve(options, context_limit=limit, keep_alive_seconds=self.keep_alive_seconds)

    def excess(self, model: ServedModel) -> Sequence[str]:
        """Return the fields that ask for more than a model has."""
        window, limit = model.description.context_length, self.options.num_ctx if self.options is not None else None
        return ("options.num_ctx",) if window is not None and limit is not None and limit > window else ()

    def require_thinking(self, model: ServedModel, name: str) -> None:
        """Refuse to reason with a model that cannot.

        Args:
            model: The model.
            name: Its name in the request.

        Raises:
            CapabilityError: It cannot; the message is Ollama's.
        """
        if self.thinks and not model.details.may_reason:
            raise CapabilityError(f'"{name}" does not support thinking')

    def chat_fields(self) -> dict[str, Any]:
        """Return the fields of a chat request that say the same."""
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
    """Return the part of a message for an image in base64, or by its address or path; its content says its format."""
    named = is_data_url(encoded) or is_address(encoded) or names_file(encoded)
    return ImagePart(image_url=MediaObject(url=encoded if named else f"data:;base64,{encoded}"))


def register_fields(converter: StrictConverter) -> None:
    """Register the unions of these fields with a converter."""
    register_options(converter)
    converter.union(Format, _format_kind)
    converter.union(Think, _think_kind)
    converter.union(KeepAlive, keep_alive_kind)


def _format_kind(value: object) -> object:
    if isinstance(value, str):
        return str
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
    """Return the kind of a value of ``keep_alive``.

    Raises:
        TypeError: It is neither a number nor a string.
    """
    if isinstance(value, str):
        return str
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float
    raise TypeError("must be a number of seconds, or a duration such as 5m or 1h30m")
