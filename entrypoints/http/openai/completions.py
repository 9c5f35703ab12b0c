"""``POST /v1/completions``: its body, its renderer and its resource."""

import codecs
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import attrs
import falcon

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import ContextLengthError, MlxkError
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
from mlxk.domain.models.model import ModelDetails
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.renderer import ResponseContext
from mlxk.entrypoints.http.generation.responder import GenerationJob
from mlxk.entrypoints.http.openai.renderer import ChoiceRenderer, Entry, OpenAiRenderer, finish_reason
from mlxk.entrypoints.http.openai.sampling import (
    MAX_CHOICES,
    NEUTRAL,
    NO_OBFUSCATION,
    SamplingFields,
    register_sampling,
)
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.validation import FieldError, Range, StrictConverter, Unsupported, located

UNSUPPORTED: Mapping[str, Unsupported] = {
    "best_of": Unsupported("answers are not ranked; use n", (0, 1)),
    "suffix": Unsupported("text cannot be inserted before a suffix", ("",)),
}
"""Documented fields that are not supported."""

MAX_PROMPTS = 64
"""Most prompts in one request."""

MAX_LOGPROBS = 5
"""Most alternatives for each token, as in OpenAI's API."""

TokenList = Annotated[list[Annotated[int, Range(0, 2**31 - 1)]], Range(1)]
Prompt = str | list[str] | TokenList | list[TokenList]


@attrs.frozen(kw_only=True)
class CompletionRequest(SamplingFields):
    """The body of a completion request."""

    prompt: Prompt
    max_tokens: Annotated[int, Range(0)] | None = None
    """0 generates nothing: with ``echo`` and ``logprobs`` it scores the prompt alone."""
    echo: bool | None = None
    logprobs: Annotated[int, Range(0, MAX_LOGPROBS)] | None = None

    @property
    def has_one_prompt(self) -> bool:
        """Whether the prompt is one text or one list of token ids, and no list of prompts."""
        return isinstance(self.prompt, str) or isinstance(self.prompt[0], int)

    @property
    def prompts(self) -> tuple[str | TokenIds, ...]:
        """The prompts in order, each as text or token ids."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if isinstance(self.prompt[0], int):
            return (tuple(self.prompt),)
        return tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in self.prompt)

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
        # The engine generates at least one token; for a limit of 0 the renderer drops it.
        limit = 1 if self.max_tokens == 0 else self.max_tokens or default_max_tokens
        settings = self.settings(limit, self.logprobs)
        # The renderer echoes plain text as sent; the engine echoes token ids and log probabilities.
        return attrs.evolve(settings, echo=bool(self.echo) and (self.logprobs is not None or self._has_tokens))

    @property
    def _has_tokens(self) -> bool:
        return not all(isinstance(prompt, str) for prompt in self.prompts)


def register_prompt(converter: StrictConverter) -> None:
    """Register the union of prompt types with a converter."""
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
        context: Metadata of the response.
        echoes: The prompt that each choice echoes; empty strings for none.
        include_usage: Whether a stream ends with the usage.
        scored: Whether the engine emits the prompts.
        completes: Whether the response has completions besides the prompts.
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
        return super()._usage([attrs.evolve(last, usage=Usage(last.usage.prompt_tokens, 0)) for last in finished])


class TextRenderer(ChoiceRenderer):
    """Renders one text.

    Args:
        index: Index of the choice.
        echo: The prompt to echo before the completion; empty for none.
        scored: Whether the engine emits the prompt as an event.
        completes: Whether the text has a completion.
    """

    def __init__(self, index: int, echo: str, scored: bool = False, completes: bool = True) -> None:
        self._index = index
        self._echo = echo
        self._scored = scored
        self._completes = completes
        self._offset = 0
        """Characters of the text so far."""
        self._decoder: codecs.IncrementalDecoder | None = None
        """Decodes the UTF-8 of the completion's tokens; None before the first."""

    def opening(self) -> Entry | None:
        """Return the prompt, if it is echoed and the engine does not emit it."""
        return self._entry(self._echo) if self._echo and not self._scored else None

    def entries(self, event: GenerationEvent) -> Sequence[Entry]:
        """Return the text of an event; reasoning and tool calls are text here."""
        if isinstance(event, PromptDelta):
            return (self._prompt(event),)
        if isinstance(event, Finished):
            reason = finish_reason(event, called=False) if self._completes else "length"
            return (self._entry("", reason=reason),)
        if not self._completes:
            return ()
        if isinstance(event, TextDelta):
            return (self._entry(event.text, self._logprobs(event) if event.logprobs else None),)
        text = event.text if isinstance(event, ReasoningDelta) else event.call.arguments
        self._offset += len(text)
        return (self._entry(text),)

    def text_template(self) -> tuple[Entry, str] | None:
        """Return an entry with text; none without a completion."""
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
        """Return the prompt as sent, or its tokens decoded, with their log probabilities."""
        text = self._echo or event.text
        self._offset = len(text)
        if not event.logprobs:
            return self._entry(text)
        # The decoded tokens may begin with a BOS token or a space that the text lacks.
        before = len(event.text) - len(text)
        starts, _ = _token_offsets(_utf8_decoder(), event.logprobs)
        logprobs = _as_columns(event.logprobs, [max(0, start - before) for start in starts])
        logprobs["token_logprobs"][0] = logprobs["top_logprobs"][0] = None
        return self._entry(text, logprobs)

    def _logprobs(self, event: TextDelta) -> Entry:
        """Return the log probabilities of a text, with the offsets of its tokens."""
        first_offset = self._offset
        if self._decoder is None:
            self._decoder = _utf8_decoder()
            # The first decoded token may begin with a space that the text lacks.
            self._offset -= event.logprobs[0].token.text.startswith(" ") and not event.text.startswith(" ")
        starts, length = _token_offsets(self._decoder, event.logprobs)
        offsets = [max(first_offset, self._offset + start) for start in starts]
        self._offset += length
        return _as_columns(event.logprobs, offsets)

    def _entry(self, text: str, logprobs: Entry | None = None, reason: str | None = None) -> Entry:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}


