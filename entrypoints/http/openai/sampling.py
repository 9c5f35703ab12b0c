"""The fields that chat and text completions share: sampling, stop strings, limits."""

from typing import Annotated

import attrs

from mlxk.domain.generation.settings import MAX_LOGIT_BIASES, MAX_STOP_SEQUENCES, SEED_RANGE, GenerationSettings
from mlxk.entrypoints.http.requests.validation import FieldError, Neutral, Range, StrictConverter, Unsupported

MAX_CHOICES = 128
"""Most completions of each prompt, as in OpenAI's API."""

MAX_STOP_CHARACTERS = 1024
"""Most characters of a stop string."""

MetadataEntries = Annotated[dict[str, Annotated[str, Range(0, 512)]], Range(0, 16)]
"""OpenAI's metadata with its limits: 16 entries, 512 characters each."""

Metadata = bool | MetadataEntries | None
"""OpenAI's entries, which the response returns; or whether the answer begins with the metadata of images."""

StopString = Annotated[str, Range(0, MAX_STOP_CHARACTERS)]
StopList = Annotated[list[StopString], Range(0, MAX_STOP_SEQUENCES)]
Stop = StopString | StopList | None
Count = Annotated[int, Range(1)]
Temperature = Annotated[float, Range(0, 2)]
Share = Annotated[float, Range(0, 1)]
Penalty = Annotated[float, Range(-2, 2)]
Bias = Annotated[dict[str, Annotated[float, Range(-100, 100)]], Range(0, MAX_LOGIT_BIASES)]
Seed = Annotated[int, Range(1 - SEED_RANGE, SEED_RANGE - 1)]


NO_OBFUSCATION = Unsupported("events are not padded against traffic analysis", (False,))
"""Of ``stream_options.include_obfuscation``."""


@attrs.frozen(kw_only=True)
class StreamOptions:
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


@attrs.frozen(kw_only=True)
class SamplingFields:
    """The shared fields. Null counts as absent."""

    model: Annotated[str, Range(1, 4096)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Range(1, MAX_CHOICES)] | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Range(-1)] | None = None
    """-1 and 0 mean no limit."""
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Range(0.1, 10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Bias | None = None
    seed: Seed | None = None
    stop: Stop = None
    ignore_eos: bool | None = None
    """Whether to generate up to the limit of tokens, as benchmarking clients request."""
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def settings(self, max_tokens: int | None, logprobs: int | None) -> GenerationSettings:
        """Return the generation settings."""
        return GenerationSettings(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            seed=None if self.seed is None else self.seed % SEED_RANGE,
            stop=tuple(filter(None, (self.stop,) if isinstance(self.stop, str) else self.stop or ())),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
        )

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        faults = []
        if self.stream_options is not None and self.stream_options.include_usage and not self.stream:
            faults.append(FieldError("stream_options", "is only allowed when stream is true"))
        if any(not key.isdecimal() or not key.isascii() or len(key) > _TOKEN_DIGITS for key in self.logit_bias or {}):
            faults.append(FieldError("logit_bias", "must have token ids as keys"))
        return faults


_TOKEN_DIGITS = 9
"""Most digits of a token id."""


def register_sampling(converter: StrictConverter) -> None:
    """Register the unions of these fields with a converter."""
    converter.union(Stop, _stop_kind)
    converter.union(Metadata, _metadata_kind)


def _stop_kind(value: object) -> object:
    if isinstance(value, str):
        return StopString
    if isinstance(value, list):
        return StopList
    raise TypeError("must be a string or an array of strings")


def _metadata_kind(value: object) -> object:
    if isinstance(value, bool):
        return bool
    if isinstance(value, dict):
        return MetadataEntries
    raise TypeError("must be an object, true or false")


NEUTRAL: Neutral = {
    "max_tokens": (-1,),
    "logit_bias": ([],),
    "stream_options": ({}, []),
}
"""Values that mean "not set": no limit, and the empty list that some languages write for an empty object."""
