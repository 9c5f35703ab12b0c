"""Renders messages as content blocks, whole or as the events of a stream, and errors in this API's form."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.grammar import is_json
from mlxk.domain.generation.request import Finished, FinishReason, GenerationEvent, Usage
from mlxk.entrypoints.http.anthropic.conversation import shown_call_id
from mlxk.entrypoints.http.errors import status_of
from mlxk.entrypoints.http.generation.blocks import (
    Block,
    BlockBegan,
    BlockChange,
    BlockGrew,
    BlockKind,
    BlockReader,
    parsed_json,
)
from mlxk.entrypoints.http.generation.renderer import (
    SSE_HEADERS,
    ResponseContext,
    ResponseRenderer,
    named_frame,
    progress_comment,
)
from mlxk.entrypoints.http.openai.renderer import MessageOptions
from mlxk.entrypoints.wording import http_error

ERROR_STATUSES: Mapping[str, int] = {
    "model_unhealthy": 400,
    "incompatible_model": 400,
    "backend_not_installed": 400,
    "capability_not_supported": 400,
    "insufficient_memory": 400,
    "queue_full": 529,
    "server_shutdown": 529,
    "rank_lost": 529,
}
"""HTTP statuses by error code, where they differ from the usual ones: clients retry 409 and everything from 500 on, so
errors that no retry can help are 400."""

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Error types by status; the others are ``api_error`` from 500 on and ``invalid_request_error`` below."""


def error_document(error: MlxkError, request_id: str) -> Mapping[str, object]:
    """Return an error as a JSON document, for a response or for an event in a stream.

    Args:
        error: The error.
        request_id: Id of the request.
    """
    status = ERROR_STATUSES.get(error.code, status_of(error))
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": _message(error)}, "request_id": request_id}


def error_body(error: MlxkError, request_id: str, _: str | None = None) -> tuple[str, bytes]:
    """Return content type and body of an error response."""
    return "application/json", json.dumps(error_document(error, request_id), ensure_ascii=False).encode()


def _message(error: MlxkError) -> str:
    facts = error.detail or {}
    tokens, window = facts.get("prompt_tokens") or facts.get("counted_tokens"), facts.get("context_length")
    if error.code == "context_length_exceeded" and isinstance(tokens, int) and isinstance(window, int):
        # Clients parse both numbers and expect the first to be larger; a prompt that fills the window is refused, too.
        return f"prompt is too long: {tokens} tokens > {min(window, tokens - 1)} maximum"
    message, hint = http_error(error)
    if not hint:
        return message
    return f"{message}{'' if message.endswith(('.', '!', '?')) else '.'} {hint}"


SIGNATURE = "bWx4aw=="
"""Signature of all reasoning; clients drop reasoning without one, and cannot verify it."""

_DELTAS = {
    BlockKind.REASONING: ("thinking_delta", "thinking"),
    BlockKind.TEXT: ("text_delta", "text"),
    BlockKind.TOOL_CALL: ("input_json_delta", "partial_json"),
}
"""Type and field of a delta by the kind of its block."""


@attrs.frozen
class ShownParts:
    """The parts of an answer that the response contains."""

    thinking: bool = True
    """Whether it has the text of the reasoning."""
    answer: bool = True
    """Whether it has any content; False for ``max_tokens`` 0."""


def frame(kind: str, **fields: object) -> bytes:
    """Return an event of a stream."""
    return named_frame({"type": kind, **fields})


PING = frame("ping")


