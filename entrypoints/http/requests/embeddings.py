"""The body of ``POST /v1/embeddings``."""

from collections.abc import Mapping
from typing import Annotated

import attrs

from mlxk.domain.embedding import MAX_INPUTS, EmbeddingSettings, Input, InputKind
from mlxk.entrypoints.http.requests.converter import OneOf, Range, StrictConverter
from mlxk.entrypoints.http.requests.field_errors import FieldError
from mlxk.entrypoints.http.requests.support import Unsupported

Inputs = str | list[str] | list[int] | list[list[int]]

UNSUPPORTED: Mapping[str, Unsupported] = {}
"""Documented fields that are not supported: none; see ``support``."""

_NEITHER = "must be a string, an array of strings, or tokens as an array of numbers or of such arrays"


@attrs.frozen(kw_only=True)
class EmbeddingsRequest:
    """What a request for vectors asks."""

    model: Annotated[str, Range(1, None)]
    input: Inputs
    encoding_format: Annotated[str, OneOf(("float", "base64"))] | None = None
    dimensions: Annotated[int, Range(1, None)] | None = None
    user: str | None = None
    input_type: Annotated[str, OneOf(tuple(kind.value for kind in InputKind))] | None = None
    instruct: str | None = None
    truncate: bool | None = None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The texts, each as text or as tokens."""
        if isinstance(self.input, str):
            return (self.input,)
        if all(isinstance(each, int) for each in self.input):
            return (tuple(int(each) for each in self.input if isinstance(each, int)),)
        return tuple(each if isinstance(each, str) else tuple(each) for each in self.input if not isinstance(each, int))

    def faults(self) -> list[FieldError]:
        """Return what is wrong with combinations of fields."""
        if self.instruct is not None and self.input_type != InputKind.QUERY.value:
            return [FieldError("instruct", "belongs to the input_type query")]
        return []

    def settings(self) -> EmbeddingSettings:
        """Return how to turn the texts into vectors."""
        return EmbeddingSettings(
            kind=InputKind(self.input_type) if self.input_type else InputKind.DOCUMENT,
            instruction=self.instruct,
            dimensions=self.dimensions,
            truncate=bool(self.truncate),
        )


def register_inputs(converter: StrictConverter) -> None:
    """Teach a converter the kinds of input."""
    converter.union(Inputs, _kind)


def _kind(value: object) -> object:
    if isinstance(value, str):
        return Annotated[str, Range(1, None)]
    if not isinstance(value, list):
        raise TypeError(_NEITHER)
    first = value[0] if value else ""
    if isinstance(first, str):
        return Annotated[list[Annotated[str, Range(1, None)]], Range(1, MAX_INPUTS)]
    if isinstance(first, list):
        return Annotated[list[Annotated[list[int], Range(1, None)]], Range(1, MAX_INPUTS)]
    if isinstance(first, int) and not isinstance(first, bool):
        return Annotated[list[int], Range(1, None)]
    raise TypeError(_NEITHER)
