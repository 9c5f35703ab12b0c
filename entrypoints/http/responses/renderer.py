"""Renders responses: items as events of a stream, or one document with all items, the status and the usage."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from mlxk.application.ports.system import Clock
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import Finished, GenerationEvent, TextDelta, TokenLogprob, Usage
from mlxk.entrypoints.http.generation.blocks import (
    Block,
    BlockBegan,
    BlockChange,
    BlockEnded,
    BlockGrew,
    BlockKind,
    BlockReader,
)
from mlxk.entrypoints.http.generation.renderer import (
    SSE_HEADERS,
    ResponseContext,
    ResponseRenderer,
    named_frame,
    progress_comment,
)
from mlxk.entrypoints.http.openai.errors import error_document
from mlxk.entrypoints.http.openai.renderer import MessageOptions, finish_reason, token_logprobs
from mlxk.entrypoints.http.responses.calls import FUNCTION, TOOL_SEARCH, field_value
from mlxk.entrypoints.http.responses.request import ResponseRequest
from mlxk.entrypoints.http.responses.tools import Toolbox

IN_PROGRESS, COMPLETED, INCOMPLETE, FAILED = "in_progress", "completed", "incomplete", "failed"
"""``status`` of responses and items."""

Document = dict[str, Any]


def request_fields(request: ResponseRequest, body: Mapping[str, Any]) -> Document:
    """Return the fields of a request that its response repeats.

    Args:
        request: The request.
        body: Its JSON, for the fields that are repeated as sent.
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
"""The API's error codes by ours; all others are ``server_error``."""


def failure_document(error: MlxkError) -> Document:
    """Return the ``error`` of a response that failed."""
    document: Any = error_document(error, None, "input")["error"]
    return {"code": _ERROR_CODES.get(error.code, "server_error"), "message": document["message"]}


def text_part(text: str, logprobs: list[TokenLogprob]) -> Document:
    """Return a part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": token_logprobs(logprobs)}


def prefix_of(block: Block, toolbox: Toolbox) -> str:
    """Return the prefix of the id of a block's item."""
    if block.kind is BlockKind.TOOL_CALL:
        return toolbox.called(block.name).kind.prefix
    return "rs" if block.kind is BlockKind.REASONING else "msg"


def item_document(block: Block, identity: str, status: str, toolbox: Toolbox) -> Document:
    """Return the item of a block; without content while it is in progress.

    Args:
        block: The block.
        identity: Id of the item.
        status: Status of the item.
        toolbox: The tools of the conversation.
    """
    in_progress = status == IN_PROGRESS
    item: Document = {"id": identity, "status": status}
    if block.kind is BlockKind.TEXT:
        content = [] if in_progress else [text_part(block.text, block.logprobs)]
        return {"type": "message", **item, "role": "assistant", "content": content}
    if block.kind is BlockKind.REASONING:
        reasoning = [] if in_progress else [{"type": "reasoning_text", "text": block.text}]
        return {"type": "reasoning", **item, "summary": [], "content": reasoning}
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
    item[tool.kind.field] = empty if in_progress else field_value(tool.kind, block.text)
    return item


@attrs.frozen(kw_only=True)
class RequestContext:
    """What the renderer needs from the request."""

    fields: Document
    """Fields that the response repeats."""
    toolbox: Toolbox
    keep: Callable[[Document], bool]
    """Stores a finished response; returns whether it is stored."""
    clock: Clock
    response_id: str