_utf8_decoder = functools.partial(codecs.getincrementaldecoder("utf-8"), "replace")


def _token_offsets(decoder: codecs.IncrementalDecoder, tokens: Sequence[TokenLogprob]) -> tuple[list[int], int]:
    """Return the offset of each token in the decoded text of all, and the length of that text, in characters.

    A token that continues a character has the offset of the character.

    Args:
        decoder: The UTF-8 decoder, after all earlier tokens.
        tokens: The next tokens.
    """
    offsets, length = [], 0
    for scored in tokens:
        continues = scored.token.utf8[:1] in _CONTINUATION_BYTES
        pending = bool(decoder.getstate()[0])
        offsets.append(length + (pending and not continues))  # an incomplete character becomes U+FFFD
        length += len(decoder.decode(scored.token.utf8))
    return offsets, length


_CONTINUATION_BYTES = {bytes([byte]) for byte in range(0x80, 0xC0)}
"""UTF-8 bytes that do not begin a character."""


def _as_columns(tokens: Sequence[TokenLogprob], offsets: list[int]) -> dict[str, list[Any]]:
    """Return log probabilities as OpenAI's ``logprobs``."""
    return {
        "tokens": [scored.token.text for scored in tokens],
        "token_logprobs": [scored.token.logprob for scored in tokens],
        "top_logprobs": [_by_text(scored.alternatives) for scored in tokens],
        "text_offset": offsets,
    }


def _by_text(alternatives: Sequence[TokenAlternative]) -> dict[str, float]:
    """Return log probabilities by token text: the highest where tokens, as parts of a character, have the same text."""
    logprobs: dict[str, float] = {}
    for alternative in alternatives:  # the highest first
        logprobs.setdefault(alternative.text, alternative.logprob)
    return logprobs


class Completions:
    """Completes one or several prompts."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(
            CompletionRequest,
            (register_sampling, register_prompt),
            UNSUPPORTED,
            {"stream_options.include_obfuscation": NO_OBFUSCATION},
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
            start=lambda client: self._start(request, completion, model.details, client.add_to(options)),
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

    def _start(
        self, request: falcon.Request, completion: CompletionRequest, model: ModelDetails, options: GenerationOptions
    ) -> Sequence[TextStream]:
        """Start the completions; an error about one prompt of a list names its element.

        Raises:
            MlxkError: See ``GenerateText``.
        """
        try:
            return self._services.generate(model, completion.prompts, options)
        except MlxkError as error:
            if completion.has_one_prompt:
                raise
            detail = error.detail or {}
            field = request.context.prompt_field = f"prompt[{detail.get('index', 0)}]"
            if isinstance(error, ContextLengthError):
                raise
            detail.pop("index", None)
            if "problems" not in detail:
                raise
            raise located(error, field, {"prompt": field}) from error
