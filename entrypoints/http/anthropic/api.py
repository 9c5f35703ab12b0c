"""The Anthropic-compatible API: its paths and resources, and the translation of its requests into chat requests.

An error about a chat request names the field of this API that it was translated from.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import falcon

from mlxk.domain.models.model import Capability
from mlxk.entrypoints.http.anthropic.conversation import ChatConversation
from mlxk.entrypoints.http.anthropic.renderer import ERROR_STATUSES, MessagesRenderer, ShownParts, error_body
from mlxk.entrypoints.http.anthropic.request import (
    UNSUPPORTED,
    WITHOUT_EFFECT,
    CountRequest,
    MessagesRequest,
    register_request,
)
from mlxk.entrypoints.http.api import HttpApi, ServerContext
from mlxk.entrypoints.http.generation.responder import report_adaptations
from mlxk.entrypoints.http.openai.chat import tools as chat_tools
from mlxk.entrypoints.http.openai.chat.jobs import ChatJobs
from mlxk.entrypoints.http.openai.chat.reasoning import ThinkingParam
from mlxk.entrypoints.http.openai.chat.request import SCHEMA_FIELD, ChatRequest, JsonSchema, ResponseFormat
from mlxk.entrypoints.http.request_scope import request_id
from mlxk.entrypoints.http.requests.body import BodyReader, FieldNames, R, report_ignored
from mlxk.entrypoints.http.requests.validation import raise_for
from mlxk.entrypoints.http.resources import send_json

_EFFORTS = {"max": "xhigh"}
"""Efforts of chat requests by this API's names, where they differ."""


@attrs.frozen
class MessagesTranslation:
    """A request as a chat request."""

    chat: ChatRequest
    names: FieldNames
    """The fields of this API by those of the chat request."""
    ignored: Sequence[str]
    """Paths of the ignored fields and skipped blocks, for the header."""


def translate(body: CountRequest, *, takes_images: bool, reasons: bool) -> MessagesTranslation:
    """Translate a request.

    Args:
        body: The request.
        takes_images: Whether the model takes images; if not, a note replaces them.
        reasons: Whether the model can reason; if not, a reasoning budget has no effect.
    """
    conversation = ChatConversation(takes_images=takes_images)
    conversation.add_system(body.system)
    conversation.add_all(body.messages)
    reasoning, without_effect = _reasoning(body, reasons=reasons)
    tools, tool_names = _tools(body)
    request = ChatRequest(
        model=body.model,
        messages=conversation.messages,
        tools=tools or None,
        tool_choice=_tool_choice(body),
        parallel_tool_calls=False if body.tool_choice and body.tool_choice.disable_parallel_tool_use else None,
        response_format=_response_format(body),
        chunk=conversation.chunk,
        **reasoning,
        **(_sampling(body) if isinstance(body, MessagesRequest) else {}),
    )
    built_in = [f"tools[].{tool.type}" for tool in body.built_in_tools]
    ignored = dict.fromkeys([*conversation.ignored, *without_effect, *built_in])
    return MessagesTranslation(
        request, FieldNames({**conversation.names, **tool_names, **_FIXED_NAMES}), tuple(ignored)
    )


_FIXED_NAMES: Mapping[str, str] = {
    SCHEMA_FIELD: "output_config.format.schema",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "stop": "stop_sequences",
    "tool_choice.function": "tool_choice",
}


def _sampling(body: MessagesRequest) -> dict[str, Any]:
    return {
        "max_tokens": max(body.max_tokens, 1),
        "stop": body.stop_sequences,
        "stream": body.stream,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
    }


def _tools(body: CountRequest) -> tuple[list[chat_tools.ToolParam], dict[str, str]]:
    """Return the tools that the client runs, and their field names."""
    tools: list[chat_tools.ToolParam] = []
    names: dict[str, str] = {}
    for index, tool in body.own_tools:
        function = chat_tools.FunctionDefinition(
            name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
        )
        path, chat_path = f"tools[{index}]", f"tools[{len(tools)}]"
        names |= {chat_path: path, f"{chat_path}.function": path}
        names[f"{chat_path}.function.parameters"] = f"{path}.input_schema"
        tools.append(chat_tools.ToolParam(function=function))
    return tools, names


