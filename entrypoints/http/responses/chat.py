"""Answers of ``POST /v1/chat/completions``."""

from collections.abc import Sequence
from typing import Any

from mlxk.domain.generation.grammar import is_json
from mlxk.domain.generation.request import (
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenAlternative,
    TokenLogprob,
    ToolCallDelta,
)
from mlxk.entrypoints.http.requests.tools import ForcedCall
from mlxk.entrypoints.http.responses.forced_call import CallWriter
from mlxk.entrypoints.http.responses.response_format import Choice, Piece, Shape, finish_reason


class ChatShape(Shape):
    """Messages with content, reasoning and tool calls.

    Args:
        forced: Shows the text of the answer as the call it has to be.
        one_call: Whether calls after the first are left out.
        stops: Whether stop strings may cut the answer.
        json_text: Whether the text has to be JSON.
    """

    stream_object = "chat.completion.chunk"
    batch_object = "chat.completion"

    def __init__(
        self,
        forced: ForcedCall | None = None,
        *,
        one_call: bool = False,
        stops: bool = False,
        json_text: bool = False,
    ) -> None:
        self._forced = forced
        self._one_call = one_call
        self._stops = stops
        self._json_text = json_text

    def choice(self, index: int) -> Choice:
        """Return the choice at an index, fresh."""
        writer = CallWriter(self._forced.name) if self._forced else None
        watch = CutWatch(json_text=self._json_text) if self._stops else None
        return ChatChoice(index, writer, watch, one_call=self._one_call)


class CutWatch:
    """Tells whether a stop string cut what has to be JSON: the arguments of calls, and the text where it is enforced.

    Args:
        json_text: Whether the text has to be JSON.
    """

    def __init__(self, *, json_text: bool) -> None:
        self.json_text = json_text
        self._text: list[str] = []
        self._arguments: dict[int, list[str]] = {}

    def see(self, event: GenerationEvent) -> None:
        """Take the next event as the model made it."""
        if isinstance(event, TextDelta) and self.json_text:
            self._text.append(event.text)
        elif isinstance(event, ToolCallDelta):
            self._arguments.setdefault(event.index, []).append(event.call.arguments)

    @property
    def cut(self) -> bool:
        """Whether something that has to be JSON is none so far."""
        values = [*self._arguments.values(), *([self._text] if self.json_text else [])]
        return not all(is_json("".join(value)) for value in values)


class ChatChoice(Choice):
    """One message."""

    def __init__(self, index: int, writer: CallWriter | None, watch: CutWatch | None, *, one_call: bool) -> None:
        self._index = index
        self._writer = writer
        self._watch = watch
        self._one_call = one_call
        self._called = False

    def opening(self) -> Piece | None:
        """Return who speaks."""
        return self._piece({"role": "assistant", "content": ""})

    def pieces(self, event: GenerationEvent) -> Sequence[Piece]:
        """Return the pieces an event makes."""
        if self._left_out(event):
            return []
        if self._watch is not None:
            self._watch.see(event)
        events = (event,) if self._writer is None else self._writer.rewrite(event)
        return [self._of(each) for each in events]

    def text_frame(self) -> tuple[Piece, str] | None:
        """Return a piece of text, and the text in it."""
        plain = self._writer is None and (self._watch is None or not self._watch.json_text)
        return (self._piece({"content": "text"}), "text") if plain else None

    def _of(self, event: GenerationEvent) -> Piece:
        if isinstance(event, TextDelta):
            return self._piece({"content": event.text}, _logprobs(event.logprobs) if event.logprobs else None)
        if isinstance(event, ReasoningDelta):
            return self._piece({"reasoning_content": event.text})
        if isinstance(event, ToolCallDelta):
            self._called = True
            return self._piece({"tool_calls": [_call(event)]})
        cut = self._watch is not None and self._watch.cut
        return self._piece({}, reason=finish_reason(event, self._called, cut=cut))

    def _left_out(self, event: GenerationEvent) -> bool:
        return self._one_call and isinstance(event, ToolCallDelta) and event.index > 0

    def whole(self, pieces: Sequence[Piece]) -> Piece:
        """Return the message some pieces make."""
        deltas = [piece["delta"] for piece in pieces]
        content = "".join(delta.get("content") or "" for delta in deltas)
        reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
        calls = _joined_calls([call for delta in deltas for call in delta.get("tool_calls", ())])
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        tokens = [token for piece in pieces for token in (piece["logprobs"] or {"content": ()})["content"]]
        return {
            "index": self._index,
            "message": message,
            "logprobs": {"content": tokens, "refusal": None} if tokens else None,
            "finish_reason": next((piece["finish_reason"] for piece in pieces if piece["finish_reason"]), "stop"),
        }

    def _piece(self, delta: Piece, logprobs: Piece | None = None, reason: str | None = None) -> Piece:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _call(event: ToolCallDelta) -> Piece:
    """Return one piece of a call: name and id come with its first, the arguments with any."""
    function = {"name": event.call.name} if event.call.name else {}
    opening = {"id": event.call.id, "type": "function"} if event.call.id else {}
    return {"index": event.index, **opening, "function": {**function, "arguments": event.call.arguments}}


def _joined_calls(pieces: Sequence[Piece]) -> list[Piece]:
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        call = calls.setdefault(
            piece["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = call["id"] or piece.get("id", "")
        call["function"]["name"] += piece["function"].get("name", "")
        call["function"]["arguments"] += piece["function"].get("arguments", "")
    return [calls[index] for index in sorted(calls)]


def _logprobs(tokens: Sequence[TokenLogprob]) -> Piece:
    content = [
        {**_token(each.token), "top_logprobs": [_token(alternative) for alternative in each.alternatives]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def _token(token: TokenAlternative) -> dict[str, object]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.utf8)}
