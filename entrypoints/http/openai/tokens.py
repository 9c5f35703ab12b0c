"""``POST /tokenize``, ``/detokenize`` and ``/apply-template``, also below ``/v1``: they load no weights.

Requests may use the fields of llama.cpp's server or of vLLM's; responses have both. Messages are rendered as by
``/v1/chat/completions``, whose bodies are accepted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import attrs
import falcon

from mlxk.application.ports.model_tasks import TokenizedText, TokenSpelling
from mlxk.domain.models.model import ServedModel
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.responder import report_adaptations
from mlxk.entrypoints.http.openai.chat.messages import MessageParam, register_messages
from mlxk.entrypoints.http.openai.chat.request import MAX_MESSAGES, NEUTRAL, ChatRequest
from mlxk.entrypoints.http.openai.chat.request import UNSUPPORTED as CHAT_UNSUPPORTED
from mlxk.entrypoints.http.openai.chat.request import WITHOUT_EFFECT as CHAT_WITHOUT_EFFECT
from mlxk.entrypoints.http.openai.chat.tools import register_tool_choice
from mlxk.entrypoints.http.openai.sampling import SamplingFields, register_sampling
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.validation import FieldError, Range, Unsupported
from mlxk.entrypoints.http.resources import send_json

ModelName = Annotated[str, Range(1, 4096)]
TokenId = Annotated[int, Range(0, 2**31 - 1)]

UNSUPPORTED: Mapping[str, Unsupported] = {
    **CHAT_UNSUPPORTED,
    "chat_template": Unsupported("the model's own template is used"),
    "continue_final_message": Unsupported("the prompt ends with whole messages", (False,)),
}
"""Documented fields that are not supported."""

_GENERATION = (
    *(field.name for field in attrs.fields(SamplingFields)),
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "parallel_tool_calls",
    "response_format",
    "thinking_start_token",
    "thinking_end_token",
    "prompt_cache_key",
    "safety_identifier",
)

WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    **CHAT_WITHOUT_EFFECT,
    **{name: Unsupported("nothing is generated") for name in _GENERATION if name != "model"},
    "metadata": Unsupported("there is no answer that they come back with", (False, True)),
}
"""Documented fields that are accepted and reported as ignored, by their paths."""


@attrs.frozen(kw_only=True)
class TemplateRequest(ChatRequest):
    """A chat request whose rendered prompt is returned."""

    model: ModelName | None = None  # type: ignore[assignment]
    """None for the only loaded model."""
    add_generation_prompt: bool | None = None


@attrs.frozen(kw_only=True)
class TokenizeRequest(TemplateRequest):
    """A text, or a chat request whose rendered prompt is tokenized."""

    messages: Annotated[list[MessageParam], Range(1, MAX_MESSAGES)] = attrs.field(factory=list)
    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        faults = super().faults()
        sources = [name for name in ("content", "prompt", "messages") if getattr(self, name) not in (None, [])]
        if not sources:
            faults.append(FieldError("content", "is required (or prompt, or messages)"))
        faults += [FieldError(name, f"contradicts {sources[0]}; send one of them") for name in sources[1:]]
        if len({self.add_special, self.add_special_tokens} - {None}) > 1:
            faults.append(FieldError("add_special_tokens", "contradicts add_special; send one of them"))
        return faults

    @property
    def text(self) -> str | None:
        """The text to tokenize; None for messages."""
        return self.content if self.prompt is None else self.prompt

    @property
    def adds_special(self) -> bool:
        """Whether to add the special tokens of a prompt, such as BOS; by default for ``prompt``, not ``content``."""
        choice = self.add_special if self.add_special_tokens is None else self.add_special_tokens
        return self.prompt is not None if choice is None else choice


@attrs.frozen(kw_only=True)
class DetokenizeRequest:
    """Token ids to decode."""

    tokens: list[TokenId]
    model: ModelName | None = None

    def faults(self) -> list[FieldError]:
        """Return no faults."""
        return []


class _TokenResource:
    """Base of the three resources."""

    def __init__(self, server: ServerContext) -> None:
        self._services = server.services
        self._settings_for = server.settings_for
        self._lifecycle = server.lifecycle
        self._media = server.media

    def _model(self, name: str | None) -> ServedModel:
        self._lifecycle.require_open()
        catalogue = self._services.catalogue
        return catalogue.only() if name is None else catalogue.find(name)

    def _rendered(self, chat: TemplateRequest, model: ServedModel) -> TokenizedText:
        """Return the rendered prompt of a chat request; with several chunks of images, that of the first.

        Raises:
            MlxkError: See ``TokenizeText``.
        """
        settings = self._settings_for(model)
        chat.require_abilities(model, settings)
        first, *others = self._services.tokenize(
            model.details,
            chat.incoming(self._media.of_request()),
            chat.generation_options(model, settings),
            opens_answer=chat.add_generation_prompt is not False,
        )
        if not others:
            return first
        note = f"This is the first of {len(others) + 1} prompts, one for each chunk of images."
        return attrs.evolve(first, approximation=" ".join(filter(None, (first.approximation, note))))


class Tokenize(_TokenResource):
    """Tokenizes text, or the prompt of messages."""

    def __init__(self, server: ServerContext) -> None:
        super().__init__(server)
        unions = (register_sampling, register_messages, register_tool_choice)
        self._reader = BodyReader(TokenizeRequest, unions, UNSUPPORTED, WITHOUT_EFFECT, neutral=NEUTRAL)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return the tokens."""
        body = self._reader.read(request, response)
        request.context.prompt_field = "messages" if body.messages else "content" if body.prompt is None else "prompt"
        model = self._model(body.model)
        if body.text is None:
            text = self._rendered(body, model)
        else:
            text = self._services.tokenize.encode(
                model.handle,
                body.text,
                add_special=body.adds_special,
                parse_special=body.parse_special is not False,
            )
        tokens: Sequence[object] = text.tokens
        document: dict[str, object] = {"model": model.id, "count": len(tokens), "max_model_len": text.context_length}
        if body.with_pieces or body.return_token_strs:
            spellings = self._services.tokenize.spell(model.handle, text.tokens)
            if body.with_pieces:
                pieces = map(_piece, spellings)
                tokens = [{"id": token, "piece": piece} for token, piece in zip(tokens, pieces, strict=True)]
            if body.return_token_strs:
                document["token_strs"] = [spelling.name for spelling in spellings]
        send_json(response, {"tokens": list(tokens), **document, **_notes(text)})
        report_adaptations(response, text.adaptations)


