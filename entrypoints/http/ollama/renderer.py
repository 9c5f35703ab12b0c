"""Renders responses of ``/api/chat`` and ``/api/generate``, and the errors of this API.

A stream has one JSON object on each line. An error is a single text that ends with its hint.
"""

import datetime
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import attrs

from mlxk.application.ports.system import Clock
from mlxk.domain.errors import FeatureGateError, MlxkError, Remedy
from mlxk.domain.generation.request import (
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from mlxk.entrypoints.http.generation.blocks import (
    Block,
    BlockChange,
    BlockEnded,
    BlockGrew,
    BlockKind,
    BlockReader,
    parsed_json,
)
from mlxk.entrypoints.http.generation.renderer import ResponseContext, ResponseRenderer
from mlxk.entrypoints.http.openai.renderer import MessageOptions, finish_reason, token_document
from mlxk.entrypoints.wording import HTTP, hint, http_error

ERROR_STATUSES: Mapping[str, int] = {"capability_not_supported": 400}
"""HTTP statuses by error code, where they differ from the usual ones."""

_SENTENCES: Mapping[Remedy, str] = {
    **HTTP,
    Remedy.FETCH: "GET /api/tags lists the models of this server.",
    Remedy.FETCH_OR_USE_CLOSE_NAME: "Did you mean {close}? GET /api/tags lists the models of this server.",
    Remedy.LIST_ALL: "GET /api/tags lists the models of this server.",
    Remedy.LEAVE_OUT_REASONING: "Leave it out, or choose a model with the capability thinking.",
    Remedy.LEAVE_OUT_TOOLS: "Leave them out, or choose a model with the capability tools.",
    Remedy.LIST_CAPABLE_MODELS: "Choose a model with the capability {capability}.",
    Remedy.NAME_SERVED_MODEL: "Name one of the models GET /api/tags lists.",
    Remedy.USE_CLOSE_NAME: "Did you mean {close}? GET /api/tags lists the models of this server.",
    Remedy.USE_COMPLETIONS: "Send the text to /api/generate instead.",
    Remedy.USE_EMBEDDINGS: "Ask it for vectors: /api/embed.",
    Remedy.USE_NAME_OF_HUB: "GET /api/tags lists the models of this server.",
    Remedy.USE_PATH: "GET /api/tags lists the models of this server.",
}


def timestamp(moment: datetime.datetime) -> str:
    """Return a time in UTC in RFC 3339 format, to the microsecond: some clients parse no more digits."""
    text = moment.astimezone(datetime.UTC).isoformat(timespec="microseconds")
    return text.removesuffix("+00:00") + "Z"


def nanoseconds(seconds: float) -> int:
    """Return a duration in nanoseconds, at least 1, since clients divide by it."""
    return max(1, round(seconds * 1e9))


def error_text(error: MlxkError) -> str:
    """Return the message, matches and hint of an error as one text."""
    if error.code == "model_not_found":
        return error.message  # clients compare it
    message, _ = http_error(error)
    message = _overflow(error) or message
    if error.matches:
        message = f"{message.rstrip('.')}: {', '.join(error.matches)}"
    advice = hint(error, _SENTENCES)
    return f"{message.rstrip('.')}. {advice}" if advice else message


def error_document(error: MlxkError) -> Mapping[str, object]:
    """Return an error as a JSON document, for a response or for a line in a stream."""
    return {"error": error_text(error)}


def error_body(error: MlxkError, request_id: str, parameter: str | None = None) -> tuple[str, bytes]:
    """Return content type and body of an error response."""
    return "application/json", json.dumps(error_document(error), ensure_ascii=False).encode()


def require_changes(allowed: bool) -> None:
    """Refuse changes to the models of this machine unless the operator allows them.

    Raises:
        FeatureGateError: They are not allowed.
    """
    if not allowed:
        raise FeatureGateError(
            "this server does not let clients pull and delete models",
            hint="Its operator can allow it: mlxk serve --allow-model-changes",
        )


def _overflow(error: MlxkError) -> str | None:
    """Return the sentence for a prompt beyond the context window, beginning as Ollama's; None for other errors."""
    facts = error.detail or {}
    if error.code != "context_length_exceeded" or "context_length" not in facts:
        return None
    text = "the prompt" if "index" not in facts else f"input[{facts['index']}]"
    if "counted_tokens" in facts:
        count = f"the first {facts['counted_characters']} characters of {text} have {facts['counted_tokens']} tokens"
    else:
        count = f"{text} has {facts['prompt_tokens']} tokens"
    return f"the input length exceeds the context length: {count}, the context window holds {facts['context_length']}"


MEDIA_TYPE = "application/json; charset=utf-8"
LINES_HEADERS = MappingProxyType(
    {"Content-Type": "application/x-ndjson", "Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
)


@attrs.frozen
class Piece:
    """Content of one line of a stream, or of a whole response."""

    content: str = ""
    thinking: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    logprobs: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def joined(cls, pieces: Sequence["Piece"]) -> "Piece":
        """Join consecutive pieces."""
        return cls(
            "".join(piece.content for piece in pieces),
            "".join(piece.thinking for piece in pieces),
            [call for piece in pieces for call in piece.tool_calls],
            [token for piece in pieces for token in piece.logprobs],
        )


def line(document: object) -> bytes:
    """Return a JSON document as a line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class OllamaRenderer(ResponseRenderer):
    """The base of both renderers.

    A keep-alive frame is a line without content: clients parse every line as a document.

    Args:
        context: Metadata of the response.
        options: How to render messages.
        clock: Provides the creation time of each line.
    """

    media_type = MEDIA_TYPE
    stream_headers = LINES_HEADERS
    text_path: ClassVar[bytes]
    """JSON of a text line after the time, with ``%s`` for the text."""

    def __init__(self, context: ResponseContext, options: MessageOptions, *, clock: Clock) -> None:
        self._context = context
        self._clock = clock
        self._reader = BlockReader(one_call=options.one_call)
        self._options = options
        self._plain = not (options.stops and options.json_text)
        """Whether text does not have to be collected by the block reader."""
        self._calls = 0
        self._in_call = False
        """Whether a tool call is open."""
        self._opening = b'{"model":' + json.dumps(context.model, ensure_ascii=False).encode() + b',"created_at":"'
        self._before, _, self._after = self.text_path.partition(b"%s")

    @abstractmethod
    def content(self, piece: Piece) -> dict[str, object]:
        """Return the fields for the content of a piece."""

    def opening(self) -> bytes:
        """Return a line without content."""
        return self._text_line("")

    def keep_alive(self) -> bytes:
        """Return a line without content."""
        return self._text_line("")

    def event(self, index: int, event: GenerationEvent) -> bytes:
        """Return the lines of an event."""
        if isinstance(event, TextDelta) and not event.logprobs and not self._in_call and self._plain:
            return self._text_line(event.text)
        return b"".join(map(self._line, self._pieces(event)))

    def closing(self, finished: Sequence[Finished]) -> bytes:
        """Return the last line, with token counts and durations."""
        return line(self._document(Piece(), finished[0]))

    def error(self, error: MlxkError) -> bytes:
        """Return a line with the error."""
        return line(error_document(error))

    def whole(self, choices: Sequence[Sequence[GenerationEvent]], finished: Sequence[Finished]) -> bytes:
        """Return the response as one JSON document."""
        pieces = [piece for event in choices[0] for piece in self._pieces(event)]
        return json.dumps(self._document(Piece.joined(pieces), finished[0]), ensure_ascii=False).encode()

    def _pieces(self, event: GenerationEvent) -> Iterator[Piece]:
        """Yield the pieces of an event; a tool call once it is complete."""
        self._in_call = isinstance(event, ToolCallDelta)
        changes = self._reader.end() if isinstance(event, Finished) else self._reader.read(event)
        for change in changes:
            piece = self._piece(change)
            if piece is not None:
                yield piece

    def _piece(self, change: BlockChange) -> Piece | None:
        if isinstance(change, BlockEnded) and change.block.kind is BlockKind.TOOL_CALL:
            self._calls += 1
            return Piece(tool_calls=[_call(change.block, self._calls - 1)])
        if not isinstance(change, BlockGrew) or change.block.kind is BlockKind.TOOL_CALL:
            return None
        if change.block.kind is BlockKind.REASONING:
            return Piece(thinking=change.text)
        return Piece(change.text, logprobs=_logprobs(change.logprobs))

    def _line(self, piece: Piece) -> bytes:
        if not (piece.thinking or piece.tool_calls or piece.logprobs):
            return self._text_line(piece.content)
        return line(self._document(piece, None))

    def _text_line(self, text: str) -> bytes:
        """Return a line with text only; built from bytes, since most lines are such."""
        created_at = timestamp(self._clock.now()).encode()
        encoded = json.dumps(text, ensure_ascii=False).encode()
        return self._opening + created_at + self._before + encoded + self._after

    def _document(self, piece: Piece, finished: Finished | None) -> dict[str, object]:
        document: dict[str, object] = {
            "model": self._context.model,
            "created_at": timestamp(self._clock.now()),
            **self.content(piece),
            "done": finished is not None,
        }
        if piece.logprobs:
            document["logprobs"] = piece.logprobs
        if finished is not None:
            truncated = self._options.stops and self._reader.is_truncated(json_text=self._options.json_text)
            document["done_reason"] = finish_reason(finished, called=False, truncated=truncated)
            document |= _counts(finished)
        return document


class ChatLines(OllamaRenderer):
    """Renders a response of ``/api/chat``."""

    text_path = b'","message":{"role":"assistant","content":%s},"done":false}\n'

    def content(self, piece: Piece) -> dict[str, object]:
        """Return the message."""
        message: dict[str, object] = {"role": "assistant", "content": piece.content}
        if piece.thinking:
            message["thinking"] = piece.thinking
        if piece.tool_calls:
            message["tool_calls"] = piece.tool_calls
        return {"message": message}


class GenerateLines(OllamaRenderer):
    """Renders a response of ``/api/generate``; tool calls are rendered as text.

    Args:
        context: Metadata of the response.
        options: How to render messages.
        clock: Provides the creation time of each line.
        raw: Whether reasoning is rendered as text, too.
    """

    text_path = b'","response":%s,"done":false}\n'

    def __init__(self, context: ResponseContext, options: MessageOptions, *, clock: Clock, raw: bool = False) -> None:
        super().__init__(context, options, clock=clock)
        self._raw = raw

    def content(self, piece: Piece) -> dict[str, object]:
        """Return the text and the reasoning."""
        return {"response": piece.content, **({"thinking": piece.thinking} if piece.thinking else {})}

    def _pieces(self, event: GenerationEvent) -> Iterator[Piece]:
        if self._raw and isinstance(event, ReasoningDelta):
            event = TextDelta(event.text)
        elif isinstance(event, ToolCallDelta):
            event = TextDelta(event.call.arguments)
        return super()._pieces(event)


def _counts(finished: Finished) -> dict[str, int]:
    """Return token counts, and durations in nanoseconds; ``eval_duration`` is that of decoding alone."""
    usage, timings = finished.usage, finished.timings
    total = timings.first_token_seconds + timings.generation_seconds
    return {
        "total_duration": nanoseconds(total),
        "load_duration": nanoseconds(timings.load_seconds),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": nanoseconds(timings.prompt_seconds),
        "eval_count": usage.completion_tokens,
        "eval_duration": nanoseconds(timings.generation_seconds),
    }


def _call(block: Block, index: int) -> Mapping[str, Any]:
    """Return a call with its arguments as an object; other arguments become the only entry of one."""
    try:
        arguments = parsed_json(block.text or "{}")
    except ValueError:
        arguments = block.text
    if not isinstance(arguments, dict):
        arguments = {"arguments": arguments}
    return {"id": block.call_id, "function": {"index": index, "name": block.name, "arguments": arguments}}


def _logprobs(tokens: Sequence[TokenLogprob]) -> Sequence[Mapping[str, Any]]:
    return [
        {
            **token_document(scored.token),
            **({"top_logprobs": list(map(token_document, scored.alternatives))} if scored.alternatives else {}),
        }
        for scored in tokens
    ]
