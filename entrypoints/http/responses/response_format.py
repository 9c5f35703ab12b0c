"""How an endpoint shows an answer: the names it uses, and the pieces it makes of events.

A piece is one entry of ``choices`` in a chunk. A stream sends the pieces; a batch response is the same pieces put
together, so that both say the same by construction.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs

from mlxk.domain.generation.request import Finished, FinishReason, GenerationEvent, Usage

Piece = Mapping[str, Any]
"""One entry of ``choices`` in a chunk, as JSON."""


@attrs.frozen
class AnswerIdentity:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    """As the client named it."""
    fingerprint: str
    """Of the weights that answer."""
    request_id: str


class Choice(Protocol):
    """One of the alternative answers, as it grows."""

    @abstractmethod
    def opening(self) -> Piece | None:
        """Return the piece that comes before any event, if there is one."""

    @abstractmethod
    def pieces(self, event: GenerationEvent) -> Sequence[Piece]:
        """Return the pieces an event makes, mostly one."""

    @abstractmethod
    def text_frame(self) -> tuple[Piece, str] | None:
        """Return the piece of a text without log probabilities, and that text, to be replaced in bulk.

        None when text does not always make the same kind of piece.
        """

    @abstractmethod
    def whole(self, pieces: Sequence[Piece]) -> Piece:
        """Return the entry of ``choices`` that some pieces make together."""


class Shape(Protocol):
    """An endpoint's way to show answers."""

    stream_object: str
    """``object`` of a chunk."""
    batch_object: str
    """``object`` of a whole response."""

    @abstractmethod
    def choice(self, index: int) -> Choice:
        """Return the choice at an index, fresh."""


def envelope(identity: AnswerIdentity, kind: str, choices: Sequence[Piece], **more: object) -> dict[str, object]:
    """Return a response or a chunk around some choices."""
    return {
        "id": identity.id,
        "object": kind,
        "created": identity.created,
        "model": identity.model,
        "system_fingerprint": identity.fingerprint,
        "choices": list(choices),
        **more,
    }


def finish_reason(finished: Finished, called: bool, *, cut: bool = False) -> str:
    """Return why an answer ended, as OpenAI names it.

    Args:
        finished: The end.
        called: Whether the answer made a tool call.
        cut: Whether a stop string left less of it than it has to be; clients take what ends by length for a part.
    """
    if cut or finished.reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if called else "stop"


def usage_document(usages: Sequence[Usage], alternatives: int) -> dict[str, object]:
    """Return the tokens spent on a request.

    Args:
        usages: One an answer, those of the same prompt side by side.
        alternatives: Answers a prompt; its tokens count once.
    """
    prompts = usages[::alternatives]
    prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in prompts)},
    }
