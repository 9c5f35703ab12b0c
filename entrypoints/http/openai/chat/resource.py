"""The resource of ``POST /v1/chat/completions``."""

import functools

import falcon

from mlxk.application.policy import require_chat, require_speech_model, require_text_model
from mlxk.application.use_cases.generate_text import GenerationOptions
from mlxk.domain.models.model import Capability, ModelDescription
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.responder import GenerationJob
from mlxk.entrypoints.http.openai.audio.upload import AudioReader
from mlxk.entrypoints.http.openai.chat.messages import register_messages
from mlxk.entrypoints.http.openai.chat.renderer import ChatRenderer, MessageOptions
from mlxk.entrypoints.http.openai.chat.request import UNSUPPORTED, WITHOUT_EFFECT, ChatRequest
from mlxk.entrypoints.http.openai.chat.tools import register_tool_choice
from mlxk.entrypoints.http.openai.chat.transcription import TranscriptionChat
from mlxk.entrypoints.http.openai.sampling import register_sampling
from mlxk.entrypoints.http.requests.body import BodyReader


class ChatCompletions:
    """Generates the next message of a conversation."""

    def __init__(self, server: ServerContext) -> None:
        unions = (register_sampling, register_messages, register_tool_choice)
        self._reader = BodyReader(ChatRequest, unions, UNSUPPORTED, WITHOUT_EFFECT)
        self._read_audio = AudioReader(server.services.audio_decoder)
        self._services = server.services
        self._responder = server.responder
        self._settings = server.settings
        self._transcription = TranscriptionChat(
            server.services.transcribe, server.services.clock, server.settings.max_tokens
        )

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Generate one message or several alternatives."""
        request.context.prompt_field = "messages"
        chat = self._reader.read(request, response)
        model = self._services.catalogue.find(chat.model, _require_chat_model)
        if model.is_transcription_only:
            self._responder.respond(request, response, self._transcription.job(chat, model))
            return
        chat.require_vision_input(model)
        chat.require_audio_input(model)
        chat.require_tools(model)
        chat.require_reasoning(model)
        require_chat(model.description)
        forced = chat.forced_call
        options = GenerationOptions(
            settings=chat.generation_settings(self._settings.max_tokens, forced),
            thinking=chat.thinking,
            effort=chat.effort,
            strict_memory=self._settings.strict_memory,
            choices=chat.n or 1,
            chunk=chat.chunk or self._settings.chunk,
        )
        job = GenerationJob(
            model=model,
            model_name=chat.model,
            start=lambda: self._services.generate(model.details, [chat.incoming(self._read_audio)], options),
            renderer=functools.partial(
                ChatRenderer,
                options=MessageOptions(
                    forced,
                    one_call=chat.parallel_tool_calls is False,
                    stops=bool(options.settings.stop),
                    json_text=options.settings.grammar is not None,
                ),
                include_usage=chat.include_usage,
                extra={"metadata": chat.metadata} if chat.metadata else None,
            ),
            stream=bool(chat.stream),
            alternatives=options.choices,
        )
        self._responder.respond(request, response, job)


def _require_chat_model(description: ModelDescription) -> None:
    """Refuse a model that neither generates text nor transcribes speech.

    Raises:
        UnhealthyModelError, IncompatibleModelError, CapabilityError: It cannot.
    """
    if description.operation is Capability.AUDIO:
        require_speech_model(description)
    else:
        require_text_model(description)
