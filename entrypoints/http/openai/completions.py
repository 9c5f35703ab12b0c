"""``POST /v1/completions``: its body, its renderer and its resource."""

import codecs
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import attrs
import falcon

from mlxk.application.generation_input import GenerationOptions
from mlxk.domain.generation.request import (
    Finished,
    GenerationEvent,
    PromptDelta,
    ReasoningDelta,
    TextDelta,
    TokenAlternative,
    TokenIds,
    TokenLogprob,
    Usage,
)
from mlxk.domain.generation.settings import GenerationSettings
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
    max_tokens: Annotated[int, Range(0)] | None = None
    """0 completes nothing: with ``echo`` and ``logprobs`` only the prompt is scored."""
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
        if len(self.prompts) * (self.n or 1) > MAX_CHOICES:
            faults.append(FieldError("n", f"and prompt together ask for more than {MAX_CHOICES} answers"))
        return faults

    def generation_settings(self, default_max_tokens: int | None) -> GenerationSettings:
        """Return the generation settings.

        Args:
            default_max_tokens: The operator's limit, for requests without one.
        """
        # The engine's shortest completion is one token; it is left out of a response without any.
        limit = 1 if self.max_tokens == 0 else self.max_tokens or default_max_tokens
        settings = self.settings(limit, self.logprobs)
        # Text alone is repeated as it came; tokens are spelled by the model.
        return attrs.evolve(settings, echo=bool(self.echo) and (self.logprobs is not None or self._has_tokens))

    @property
    def _has_tokens(self) -> bool:
        return not all(isinstance(each, str) for each in self.prompts)


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
        scored: Whether the engine emits the prompts.
        completes: Whether the response has completions, beside the prompts.
    """

    id_prefix = "cmpl"
    chunk_object = "text_completion"
    whole_object = "text_completion"

    def __init__(
        self,
        context: ResponseContext,
        *,
        echoes: Sequence[str],
        include_usage: bool = False,
        scored: bool = False,
        completes: bool = True,
    ) -> None:
        choices = [TextRenderer(index, echo, scored, completes) for index, echo in enumerate(echoes)]
        super().__init__(context, choices, include_usage)
        self._completes = completes

    def _usage(self, finished: Sequence[Finished]) -> dict[str, object]:
        if self._completes:
            return super()._usage(finished)
        return super()._usage([attrs.evolve(each, usage=Usage(each.usage.prompt_tokens, 0)) for each in finished])


class TextRenderer(ChoiceRenderer):
    """Renders one text.

    Args:
        index: Of the choice.
        echo: The prompt to repeat before the completion; empty for none.
        scored: Whether the prompt comes as an event, from the engine.
        completes: Whether the text has a completion.
    """

    def __init__(self, index: int, echo: str, scored: bool = False, completes: bool = True) -> None:
        self._index = index
        self._echo = echo
        self._scored = scored
        self._completes = completes
        self._offset = 0
        self._spelled: codecs.IncrementalDecoder | None = None

    def opening(self) -> Entry | None:
        """Return the prompt, if it is repeated and no event brings it."""
        return self._entry(self._echo) if self._echo and not self._scored else None

    def entries(self, event: GenerationEvent) -> Sequence[Entry]:
        """Return the text of an event. A completion shows reasoning and tool calls as text."""
        if isinstance(event, PromptDelta):
            return (self._prompt(event),)
        if isinstance(event, Finished):
            reason = finish_reason(event, called=False) if self._completes else "length"
            return (self._entry("", reason=reason),)
        if not self._completes:
            return ()
        if isinstance(event, TextDelta):
            return (self._entry(event.text, self._logprobs(event) if event.logprobs else None),)
        if isinstance(event, ReasoningDelta):
            self._offset += len(event.text)
            return (self._entry(event.text),)
        return (self._entry(event.call.arguments),)

    def text_template(self) -> tuple[Entry, str] | None:
        """Return an entry with text."""
        return (self._entry("text"), "text") if self._completes else None

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

    def _prompt(self, event: PromptDelta) -> Entry:
        """Return the prompt as it came, or as its tokens spell it, with their log probabilities."""
        text = self._echo or event.text
        self._offset = len(text)
        if not event.logprobs:
            return self._entry(text)
        # A token that begins every prompt, or a space, is in the spelling and not in the text.
        before = len(event.text) - len(text)
        starts, _ = _places(codecs.getincrementaldecoder("utf-8")("replace"), event.logprobs)
        logprobs = _as_columns(event.logprobs, [max(0, start - before) for start in starts])
        logprobs["token_logprobs"][0] = logprobs["top_logprobs"][0] = None
        return self._entry(text, logprobs)

    def _logprobs(self, event: TextDelta) -> Entry:
        """Return the tokens with their places in the text."""
        began = self._offset
        if self._spelled is None:
            self._spelled = codecs.getincrementaldecoder("utf-8")("replace")
            # The space of a text's first token may be in the spelling and not in the text.
            self._offset -= event.logprobs[0].token.text.startswith(" ") and not event.text.startswith(" ")
        starts, length = _places(self._spelled, event.logprobs)
        offsets = [max(began, self._offset + start) for start in starts]
        self._offset += length
        return _as_columns(event.logprobs, offsets)

    def _entry(self, text: str, logprobs: Entry | None = None, reason: str | None = None) -> Entry:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _places(decoder: codecs.IncrementalDecoder, tokens: Sequence[TokenLogprob]) -> tuple[list[int], int]:
    """Return where tokens begin in the text that they spell, and its length; parts of a character begin where it does.

    Args:
        decoder: Of UTF-8, after the tokens before.
        tokens: The next ones.
    """
    starts, length = [], 0
    for each in tokens:
        continues = each.token.utf8[:1] in _CONTINUING
        begun = bool(decoder.getstate()[0])
        starts.append(length + (begun and not continues))  # what was begun and does not go on is one character
        length += len(decoder.decode(each.token.utf8))
    return starts, length


_CONTINUING = {bytes([each]) for each in range(0x80, 0xC0)}
"""The bytes of UTF-8 that begin no character."""


def _as_columns(tokens: Sequence[TokenLogprob], offsets: list[int]) -> dict[str, list[Any]]:
    """Return log probabilities as OpenAI's ``logprobs``."""
    return {
        "tokens": [each.token.text for each in tokens],
        "token_logprobs": [each.token.logprob for each in tokens],
        "top_logprobs": [_by_text(each.alternatives) for each in tokens],
        "text_offset": offsets,
    }


def _by_text(alternatives: Sequence[TokenAlternative]) -> dict[str, float]:
    """Return the log probabilities by text; of tokens with the same text, such as parts of a character, the highest."""
    found: dict[str, float] = {}
    for each in alternatives:
        found.setdefault(each.text, each.logprob)
    return found


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
        self._settings_for = server.settings_for

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Complete the prompts."""
        request.context.prompt_field = "prompt"
        completion = self._reader.read(request, response)
        model = self._services.catalogue.find(completion.model)
        alternatives = completion.n or 1
        settings = completion.generation_settings(self._settings_for(model).max_tokens)
        options = GenerationOptions(
            settings=settings,
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
            start=lambda client: self._services.generate(model.details, completion.prompts, client.add_to(options)),
            renderer=functools.partial(
                CompletionRenderer,
                echoes=echoes,
                include_usage=completion.include_usage,
                scored=settings.echo,
                completes=completion.max_tokens != 0,
            ),
            stream=bool(completion.stream),
            prompts=len(completion.prompts),
            alternatives=alternatives,
            count_field="n" if alternatives > 1 else "prompt",
        )
        self._responder.respond(request, response, job)
