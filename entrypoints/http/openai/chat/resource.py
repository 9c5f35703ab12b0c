"""The resource of ``POST /v1/chat/completions``."""

import functools

import falcon

from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.openai.chat.jobs import ChatJobs
from mlxk.entrypoints.http.openai.chat.messages import register_messages
from mlxk.entrypoints.http.openai.chat.renderer import ChatRenderer
from mlxk.entrypoints.http.openai.chat.request import NEUTRAL, UNSUPPORTED, WITHOUT_EFFECT, ChatRequest
from mlxk.entrypoints.http.openai.chat.tools import register_tool_choice
from mlxk.entrypoints.http.openai.sampling import register_sampling
from mlxk.entrypoints.http.requests.body import BodyReader


class ChatCompletions:
    """Generates the next message of a conversation."""

    def __init__(self, server: ServerContext) -> None:
        unions = (register_sampling, register_messages, register_tool_choice)
        self._reader = BodyReader(
            ChatRequest,
            unions,
            UNSUPPORTED,
            WITHOUT_EFFECT,
            neutral=NEUTRAL,
            default_model=lambda: server.services.catalogue.default,
        )
        self._jobs = ChatJobs(server)
        self._responder = server.responder

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Generate one message or several alternatives."""
        request.context.prompt_field = "messages"
        chat = self._reader.read(request, response)
        extra = {"metadata": chat.metadata} if isinstance(chat.metadata, dict) and chat.metadata else None
        renderer = functools.partial(ChatRenderer, include_usage=chat.include_usage, extra=extra)
        self._responder.respond(request, response, self._jobs.job(chat, renderer))
