"""``POST /v1/completions``: its body, its renderer and its resource."""

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated

import attrs
import falcon

from mlxk.application.use_cases.generate_text import GenerationOptions
from mlxk.domain.generation.request import (
    GenerationEvent,
    GenerationSettings,
    ReasoningDelta,
    TextDelta,
    TokenIds,
    TokenLogprob,
    ToolCallDelta,
)
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.renderer import ResponseContext
from mlxk.entrypoints.http.generation.responder import GenerationJob
from mlxk.entrypoints.http.openai.renderer import ChoiceRenderer, Entry, OpenAiRenderer, finish_reason
from mlxk.entrypoints.http.openai.sampling import MAX_CHOICES, NEUTRAL, SamplingFields, register_sampling
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.validation import FieldError, Range, StrictConverter, Unsupported

UNSUPPORTED: Mapping[str, Unsupported] = {
    "best_of": Unsupported("answers are not ranked; use n", (0, 1)),
    "suffix": Unsupported("text cannot be inserted before a suffix", ("",)),
}
"""Documented fields that are not supported."""

MAX_PROMPTS = 64
"""Prompts of one request."""

MAX_LOGPROBS = 5
"""Alternatives at each token, as in OpenAI's API."""

TokenList = Annotated[list[Annotated[int, Range(0, 2**31 - 1)]], Range(1)]
Prompt = str | list[str] | TokenList | list[TokenList]


@attrs.frozen(kw_only=True)
class CompletionRequest(SamplingFields):
    """The body of a completion request."""

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
        """Return the faults of combinations of fields."""
        faults = super().faults()
        if self.echo and self.logprobs is not None:
            faults.append(FieldError("logprobs", "is not supported together with echo", unsupported=True))
        if self.echo and not isinstance(self.prompts[0], str):
            faults.append(FieldError("echo", "is not supported together with token ids; send text", unsupported=True))
        if len(self.prompts) * (self.n or 1) > max(MAX_PROMPTS, MAX_CHOICES):
            faults.append(FieldError("n", f"and prompt together ask for more than {MAX_PROMPTS} answers"))
        return faults

    def generation_settings(self, default_max_tokens: int | None) -> GenerationSettings:
        """Return the generation settings.

        Args:
            default_max_tokens: The operator's limit, for requests without one.
        """
        return self.settings(self.max_tokens or default_max_tokens, self.logprobs)


def register_prompt(converter: StrictConverter) -> None:
    """Register the kinds of prompt with a converter."""
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


class CompletionRenderer(OpenAiRenderer):
    """Renders a response of ``POST /v1/completions``.

    Args:
        context: Facts about the response.
        echoes: The prompt that each choice repeats; empty strings for none.
        include_usage: Whether a stream ends with the usage.
    """

    id_prefix = "cmpl"
    chunk_object = "text_completion"
    whole_object = "text_completion"

    def __init__(self, context: ResponseContext, *, echoes: Sequence[str], include_usage: bool = False) -> None:
        choices = [TextRenderer(index, echo) for index, echo in enumerate(echoes)]
        super().__init__(context, choices, include_usage)


class TextRenderer(ChoiceRenderer):
    """Renders one text.

    Args:
        index: Of the choice.
        echo: The prompt to repeat before the completion; empty for none.
    """

    def __init__(self, index: int, echo: str) -> None:
        self._index = index
        self._echo = echo
        self._offset = 0

    def opening(self) -> Entry | None:
        """Return the prompt, if it is repeated."""
        return self._entry(self._echo) if self._echo else None

    def entries(self, event: GenerationEvent) -> Sequence[Entry]:
        """Return the text of an event. A completion shows reasoning and tool calls as text."""
        if isinstance(event, TextDelta):
            return (self._entry(event.text, self._logprobs(event.logprobs) if event.logprobs else None),)
        if isinstance(event, ReasoningDelta):
            return (self._entry(event.text),)
        if isinstance(event, ToolCallDelta):
            return (self._entry(event.call.arguments),)
        return (self._entry("", reason=finish_reason(event, called=False)),)

    def text_template(self) -> tuple[Entry, str] | None:
        """Return an entry with text."""
        return self._entry("text"), "text"

    def merged(self, entries: Sequence[Entry]) -> Entry:
        """Return the complete text."""
        parts = [entry["logprobs"] for entry in entries if entry["logprobs"]]
        logprobs = {key: [value for part in parts for value in part[key]] for key in parts[0]} if parts else None
        return {
            "index": self._index,
            "text": "".join(entry["text"] for entry in entries),
            "logprobs": logprobs,
            "finish_reason": next((entry["finish_reason"] for entry in entries if entry["finish_reason"]), "stop"),
        }

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> Entry:
        offsets = []
        for each in tokens:
            offsets.append(self._offset)
            self._offset += len(each.token.text)
        return {
            "tokens": [each.token.text for each in tokens],
            "token_logprobs": [each.token.logprob for each in tokens],
            "top_logprobs": [
                {alternative.text: alternative.logprob for alternative in each.alternatives} for each in tokens
            ],
            "text_offset": offsets,
        }

    def _entry(self, text: str, logprobs: Entry | None = None, reason: str | None = None) -> Entry:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}


class Completions:
    """Completes one prompt or several."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(
            CompletionRequest,
            (register_sampling, register_prompt),
            UNSUPPORTED,
            neutral={**NEUTRAL, "logprobs": (False,)},
            default_model=lambda: server.services.catalogue.default,
        )
        self._services = server.services
        self._responder = server.responder
        self._settings = server.settings

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Complete the prompts."""
        request.context.prompt_field = "prompt"
        completion = self._reader.read(request, response)
        model = self._services.catalogue.find(completion.model)
        alternatives = completion.n or 1
        options = GenerationOptions(
            settings=completion.generation_settings(self._settings.max_tokens),
            strict_memory=self._settings.strict_memory,
            choices=alternatives,
        )
        echoes = [
            prompt if completion.echo and isinstance(prompt, str) else ""
            for prompt in completion.prompts
            for _ in range(alternatives)
        ]
        job = GenerationJob(
            model=model,
            model_name=completion.model,
            start=lambda is_gone: self._services.generate(
                model.details, completion.prompts, attrs.evolve(options, is_abandoned=is_gone)
            ),
            renderer=functools.partial(CompletionRenderer, echoes=echoes, include_usage=completion.include_usage),
            stream=bool(completion.stream),
            prompts=len(completion.prompts),
            alternatives=alternatives,
            count_field="n" if alternatives > 1 else "prompt",
        )
        self._responder.respond(request, response, job)
