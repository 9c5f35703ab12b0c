"""The documents of the API: a response with its state and usage, and the items of its output."""

from collections.abc import Mapping
from typing import Any

from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import TokenLogprob, Usage
from mlxk.entrypoints.http.generation.blocks import Block, BlockKind
from mlxk.entrypoints.http.openai.chat.renderer import token_logprobs
from mlxk.entrypoints.http.openai.errors import error_document
from mlxk.entrypoints.http.responses.calls import FUNCTION, TOOL_SEARCH, field_value
from mlxk.entrypoints.http.responses.request import ResponseRequest
from mlxk.entrypoints.http.responses.tools import Toolbox

IN_PROGRESS, COMPLETED, INCOMPLETE, FAILED = "in_progress", "completed", "incomplete", "failed"
"""States of responses and of items."""

Document = dict[str, Any]


def request_fields(request: ResponseRequest, body: Mapping[str, Any]) -> Document:
    """Return the fields of a request that its response repeats.

    Args:
        request: The request.
        body: The same as JSON, for what is repeated as it was sent.
    """
    text = body.get("text") or {}
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens or request.max_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None, **(body.get("reasoning") or {})},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.store is not False,
        "temperature": request.temperature,
        "text": {**text, "format": text.get("format") or {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": request.truncation or "disabled",
        "user": request.user,
    }


def usage_document(usage: Usage) -> Document:
    """Return the usage of a response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


_ERROR_CODES = {
    "context_length_exceeded": "context_length_exceeded",
    "queue_full": "rate_limit_exceeded",
    "validation_error": "invalid_prompt",
}
"""The API's codes of errors; all others are ``server_error``."""


def failure_document(error: MlxkError) -> Document:
    """Return the ``error`` of a response that failed."""
    document: Any = error_document(error, None, "input")["error"]
    return {"code": _ERROR_CODES.get(error.code, "server_error"), "message": document["message"]}


def text_part(text: str, logprobs: list[TokenLogprob]) -> Document:
    """Return a part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": token_logprobs(logprobs)}


def prefix_of(block: Block, toolbox: Toolbox) -> str:
    """Return what the id of a block's item begins with."""
    if block.kind is BlockKind.TOOL_CALL:
        return toolbox.called(block.name).kind.prefix
    return "rs" if block.kind is BlockKind.REASONING else "msg"


def item_document(block: Block, identity: str, status: str, toolbox: Toolbox) -> Document:
    """Return the item of a block; one that is in progress is empty.

    Args:
        block: The block.
        identity: The id of the item.
        status: The state of the item.
        toolbox: The tools of the conversation.
    """
    begun = status == IN_PROGRESS
    item: Document = {"id": identity, "status": status}
    if block.kind is BlockKind.TEXT:
        content = [] if begun else [text_part(block.text, block.logprobs)]
        return {"type": "message", **item, "role": "assistant", "content": content}
    if block.kind is BlockKind.REASONING:
        thoughts = [] if begun else [{"type": "reasoning_text", "text": block.text}]
        return {"type": "reasoning", **item, "summary": [], "content": thoughts}
    tool = toolbox.called(block.name)
    call_id = block.call_id or f"call_{identity.partition('_')[2]}"
    item = {"type": tool.kind.item, **item, "call_id": call_id}
    if tool.kind.event is not None:
        item["name"] = tool.name
        if tool.namespace is not None:
            item["namespace"] = tool.namespace
    if tool.kind is TOOL_SEARCH:
        item["execution"] = "client"
    empty = "" if tool.kind.event is not None else field_value(tool.kind, "{}")
    item[tool.kind.field] = empty if begun else field_value(tool.kind, block.text)
    return item


def grows(block: Block, toolbox: Toolbox) -> bool:
    """Whether the parts of a call are sent as they are generated: those of a function are what the item holds."""
    return toolbox.called(block.name).kind is FUNCTION
