"""Renders messages: content blocks, the events in which a stream sends them, and errors in this API's form."""

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
from mlxk.entrypoints.http.generation.blocks import Block, BlockBegan, BlockChange, BlockGrew, BlockKind, BlockReader
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
"""Statuses by the code of an error, where they are others than usual: clients send a request again for 409 and for
everything from 500 on, so what no repetition helps against is 400."""

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
"""Types of errors by status; others are ``api_error`` from 500 on, and ``invalid_request_error`` below."""


def error_document(error: MlxkError, request_id: str) -> Mapping[str, object]:
    """Return an error as a JSON document, for a response or for an event in a stream.

    Args:
        error: The error.
        request_id: Of the request.
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
        # Clients read both numbers from these words. A prompt that fills the window leaves no room for an answer.
        return f"prompt is too long: {tokens} tokens > {min(window, tokens - 1)} maximum"
    message, hint = http_error(error)
    if not hint:
        return message
    return f"{message}{'' if message.endswith(('.', '!', '?')) else '.'} {hint}"


SIGNATURE = "bWx4aw=="
"""Of all reasoning; clients drop reasoning without one, and none of them can check it."""

_DELTAS = {
    BlockKind.REASONING: ("thinking_delta", "thinking"),
    BlockKind.TEXT: ("text_delta", "text"),
    BlockKind.TOOL_CALL: ("input_json_delta", "partial_json"),
}
"""Type of a delta, and its field, by the kind of its block."""


@attrs.frozen
class ShownParts:
    """What a request wants to see of an answer."""

    thinking: bool = True
    """Whether the text of the reasoning is shown."""
    answer: bool = True
    """Whether there is an answer at all."""


def frame(kind: str, **fields: object) -> bytes:
    """Return an event of a stream, with its name on a line of its own."""
    return named_frame({"type": kind, **fields})


PING = frame("ping")


class MessagesRenderer(ResponseRenderer):
    """Renders a response of ``POST /v1/messages``.

    Args:
        context: Facts about the response.
        options: How to render messages.
        shown: What the request wants to see.
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

    def opening(self) -> bytes:
        """Return the message without content and what is known of its usage, and a ping."""
        usage = _usage(Usage(self._context.prompt_tokens, 0))
        return frame("message_start", message=self._message([], None, None, usage)) + PING

    def keep_alive(self) -> bytes:
        """Return a ping."""
        return PING

    def progress(self, done: int, total: int) -> bytes:
        """Return a comment and a ping: clients count events only, not comments, as signs of life."""
        return progress_comment(done, total) + PING

    def event(self, index: int, event: GenerationEvent) -> bytes:
        """Return the frames of an event."""
        return b"".join(map(self._frames, self._reader.read(event))) if self._shown.answer else b""

    def closing(self, finished: Sequence[Finished]) -> bytes:
        """Return the end of the last block, and of the message."""
        ended = b"".join(map(self._frames, self._reader.end()))
        reason, stop = self._stop(finished[0])
        delta = {"stop_reason": reason, "stop_sequence": stop}
        return ended + frame("message_delta", delta=delta, usage=self._usage(finished[0])) + frame("message_stop")

    def error(self, error: MlxkError) -> bytes:
        """Return an error event."""
        return named_frame(error_document(error, self._context.request_id))

    def whole(self, choices: Sequence[Sequence[GenerationEvent]], finished: Sequence[Finished]) -> bytes:
        """Return the message as one JSON document."""
        for event in choices[0] if self._shown.answer else ():
            for _ in self._reader.read(event):
                pass
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
            # Its frame is built once; each delta then replaces only the text.
            kind, field = _DELTAS[block.kind]
            made = frame("content_block_delta", index=block.index, delta={"type": kind, field: "text"})
            before, _, after = made.rpartition(b'"text"')
            self._delta_frame = before, after
            return frame("content_block_start", index=block.index, content_block=_opened(block))
        signed = b""
        if block.kind is BlockKind.REASONING:
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            signed = frame("content_block_delta", index=block.index, delta=delta)
        return signed + frame("content_block_stop", index=block.index)

    def _content(self, block: Block) -> object:
        opened = _opened(block)
        if block.kind is BlockKind.REASONING:
            return {**opened, "thinking": block.text if self._shown.thinking else "", "signature": SIGNATURE}
        if block.kind is BlockKind.TEXT:
            return {**opened, "text": block.text}
        return {**opened, "input": arguments_of(block.text)}

    def _stop(self, finished: Finished) -> tuple[str, str | None]:
        """Return why the message ended, and the stop string that ended it."""
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


def _opened(block: Block) -> dict[str, Any]:
    """Return a block without its content."""
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


_MOST_NESTED = 500
"""Levels of arguments that were cut off; versions of Python read more or fewer."""


def arguments_of(text: str) -> dict[str, Any]:
    """Return the arguments of a call; those of a call that was cut off as far as they are complete."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = _complete_part(text)
    return value if isinstance(value, dict) else {}


def _complete_part(text: str) -> object:
    """Return the complete members of JSON text that was cut off."""
    open_at: list[str] = []
    end, closing = 0, ""
    in_string = escaped = False
    for place, character in enumerate(text):
        if in_string:
            in_string = escaped or character != '"'
            escaped = not escaped and character == "\\"
            continue
        if character == '"':
            in_string = True
            continue
        if character in "{[":
            open_at.append("}" if character == "{" else "]")
            if len(open_at) > _MOST_NESTED:
                return {}
        elif character in "}]":
            del open_at[-1:]
        elif character != ",":
            continue
        end, closing = place + (character != ","), "".join(reversed(open_at))
    try:
        return json.loads(text[:end] + closing)
    except (ValueError, RecursionError):
        return {}