class MessagesRenderer(ResponseRenderer):
    """Renders a response of ``POST /v1/messages``.

    Args:
        context: Metadata of the response.
        options: How to render messages.
        shown: The parts of the answer to render.
    """

    media_type = "application/json"
    stream_headers = SSE_HEADERS

    def __init__(
        self,
        context: ResponseContext,
        options: MessageOptions,
        shown: ShownParts,
    ) -> None:
        self._context = context
        self._shown = shown
        self._id = f"msg_{uuid.uuid4().hex[:24]}"
        self._reader = BlockReader(one_call=options.one_call)
        self._delta_frame: tuple[bytes, bytes] = (b"", b"")
        """Bytes of the open block's delta frame before and after the text; built once for each block."""

    def opening(self) -> bytes:
        """Return the message without content, with the usage of the prompt, and a ping."""
        usage = _usage(Usage(self._context.prompt_tokens, 0))
        return frame("message_start", message=self._message([], None, None, usage)) + PING

    def keep_alive(self) -> bytes:
        """Return a ping."""
        return PING

    def progress(self, done: int, total: int) -> bytes:
        """Return a comment and a ping: for the timeouts of clients, comments do not count."""
        return progress_comment(done, total) + PING

    def event(self, index: int, event: GenerationEvent) -> bytes:
        """Return the frames of an event."""
        return b"".join(map(self._frames, self._reader.read(event))) if self._shown.answer else b""

    def closing(self, finished: Sequence[Finished]) -> bytes:
        """Return the end of the last block, and of the message."""
        last_block = b"".join(map(self._frames, self._reader.end()))
        reason, stop = self._stop(finished[0])
        delta = {"stop_reason": reason, "stop_sequence": stop}
        return last_block + frame("message_delta", delta=delta, usage=self._usage(finished[0])) + frame("message_stop")

    def error(self, error: MlxkError) -> bytes:
        """Return an error event."""
        return named_frame(error_document(error, self._context.request_id))

    def whole(self, choices: Sequence[Sequence[GenerationEvent]], finished: Sequence[Finished]) -> bytes:
        """Return the message as one JSON document."""
        self._reader.collect(choices[0] if self._shown.answer else ())
        content = [self._content(block) for block in self._reader.blocks]
        message = self._message(content, *self._stop(finished[0]), self._usage(finished[0]))
        return json.dumps(message, ensure_ascii=False).encode()

    def _message(self, content: Sequence[object], reason: str | None, stop: str | None, usage: object) -> object:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._context.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage,
        }

    def _frames(self, change: BlockChange) -> bytes:
        block = change.block
        if isinstance(change, BlockGrew):
            if block.kind is BlockKind.REASONING and not self._shown.thinking:
                return b""
            before, after = self._delta_frame
            return before + json.dumps(change.text, ensure_ascii=False).encode() + after
        if isinstance(change, BlockBegan):
            kind, field = _DELTAS[block.kind]
            template = frame("content_block_delta", index=block.index, delta={"type": kind, field: "text"})
            before, _, after = template.rpartition(b'"text"')
            self._delta_frame = before, after
            return frame("content_block_start", index=block.index, content_block=_empty_content(block))
        signature = b""
        if block.kind is BlockKind.REASONING:
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            signature = frame("content_block_delta", index=block.index, delta=delta)
        return signature + frame("content_block_stop", index=block.index)

    def _content(self, block: Block) -> object:
        content = _empty_content(block)
        if block.kind is BlockKind.REASONING:
            return {**content, "thinking": block.text if self._shown.thinking else "", "signature": SIGNATURE}
        if block.kind is BlockKind.TEXT:
            return {**content, "text": block.text}
        return {**content, "input": arguments_of(block.text)}

    def _stop(self, finished: Finished) -> tuple[str, str | None]:
        """Return the stop reason, and the stop string that ended the message."""
        if not self._shown.answer:
            return "max_tokens", None
        if finished.reason is FinishReason.LENGTH:
            return "model_context_window_exceeded" if finished.window_full else "max_tokens", None
        called = any(block.kind is BlockKind.TOOL_CALL and is_json(block.text or "{}") for block in self._reader.blocks)
        if called:
            return "tool_use", None
        return ("end_turn", None) if finished.stop_sequence is None else ("stop_sequence", finished.stop_sequence)

    def _usage(self, finished: Finished) -> object:
        usage = finished.usage
        return _usage(usage if self._shown.answer else attrs.evolve(usage, completion_tokens=0, reasoning_tokens=0))


def _empty_content(block: Block) -> dict[str, Any]:
    """Return the content block for an empty block of the same kind."""
    if block.kind is BlockKind.REASONING:
        return {"type": "thinking", "thinking": "", "signature": ""}
    if block.kind is BlockKind.TEXT:
        return {"type": "text", "text": ""}
    return {"type": "tool_use", "id": shown_call_id(block.call_id), "name": block.name, "input": {}}


def _usage(usage: Usage) -> dict[str, object]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


_MAX_DEPTH = 500
"""Nesting of truncated arguments that is read; the parser's limit differs between versions of Python."""


def arguments_of(text: str) -> dict[str, Any]:
    """Return the arguments of a call; of truncated JSON, the complete members."""
    try:
        value = parsed_json(text or "{}")
    except ValueError:
        value = _complete_part(text)
    return value if isinstance(value, dict) else {}


def _complete_part(text: str) -> object:
    """Return the complete members of truncated JSON text."""
    closers: list[str] = []
    """Closing brackets of the open containers, outermost first."""
    end, closing = 0, ""
    in_string = escaped = False
    for index, character in enumerate(text):
        if in_string:
            in_string = escaped or character != '"'
            escaped = not escaped and character == "\\"
            continue
        if character == '"':
            in_string = True
            continue
        if character in "{[":
            closers.append("}" if character == "{" else "]")
            if len(closers) > _MAX_DEPTH:
                return {}
        elif character in "}]":
            del closers[-1:]
        elif character != ",":
            continue
        end, closing = index + (character != ","), "".join(reversed(closers))
    try:
        return parsed_json(text[:end] + closing)
    except ValueError:
        return {}
