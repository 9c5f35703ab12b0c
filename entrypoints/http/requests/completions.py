"""The body of ``POST /v1/completions``."""

from typing import Annotated

import attrs

from mlxk.domain.generation.request import GenerationSettings, TokenIds
from mlxk.entrypoints.http.requests.converter import Range, StrictConverter
from mlxk.entrypoints.http.requests.field_errors import FieldError
from mlxk.entrypoints.http.requests.sampling import MAX_CHOICES, SamplingFields

MAX_PROMPTS = 64
"""Prompts one request may bring."""

MAX_LOGPROBS = 5
"""Alternatives at each token, as OpenAI has it here."""

TokenList = Annotated[list[Annotated[int, Range(0, 2**31 - 1)]], Range(1)]
Prompt = str | list[str] | TokenList | list[TokenList]


@attrs.frozen(kw_only=True)
class CompletionRequest(SamplingFields):
    """What a completion request asks. Documented fields that are missing here stand in ``support``."""

    prompt: Prompt
    echo: bool | None = None
    logprobs: Annotated[int, Range(0, MAX_LOGPROBS)] | None = None

    @property
    def prompts(self) -> tuple[str | TokenIds, ...]:
        """The prompts, in order: text, or tokens."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if isinstance(self.prompt[0], int):
            return (tuple(self.prompt),)
        return tuple(each if isinstance(each, str) else tuple(each) for each in self.prompt)

    def faults(self) -> list[FieldError]:
        """Return what is wrong with combinations of fields."""
        faults = super().faults()
        if self.echo and self.logprobs is not None:
            faults.append(FieldError("logprobs", "is not supported together with echo", unsupported=True))
        if self.echo and not isinstance(self.prompts[0], str):
            faults.append(FieldError("echo", "is not supported together with token ids; send text", unsupported=True))
        if len(self.prompts) * (self.n or 1) > max(MAX_PROMPTS, MAX_CHOICES):
            faults.append(FieldError("n", f"and prompt together ask for more than {MAX_PROMPTS} answers"))
        return faults

    def generation_settings(self, default_max_tokens: int | None) -> GenerationSettings:
        """Return the settings of an answer.

        Args:
            default_max_tokens: The operator's limit, for requests that name none.
        """
        return self.settings(self.max_tokens or default_max_tokens, self.logprobs)


def register_prompt(converter: StrictConverter) -> None:
    """Teach a converter the kinds of prompt."""
    converter.union(Prompt, _prompt_kind)


def _prompt_kind(value: object) -> object:
    if isinstance(value, str):
        return str
    if isinstance(value, list):
        first = value[0] if value else ""
        if isinstance(first, list):
            return Annotated[list[TokenList], Range(1, MAX_PROMPTS)]
        return TokenList if isinstance(first, int) else Annotated[list[str], Range(1, MAX_PROMPTS)]
    raise TypeError("must be a string, an array of strings, or token ids")
