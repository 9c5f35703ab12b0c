"""The fields that ``/api/chat`` and ``/api/generate`` share: stream, format, options, think, keep_alive, logprobs."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import attrs

from mlxk.application.use_cases.generate_text import GenerationOptions
from mlxk.application.use_cases.serve_catalogue import ServedModel
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.request import MAX_LOGPROB_ALTERNATIVES, Effort
from mlxk.entrypoints.http.ollama.durations import KeepAlive, keep_alive_seconds
from mlxk.entrypoints.http.ollama.names import ModelFields
from mlxk.entrypoints.http.ollama.options import FIELD_NAMES as OPTION_NAMES
from mlxk.entrypoints.http.ollama.options import WITHOUT_EFFECT as OPTIONS_WITHOUT_EFFECT
from mlxk.entrypoints.http.ollama.options import Options, register_options
from mlxk.entrypoints.http.openai.chat.messages import ImagePart, ImageUrl
from mlxk.entrypoints.http.openai.chat.request import JsonSchema, ResponseFormat
from mlxk.entrypoints.http.requests.body import Neutral
from mlxk.entrypoints.http.requests.validation import FieldError, Range, StrictConverter, Unsupported

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
    **OPTION_NAMES,
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
    """Return the part of a message for an image in base64; its format is that of the content."""
    url = encoded if encoded[:5].lower() == "data:" else f"data:image/png;base64,{encoded}"
    return ImagePart(image_url=ImageUrl(url=url))


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
