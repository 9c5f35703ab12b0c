"""``POST /api/generate``: its body and resource.

A prompt becomes a conversation of one message, unless the request has ``raw`` or a suffix, or the model has no chat
template: then the model gets the plain text.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import attrs
import falcon

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.use_cases.model_tasks import TokenizeText
from mlxk.domain.errors import CapabilityError
from mlxk.domain.formats.chat_templates import InsertionFormat, insertion_format
from mlxk.domain.models.model import ServedModel
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.responder import Client, GenerationJob
from mlxk.entrypoints.http.ollama.fields import (
    FIELD_NAMES,
    MAX_IMAGES,
    NEUTRAL,
    WITHOUT_EFFECT,
    GenerationFields,
    image_part,
    register_fields,
)
from mlxk.entrypoints.http.ollama.loading import ModelLoading
from mlxk.entrypoints.http.ollama.names import ModelNames, NamedModel
from mlxk.entrypoints.http.ollama.renderer import GenerateLines
from mlxk.entrypoints.http.openai.chat.jobs import ChatJobs
from mlxk.entrypoints.http.openai.chat.messages import MessageParam
from mlxk.entrypoints.http.openai.chat.parts import TextPart
from mlxk.entrypoints.http.openai.chat.request import ChatRequest
from mlxk.entrypoints.http.openai.renderer import MessageOptions
from mlxk.entrypoints.http.requests.body import BodyReader, FieldNames, report_ignored
from mlxk.entrypoints.http.requests.validation import FieldError, Range, Unsupported

PROMPT_WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    **WITHOUT_EFFECT,
    "truncate": Unsupported("there are no earlier turns to leave out; a prompt itself is never cut", (False,)),
}
"""Documented fields that are accepted and reported as ignored, by their paths."""

UNSUPPORTED: Mapping[str, Unsupported] = {
    "template": Unsupported("the model's own chat template is used", ("",)),
    "context": Unsupported("tokens are no conversation; send its messages to /api/chat", ([],)),
    "width": Unsupported("no images are generated", (0,)),
    "height": Unsupported("no images are generated", (0,)),
    "steps": Unsupported("no images are generated", (0,)),
}
"""Documented fields that are not supported."""

_RAW = "does not support template, system, or context"
_AS_IT_IS = "is for prompts that are rendered with a chat template"


@attrs.frozen(kw_only=True)
class GenerateBody(GenerationFields):
    """The body of a request for text; without a prompt it loads or unloads the model."""

    prompt: str | None = None
    suffix: str | None = None
    """Text that follows the generated text."""
    system: str | None = None
    raw: bool | None = None
    """Whether the model gets the prompt as plain text."""
    images: Annotated[list[str], Range(0, MAX_IMAGES)] | None = None
    """Images in base64."""

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        faults = super().faults()
        if self.raw and self.system:
            faults.append(FieldError("raw", _RAW))
        if self.suffix and self.system:
            faults.append(FieldError("suffix", "is not supported together with system", unsupported=True))
        if self.images and (self.raw or self.suffix):
            faults.append(FieldError("images", _AS_IT_IS, unsupported=True))
        return faults

    @property
    def is_empty(self) -> bool:
        """Whether there is no prompt to generate from."""
        return not (self.prompt or self.suffix or self.images)

    def request(self, model: str) -> ChatRequest:
        """Return the chat request.

        Args:
            model: Name of the model in the catalogue.
        """
        content: Any = self.prompt or ""
        if self.images:
            content = [TextPart(text=content), *map(image_part, self.images)]
        opening = [MessageParam(role="system", content=self.system)] if self.system else []
        messages = [*opening, MessageParam(role="user", content=content)]
        return ChatRequest(model=model, messages=messages, **self.chat_fields())

    @property
    def field_names(self) -> FieldNames:
        """Paths of this API's fields by those of the chat request."""
        user = 1 if self.system else 0
        images = {
            f"messages[{user}].content[{index + 1}]": f"images[{index}]" for index in range(len(self.images or ()))
        }
        urls = {f"{path}.image_url.url": name for path, name in images.items()}
        texts = {"messages[0]": "system" if self.system else "prompt", f"messages[{user}]": "prompt"}
        return FieldNames({**FIELD_NAMES, **texts, **images, **urls})

    def text_options(self, model: str, default_max_tokens: int | None, *, strict_memory: bool) -> GenerationOptions:
        """Return the options for generating from plain text.

        Args:
            model: Name of the model in the catalogue.
            default_max_tokens: The operator's limit, for requests without one.
            strict_memory: Whether a model beyond the memory budget is refused.
        """
        chat = self.request(model)
        return self.adjusted(
            GenerationOptions(settings=chat.generation_settings(default_max_tokens), strict_memory=strict_memory)
        )


