"""``POST /api/chat``: its body and resource."""

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import attrs
import falcon

from mlxk.entrypoints.http.api import ServerContext
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
from mlxk.entrypoints.http.ollama.names import ModelNames
from mlxk.entrypoints.http.ollama.renderer import ChatLines
from mlxk.entrypoints.http.openai.chat.jobs import ChatJobs
from mlxk.entrypoints.http.openai.chat.messages import (
    Content,
    FunctionCall,
    MessageParam,
    ToolCallParam,
    register_messages,
)
from mlxk.entrypoints.http.openai.chat.parts import TextPart
from mlxk.entrypoints.http.openai.chat.request import MAX_MESSAGES, ChatRequest
from mlxk.entrypoints.http.openai.chat.tools import Tools
from mlxk.entrypoints.http.requests.body import BodyReader, FieldNames, report_ignored
from mlxk.entrypoints.http.requests.validation import FieldError, OneOf, Range, StrictConverter

Arguments = dict[str, Any] | str | None
"""Arguments of an earlier call: an object, or JSON text as in other APIs."""


@attrs.frozen(kw_only=True)
class CalledFunction:
    """The called function, and its arguments."""

    name: Annotated[str, Range(1, 256)]
    arguments: Arguments = None
    index: int | None = None

    @property
    def arguments_text(self) -> str:
        """The arguments as JSON text."""
        if isinstance(self.arguments, str):
            return self.arguments
        return json.dumps(self.arguments or {}, ensure_ascii=False)


@attrs.frozen(kw_only=True)
class OllamaCall:
    """An earlier tool call of the assistant."""

    function: CalledFunction
    id: str | None = None
    type: Annotated[str, OneOf(("function",))] | None = None


@attrs.frozen(kw_only=True)
class ChatMessage:
    """One message."""

    role: Annotated[str, OneOf(("system", "developer", "user", "assistant", "tool"))]
    content: Content = None
    """Text, or content parts as in other APIs."""
    thinking: str | None = None
    """Reasoning of the assistant, for the chat template."""
    images: Annotated[list[str], Range(0, MAX_IMAGES)] | None = None
    """Images in base64."""
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    """The function that returned this result."""
    tool_call_id: str | None = None

    @property
    def image_parts(self) -> range:
        """Indices of the images among the parts of the chat message."""
        first = len(self.content) if isinstance(self.content, list) else 1
        return range(first, first + len(self.images or ()))


@attrs.frozen(kw_only=True)
class ChatBody(GenerationFields):
    """The body of a chat request; without messages it loads or unloads the model."""

    messages: Annotated[list[ChatMessage], Range(0, MAX_MESSAGES)] | None = None
    tools: Tools | None = None

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        faults = super().faults()
        for index, message in enumerate(self.messages or ()):
            if message.images and message.role != "user":
                faults.append(FieldError(f"messages[{index}].images", "are for the role user only"))
            if message.tool_calls and message.role != "assistant":
                faults.append(FieldError(f"messages[{index}].tool_calls", "is for the role assistant only"))
        return faults

    def request(self, model: str) -> ChatRequest:
        """Return the chat request.

        Args:
            model: Name of the model in the catalogue.
        """
        messages = list(_messages(self.messages or ()))
        return ChatRequest(model=model, messages=messages, tools=self.tools, **self.chat_fields())

    @property
    def field_names(self) -> FieldNames:
        """Paths of this API's fields by those of the chat request."""
        images = {
            f"messages[{index}].content[{part}]": f"messages[{index}].images[{image}]"
            for index, message in enumerate(self.messages or ())
            for image, part in enumerate(message.image_parts)
        }
        urls = {f"{path}.image_url.url": name for path, name in images.items()}
        texts = {
            f"messages[{index}].content[0]": f"messages[{index}].content"
            for index, message in enumerate(self.messages or ())
            if message.images and not isinstance(message.content, list)
        }
        return FieldNames({**FIELD_NAMES, **images, **urls, **texts})


class _CallIds:
    """Assigns ids to tool calls and results that the client sent without.

    Args:
        messages: The conversation, whose own ids are not assigned.
    """

    def __init__(self, messages: Sequence[ChatMessage]) -> None:
        given = {message.tool_call_id for message in messages}
        given |= {call.id for message in messages for call in message.tool_calls or ()}
        self._free = (name for name in map("call_{}".format, itertools.count(1)) if name not in given)
        self._open: list[tuple[str, str]] = []
        """Function name and id of each call without a result."""

    def of_call(self, call: OllamaCall) -> str:
        """Return the id of a call."""
        identity = call.id or next(self._free)
        self._open.append((call.function.name, identity))
        return identity

    def of_result(self, message: ChatMessage) -> str:
        """Return the id of the call of a result: by its id, else the oldest open call of its function, else of any."""
        if message.tool_call_id:
            self._open = [call for call in self._open if call[1] != message.tool_call_id]
            return message.tool_call_id
        name = message.tool_name
        open_call = next((call for call in self._open if name is None or call[0] == name), None)
        if open_call is None:
            return next(self._free)
        self._open.remove(open_call)
        return open_call[1]


def _messages(messages: Sequence[ChatMessage]) -> Iterator[MessageParam]:
    ids = _CallIds(messages)
    for message in messages:
        calls = [
            ToolCallParam(
                id=ids.of_call(call),
                function=FunctionCall(name=call.function.name, arguments=call.function.arguments_text),
            )
            for call in message.tool_calls or ()
        ]
        content: Any = message.content or ""
        if message.images:
            parts = message.content if isinstance(message.content, list) else [TextPart(text=message.content or "")]
            content = [*parts, *map(image_part, message.images)]
        yield MessageParam(
            role=message.role,
            content=content,
            tool_calls=calls or None,
            tool_call_id=ids.of_result(message) if message.role == "tool" else None,
            reasoning_content=message.thinking or None,
        )


def register_chat(converter: StrictConverter) -> None:
    """Register the unions of these classes with a converter."""
    register_fields(converter)
    register_messages(converter)
    converter.union(Arguments, _arguments_kind)


def _arguments_kind(value: object) -> object:
    if isinstance(value, str):
        return str
    if isinstance(value, dict):
        return dict[str, Any]
    raise TypeError("must be an object")


class ChatResource:
    """Generates the next message of a conversation; without messages, loads or unloads the model."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(ChatBody, (register_chat,), {}, WITHOUT_EFFECT, neutral=NEUTRAL)
        self._jobs = ChatJobs(server)
        self._names = ModelNames(server.services.catalogue)
        self._loading = ModelLoading(server)
        self._responder = server.responder
        self._clock = server.services.clock

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Generate the message."""
        body = self._reader.read(request, response)
        if not body.messages:
            self._loading.respond(response, body, {"message": {"role": "assistant", "content": ""}})
            return
        model = self._names.find(body)
        body.require_thinking(model.served, model.name)
        report_ignored(response, body.excess(model.served))
        chat = body.request(model.reference)
        renderer = functools.partial(ChatLines, clock=self._clock)
        job = self._jobs.job(chat, renderer, body.adjusted, body.field_names, shortens=bool(body.truncate))
        self._responder.respond(request, response, attrs.evolve(job, model_name=model.name))