class Detokenize(_TokenResource):
    """Returns the text of tokens."""

    def __init__(self, server: ServerContext) -> None:
        super().__init__(server)
        self._reader = BodyReader(DetokenizeRequest)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return the text."""
        body = self._reader.read(request, response)
        model = self._model(body.model)
        text = self._services.tokenize.decode(model.handle, tuple(body.tokens)).text
        send_json(response, {"content": text, "prompt": text, "model": model.id})


class ApplyTemplate(_TokenResource):
    """Renders messages."""

    def __init__(self, server: ServerContext) -> None:
        super().__init__(server)
        unions = (register_sampling, register_messages, register_tool_choice)
        self._reader = BodyReader(TemplateRequest, unions, UNSUPPORTED, WITHOUT_EFFECT, neutral=NEUTRAL)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return the text of the prompt."""
        request.context.prompt_field = "messages"
        body = self._reader.read(request, response)
        model = self._model(body.model)
        prompt = self._rendered(body, model)
        send_json(response, {"prompt": prompt.text, "model": model.id, **_notes(prompt)})
        report_adaptations(response, prompt.adaptations)


RESOURCES: Mapping[str, Callable[[ServerContext], object]] = {
    "/tokenize": Tokenize,
    "/detokenize": Detokenize,
    "/apply-template": ApplyTemplate,
}
"""Resources by path; the paths exist below ``/v1`` too."""


def _notes(text: TokenizedText) -> dict[str, object]:
    return {"notes": list(text.notes)} if text.notes else {}


def _piece(spelling: TokenSpelling) -> str | list[int]:
    """Return the text of a token; its bytes if they are not complete characters, as llama.cpp does."""
    try:
        return spelling.utf8.decode()
    except UnicodeDecodeError:
        return list(spelling.utf8)