class GenerateResource:
    """Generates text; without a prompt, loads or unloads the model."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(GenerateBody, (register_fields,), UNSUPPORTED, PROMPT_WITHOUT_EFFECT, neutral=NEUTRAL)
        self._jobs = ChatJobs(server)
        self._names = ModelNames(server.services.catalogue)
        self._loading = ModelLoading(server)
        self._services = server.services
        self._settings = server.settings
        self._settings_for = server.settings_for
        self._responder = server.responder

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Generate the text."""
        body = self._reader.read(request, response)
        if body.is_empty:
            self._loading.respond(response, body, {"response": ""})
            return
        model = self._names.find(body)
        report_ignored(response, body.excess(model.served))
        is_plain = body.raw or body.suffix or not model.served.can_chat
        job = self._text_job(body, model) if is_plain else self._chat_job(body, model)
        self._responder.respond(request, response, attrs.evolve(job, model_name=model.name))

    def _chat_job(self, body: GenerateBody, model: NamedModel) -> GenerationJob:
        body.require_thinking(model.served, model.name)
        renderer = functools.partial(GenerateLines, clock=self._services.clock)
        return self._jobs.job(body.request(model.reference), renderer, body.adjusted, body.field_names)

    def _text_job(self, body: GenerateBody, named: NamedModel) -> GenerationJob:
        """Return the job for plain text.

        Raises:
            CapabilityError: The request needs a chat template or insertion tokens that the model does not have.
        """
        model = named.served
        if not body.raw and not body.suffix:
            _require_no_template(body, model)
        prompt = body.prompt or ""
        if body.suffix:
            prompt = self._insertion(named).prompt(prompt, body.suffix)
        options = body.text_options(
            named.reference, self._settings_for(model).max_tokens, strict_memory=self._settings.strict_memory
        )

        def start(client: Client) -> Sequence[TextStream]:
            return self._services.generate(model.details, [prompt], client.add_to(options))

        message_options = MessageOptions(
            stops=bool(options.settings.stop), json_text=options.settings.grammar is not None
        )
        return GenerationJob(
            model=model,
            model_name=named.name,
            start=lambda client: body.field_names.naming(lambda: start(client)),
            renderer=functools.partial(GenerateLines, options=message_options, clock=self._services.clock, raw=True),
            stream=body.streams,
        )

    def _insertion(self, model: NamedModel) -> InsertionFormat:
        markers = insertion_format(functools.partial(_is_one_token, self._services.tokenize, model.served))
        if markers is None:
            raise CapabilityError(f'"{model.name}" does not support insert')
        return markers


def _is_one_token(tokenize: TokenizeText, model: ServedModel, text: str) -> bool:
    return len(tokenize.encode(model.handle, text, add_special=False, parse_special=True).tokens) == 1


def _require_no_template(body: GenerateBody, model: ServedModel) -> None:
    """Refuse fields that only a chat template can render, for a model without one.

    Raises:
        CapabilityError: The request has such a field.
    """
    for name, value in (("system", body.system), ("images", body.images), ("think", body.thinks)):
        if value:
            raise CapabilityError.in_field(name, f"'{model.id}' has no chat template")