def _reasoning(body: CountRequest, *, reasons: bool) -> tuple[dict[str, Any], list[str]]:
    """Return the reasoning fields of the chat request, and the fields without effect."""
    fields: dict[str, Any] = {}
    ignored = []
    effort = body.output_config.effort if body.output_config is not None else None
    thinking = body.thinking
    if thinking is not None:
        kind = "adaptive" if thinking.type == "between_tools" else thinking.type
        budget = thinking.budget_tokens if kind == "enabled" and reasons else None
        if thinking.budget_tokens is not None and budget is None:
            ignored.append("thinking.budget_tokens")
        fields["thinking"] = ThinkingParam(type=kind, budget_tokens=budget)
    if effort is not None and thinking is not None and thinking.type == "disabled":
        ignored.append("output_config.effort")
    elif effort is not None:
        fields["reasoning_effort"] = _EFFORTS.get(effort, effort)
    return fields, ignored


def _tool_choice(body: CountRequest) -> chat_tools.ToolChoice:
    choice = body.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        return chat_tools.NamedTool(function=chat_tools.FunctionName(name=choice.name or ""))
    return "required" if choice.type == "any" else choice.type


def _response_format(body: CountRequest) -> ResponseFormat | None:
    if body.format is None:
        return None
    return ResponseFormat(type="json_schema", json_schema=JsonSchema(name="output", schema=body.format.schema))


PATH = "/v1/messages"
COUNT_PATH = f"{PATH}/count_tokens"
REQUEST_ID_HEADER = "request-id"
VERSION_HEADER = "anthropic-version"


def anthropic_api(server: ServerContext) -> HttpApi:
    """Build the API."""
    return HttpApi(
        resources={PATH: Messages(server), COUNT_PATH: CountTokens(server)},
        error_body=error_body,
        error_statuses=ERROR_STATUSES,
        claims=_claims,
        request_id_header=REQUEST_ID_HEADER,
    )


def _claims(request: falcon.Request) -> bool:
    """Whether a request is for this API, by its path or its version header.

    The header decides for the list of models, which several APIs share, and for unknown paths.
    """
    if request.path == PATH or request.path.startswith(f"{PATH}/"):
        return True
    shared = request.path.startswith("/v1/models") or request.uri_template is None
    return shared and request.get_header(VERSION_HEADER) is not None


class _MessagesResource:
    """Base of both resources."""

    def __init__(self, server: ServerContext) -> None:
        self._server = server
        self._services = server.services

    def _reader(self, kind: type[R]) -> BodyReader[R]:
        return BodyReader(
            kind,
            (register_request,),
            UNSUPPORTED,
            WITHOUT_EFFECT,
            default_model=lambda: self._services.catalogue.default,
        )

    def _translate(self, body: CountRequest, response: falcon.Response) -> MessagesTranslation:
        details = self._services.catalogue.find(body.model, lambda _: None).details
        translation = translate(
            body,
            takes_images=details.description.can(Capability.VISION),
            reasons=details.may_reason,
        )
        report_ignored(response, translation.ignored)
        return translation


class Messages(_MessagesResource):
    """Generates the next message of a conversation."""

    def __init__(self, server: ServerContext) -> None:
        super().__init__(server)
        self._read = self._reader(MessagesRequest).read
        self._jobs = ChatJobs(server)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Generate one message."""
        response.set_header(REQUEST_ID_HEADER, request_id(request))
        body = self._read(request, response)
        translation = self._translate(body, response)
        shown = ShownParts(
            thinking=body.thinking is None or body.thinking.display != "omitted", answer=body.max_tokens > 0
        )
        renderer = functools.partial(MessagesRenderer, shown=shown)
        job = self._jobs.job(translation.chat, renderer, names=translation.names)
        self._server.responder.respond(request, response, job)


class CountTokens(_MessagesResource):
    """Counts the tokens of a conversation, without loading weights."""

    def __init__(self, server: ServerContext) -> None:
        super().__init__(server)
        self._read = self._reader(CountRequest).read
        self._media = server.media

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return the number of prompt tokens that a message request would have."""
        response.set_header(REQUEST_ID_HEADER, request_id(request))
        body = self._read(request, response)
        self._server.lifecycle.require_open()
        translation = self._translate(body, response)
        send_json(response, translation.names.naming(lambda: self._count(translation, response)))

    def _count(self, translation: MessagesTranslation, response: falcon.Response) -> dict[str, object]:
        chat = translation.chat
        raise_for(chat.faults())
        model = self._services.catalogue.find(chat.model)
        settings = self._server.settings_for(model)
        chat.require_abilities(model, settings)
        options = chat.generation_options(model, settings, chat.forced_call)
        prompts = self._services.tokenize(model.details, chat.incoming(self._media.of_request()), options)
        report_adaptations(response, (adaptation for prompt in prompts for adaptation in prompt.adaptations))
        notes = [prompt.approximation for prompt in prompts if prompt.approximation is not None]
        count = sum(len(prompt.tokens) for prompt in prompts)
        return {"input_tokens": count, **({"notes": notes} if notes else {})}