class ResponsesRenderer(ResponseRenderer):
    """Renders one response.

    Args:
        context: Metadata of the response.
        options: How to render messages.
        request: Data of the request.
    """

    media_type = "application/json"
    stream_headers = SSE_HEADERS

    def __init__(self, context: ResponseContext, options: MessageOptions, request: RequestContext) -> None:
        self._context = context
        self._request = request
        self._toolbox = request.toolbox
        self._reader = BlockReader(one_call=options.one_call)
        self._options = options
        self._number = 0
        self._text_frame: tuple[bytes, bytes] | None = None
        """Parts of the delta frame of the open message, see ``_text_surroundings``; None if no message is open."""

    def opening(self) -> bytes:
        """Return the response without output, in the events for created and in progress."""
        snapshot = self._document(IN_PROGRESS)
        created = self._frame("response.created", response=snapshot)
        return created + self._frame("response.in_progress", response=snapshot)

    def keep_alive(self) -> bytes:
        """Return the event for in progress: for the timeouts of clients, comments do not count."""
        return self._frame("response.in_progress", response=self._document(IN_PROGRESS))

    def progress(self, done: int, total: int) -> bytes:
        """Return a comment and the keep-alive event."""
        return progress_comment(done, total) + self.keep_alive()

    def event(self, index: int, event: GenerationEvent) -> bytes:
        """Return the frames of an event."""
        if self._text_frame is not None and isinstance(event, TextDelta) and not event.logprobs:
            self._reader.blocks[-1].parts.append(event.text)  # the open message: a fast path for most tokens
            return self._text(event.text)
        return b"".join([frame for change in self._reader.read(event) for frame in self._frames(change)])

    def closing(self, finished: Sequence[Finished]) -> bytes:
        """Return the end of the last item, and the complete response."""
        status = self._status(finished[0])
        frames = [frame for change in self._last_changes(status) for frame in self._frames(change, status)]
        document = self._finished(status, finished[0].usage)
        return b"".join(frames) + self._frame(f"response.{status}", response=document)

    def error(self, error: MlxkError) -> bytes:
        """Return the failed response, with the items so far."""
        output = self._output(INCOMPLETE)
        document = {**self._document(FAILED, output), "error": failure_document(error)}
        return self._frame("response.failed", response=document)

    def whole(self, choices: Sequence[Sequence[GenerationEvent]], finished: Sequence[Finished]) -> bytes:
        """Return the response as one document."""
        self._reader.collect(choices[0])
        status = self._status(finished[0])
        for _ in self._last_changes(status):
            pass
        return json.dumps(self._finished(status, finished[0].usage), ensure_ascii=False).encode()

    def _status(self, finished: Finished) -> str:
        truncated = self._options.stops and self._reader.is_truncated(json_text=self._options.json_text)
        cut = finish_reason(finished, called=False, truncated=truncated) == "length"
        return INCOMPLETE if cut else COMPLETED

    def _last_changes(self, status: str) -> Iterator[BlockChange]:
        """Yield the end of the last block; an empty answer, or a complete one of reasoning only, gets a message."""
        blocks = self._reader.blocks
        only_reasoning = all(block.kind is BlockKind.REASONING for block in blocks)
        if not blocks or (only_reasoning and status == COMPLETED):
            yield from self._reader.read(TextDelta(""))
        yield from self._reader.end()

    def _finished(self, status: str, usage: Usage) -> Document:
        """Return the final response, and store it."""
        document = self._document(status, self._output(status))
        document["usage"] = usage_document(usage)
        if status == INCOMPLETE:
            document["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            document["completed_at"] = int(self._request.clock.now().timestamp())
        document["store"] = document["store"] and self._request.keep(document)
        return document

    def _document(self, status: str, output: Sequence[Document] = ()) -> Document:
        return {
            "id": self._request.response_id,
            "object": "response",
            "created_at": int(self._context.created.timestamp()),
            "completed_at": None,
            "status": status,
            "model": self._context.model,
            "output": list(output),
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **self._request.fields,
        }

    def _output(self, status: str) -> list[Document]:
        """Return all items; the last one has the status of the response."""
        blocks = self._reader.blocks
        return [self._item(block, status if block is blocks[-1] else COMPLETED) for block in blocks]

    def _item(self, block: Block, status: str) -> Document:
        return item_document(block, self._item_id(block), status, self._toolbox)

    def _item_id(self, block: Block) -> str:
        unique = self._request.response_id.partition("_")[2]
        return f"{prefix_of(block, self._toolbox)}_{unique}_{block.index}"

    def _frames(self, change: BlockChange, status: str = COMPLETED) -> Iterator[bytes]:
        """Yield the frames of a change.

        Args:
            change: The change.
            status: Status of an item that ends.
        """
        block = change.block
        if isinstance(change, BlockBegan):
            yield self._frame(
                "response.output_item.added", output_index=block.index, item=self._item(block, IN_PROGRESS)
            )
            if block.kind is BlockKind.TEXT:
                yield self._block_frame(block, "response.content_part.added", part=text_part("", []))
                self._text_frame = self._text_surroundings(block)
        elif isinstance(change, BlockGrew):
            yield self._growth(change)
        elif isinstance(change, BlockEnded):
            yield from self._ending(block)
            yield self._frame("response.output_item.done", output_index=block.index, item=self._item(block, status))

    def _growth(self, change: BlockGrew) -> bytes:
        block = change.block
        if block.kind is BlockKind.TEXT:
            if not change.logprobs:
                return self._text(change.text)
            tokens = token_logprobs(change.logprobs)
            return self._block_frame(block, "response.output_text.delta", delta=change.text, logprobs=tokens)
        if block.kind is BlockKind.REASONING:
            return self._block_frame(block, "response.reasoning_text.delta", delta=change.text)
        kind = self._toolbox.called(block.name).kind
        # Arguments of other kinds are converted for the item once they are complete.
        return self._block_frame(block, f"{kind.event}.delta", delta=change.text) if kind is FUNCTION else b""

    def _ending(self, block: Block) -> Iterator[bytes]:
        if block.kind is BlockKind.TEXT:
            self._text_frame = None
            part = text_part(block.text, block.logprobs)
            yield self._block_frame(block, "response.output_text.done", text=block.text, logprobs=part["logprobs"])
            yield self._block_frame(block, "response.content_part.done", part=part)
        elif block.kind is BlockKind.REASONING:
            yield self._block_frame(block, "response.reasoning_text.done", text=block.text)
        else:
            yield from self._call_ending(block)

    def _call_ending(self, block: Block) -> Iterator[bytes]:
        kind = self._toolbox.called(block.name).kind
        if kind.event is None:
            return
        item = self._item(block, COMPLETED)
        value = item[kind.field]
        if kind is not FUNCTION and value:
            yield self._block_frame(block, f"{kind.event}.delta", delta=value)
        yield self._block_frame(block, f"{kind.event}.done", **{"name": item["name"], kind.field: value})

    def _block_frame(self, block: Block, event: str, /, **fields: Any) -> bytes:  # noqa: ANN401 - any JSON value
        place = {"item_id": self._item_id(block), "output_index": block.index}
        if block.kind is not BlockKind.TOOL_CALL:
            place["content_index"] = 0
        return self._frame(event, **place, **fields)

    def _frame(self, event: str, /, **fields: Any) -> bytes:  # noqa: ANN401 - any JSON value
        number = self._number
        self._number += 1
        return named_frame({"type": event, "sequence_number": number, **fields})

    def _text_surroundings(self, block: Block) -> tuple[bytes, bytes]:
        """Return the bytes of a message's delta frame before the sequence number, and those between it and the text."""
        name = "response.output_text.delta"
        place = {"item_id": self._item_id(block), "output_index": block.index, "content_index": 0, "logprobs": []}
        head = b"event: " + name.encode() + b'\ndata: {"type":"' + name.encode() + b'","sequence_number":'
        fields = json.dumps(place, separators=(",", ":")).encode()
        return head, b"," + fields[1:-1] + b',"delta":'

    def _text(self, text: str) -> bytes:
        before, between = self._text_frame or (b"", b"")
        number = self._number
        self._number += 1
        return before + str(number).encode() + between + json.dumps(text, ensure_ascii=False).encode() + b"}\n\n"
