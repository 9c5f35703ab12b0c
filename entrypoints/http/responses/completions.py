"""Answers of ``POST /v1/completions``."""

from collections.abc import Sequence

from mlxk.domain.generation.request import GenerationEvent, ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta
from mlxk.entrypoints.http.responses.response_format import Choice, Piece, Shape, finish_reason


class CompletionShape(Shape):
    """Plain text.

    Args:
        echoes: What each choice repeats before its answer; empty strings for nothing.
    """

    stream_object = "text_completion"
    batch_object = "text_completion"

    def __init__(self, echoes: Sequence[str]) -> None:
        self._echoes = echoes

    def choice(self, index: int) -> Choice:
        """Return the choice at an index, fresh."""
        return CompletionChoice(index, self._echoes[index])


class CompletionChoice(Choice):
    """One text."""

    def __init__(self, index: int, echo: str) -> None:
        self._index = index
        self._echo = echo
        self._offset = 0

    def opening(self) -> Piece | None:
        """Return the prompt, when it is to be repeated."""
        return self._piece(self._echo) if self._echo else None

    def pieces(self, event: GenerationEvent) -> Sequence[Piece]:
        """Return the piece an event makes. A raw completion shows what the model says as it is said."""
        if isinstance(event, TextDelta):
            return (self._piece(event.text, self._logprobs(event.logprobs) if event.logprobs else None),)
        if isinstance(event, ReasoningDelta):
            return (self._piece(event.text),)
        if isinstance(event, ToolCallDelta):
            return (self._piece(event.call.arguments),)
        return (self._piece("", reason=finish_reason(event, called=False)),)

    def text_frame(self) -> tuple[Piece, str] | None:
        """Return a piece of text, and the text in it."""
        return self._piece("text"), "text"

    def whole(self, pieces: Sequence[Piece]) -> Piece:
        """Return the text some pieces make."""
        parts = [piece["logprobs"] for piece in pieces if piece["logprobs"]]
        logprobs = {key: [value for part in parts for value in part[key]] for key in parts[0]} if parts else None
        return {
            "index": self._index,
            "text": "".join(piece["text"] for piece in pieces),
            "logprobs": logprobs,
            "finish_reason": next((piece["finish_reason"] for piece in pieces if piece["finish_reason"]), "stop"),
        }

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> Piece:
        offsets = []
        for each in tokens:
            offsets.append(self._offset)
            self._offset += len(each.token.text)
        return {
            "tokens": [each.token.text for each in tokens],
            "token_logprobs": [each.token.logprob for each in tokens],
            "top_logprobs": [
                {alternative.text: alternative.logprob for alternative in each.alternatives} for each in tokens
            ],
            "text_offset": offsets,
        }

    def _piece(self, text: str, logprobs: Piece | None = None, reason: str | None = None) -> Piece:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}
