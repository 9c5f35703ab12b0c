"""``POST /v1/chat/completions`` and ``POST /v1/completions``."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import falcon

from mlxk.application.policy import require_served_model, require_text_model
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.http.requests.reader import RequestReader
from mlxk.entrypoints.http.responses.chat import ChatShape
from mlxk.entrypoints.http.responses.completions import CompletionShape
from mlxk.entrypoints.http.responses.generation_responder import GenerationJob, GenerationResponder
from mlxk.entrypoints.settings import ServerSettings

if TYPE_CHECKING:
    from mlxk.application.use_cases.serve_images import ServeImages
    from mlxk.entrypoints.http.responses.transcription_chat import TranscriptionChat

IGNORED_FIELDS = "X-Mlxk-Ignored-Fields"
"""The fields of a request that were ignored, by their paths."""

MAX_IGNORED = 20

_HARMLESS = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


class ChatCompletions:
    """Conversations.

    Args:
        reader: Understands the body.
        catalogue: Finds the model.
        answering: Answers.
        images: Answers when there are images or sounds in the conversation.
        spoken: Answers for models that only listen.
        settings: The operator's.
    """

    def __init__(
        self,
        reader: RequestReader,
        catalogue: ServeCatalogue,
        answering: GenerationResponder,
        images: "Callable[[], ServeImages]",
        spoken: "Callable[[], TranscriptionChat]",
        settings: ServerSettings,
    ) -> None:
        self._reader = reader
        self._catalogue = catalogue
        self._answering = answering
        self._images = images
        self._spoken = spoken
        self._settings = settings

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer a conversation."""
        request.context.prompt_field = "messages"
        chat, ignored = self._reader.chat(request)
        report_ignored(response, ignored)
        model = self._catalogue.find(chat.model, require_served_model)
        if model.is_transcription_only:
            self._answering.answer(request, response, self._spoken().asked(chat, model))
            return
        require_text_model(model.description)
        chat.require_vision_input(model)
        chat.require_audio_input(model)
        chat.require_tools(model)
        chat.require_reasoning(model)
        forced = chat.forced_call
        wanted = GenerationRequest(
            model.handle,
            chat.conversation(),
            chat.generation_settings(self._settings.max_tokens, forced),
            thinking=chat.thinking,
            effort=chat.effort,
        )
        alternatives, chunk = chat.n or 1, chat.chunk or self._settings.chunk
        asked = GenerationJob(
            model=model,
            model_name=chat.model,
            requests=(wanted,),
            alternatives=alternatives,
            shape=ChatShape(
                forced,
                one_call=chat.parallel_tool_calls is False,
                stops=bool(wanted.settings.stop),
                json_text=wanted.settings.grammar is not None,
            ),
            id_prefix="chatcmpl",
            stream=bool(chat.stream),
            include_usage=chat.include_usage,
            extra={"metadata": chat.metadata} if chat.metadata else {},
            start=(lambda: self._images()(model, wanted, chat.sent(self._reader.sound), chunk, alternatives))
            if chat.has_images or chat.has_audio
            else None,
        )
        self._answering.answer(request, response, asked)


class Completions:
    """Raw text.

    Args:
        reader: Understands the body.
        catalogue: Finds the model.
        answering: Answers.
        max_tokens: The operator's limit for requests that name none.
    """

    def __init__(
        self, reader: RequestReader, catalogue: ServeCatalogue, answering: GenerationResponder, max_tokens: int | None
    ) -> None:
        self._reader = reader
        self._catalogue = catalogue
        self._answering = answering
        self._max_tokens = max_tokens

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Go on with one text or several."""
        request.context.prompt_field = "prompt"
        completion, ignored = self._reader.completion(request)
        report_ignored(response, ignored)
        model = self._catalogue.find(completion.model)
        settings = completion.generation_settings(self._max_tokens)
        alternatives = completion.n or 1
        echoes = [
            prompt if completion.echo and isinstance(prompt, str) else ""
            for prompt in completion.prompts
            for _ in range(alternatives)
        ]
        asked = GenerationJob(
            model=model,
            model_name=completion.model,
            requests=tuple(GenerationRequest(model.handle, prompt, settings) for prompt in completion.prompts),
            alternatives=alternatives,
            shape=CompletionShape(echoes),
            id_prefix="cmpl",
            stream=bool(completion.stream),
            include_usage=completion.include_usage,
        )
        self._answering.answer(request, response, asked)


def report_ignored(response: falcon.Response, names: Sequence[str]) -> None:
    """Tell a client which of its fields were ignored."""
    if names:
        shown = [name if _HARMLESS.fullmatch(name) else "?" for name in names[:MAX_IGNORED]]
        response.set_header(IGNORED_FIELDS, ", ".join(shown))
