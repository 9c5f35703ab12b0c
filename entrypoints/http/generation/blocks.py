"""Blocks: the events of a completion grouped into reasoning, text and tool calls, one after the other.

For APIs whose responses are lists of such blocks, each with a beginning and an end in a stream. Blocks never overlap.
"""

import enum
from collections.abc import Iterator, Sequence

import attrs

from mlxk.domain.generation.grammar import is_json
from mlxk.domain.generation.request import (
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)


class BlockKind(enum.Enum):
    """What a block is."""

    REASONING = "reasoning"
    TEXT = "text"
    TOOL_CALL = "tool call"


@attrs.define(eq=False)
class Block:
    """A block, complete up to now."""

    index: int
    """Its place in the response, from 0."""
    kind: BlockKind
    call_id: str = ""
    """Id of a tool call."""
    name: str = ""
    """Function of a tool call."""
    parts: list[str] = attrs.field(factory=list)
    """Its text in pieces: joined when it is needed, since each addition to a string copies it."""
    logprobs: list[TokenLogprob] = attrs.field(factory=list)
    """The tokens of the text, if they were asked for."""

    @property
    def text(self) -> str:
        """Reasoning, text, or the arguments of a call as JSON text."""
        return "".join(self.parts)


@attrs.frozen
class BlockBegan:
    """A block begins; it is empty as yet."""

    block: Block


@attrs.frozen
class BlockGrew:
    """A block got more text."""

    block: Block
    text: str
    """The new part, never empty."""
    logprobs: Sequence[TokenLogprob] = ()
    """The tokens of the new part."""


@attrs.frozen
class BlockEnded:
    """A block is complete."""

    block: Block


BlockChange = BlockBegan | BlockGrew | BlockEnded


class BlockReader:
    """Groups the events of one completion into blocks.

    Args:
        one_call: Whether calls after the first are omitted.
    """

    def __init__(self, *, one_call: bool = False) -> None:
        self.blocks: list[Block] = []
        """All blocks so far, in order; the last one may be incomplete."""
        self._one_call = one_call
        self._open: tuple[BlockKind, int] | None = None
        """Kind of the open block, and the index of its call."""

    def is_cut(self, *, json_text: bool) -> bool:
        """Whether a call is no complete JSON value, or text that must be JSON is none.

        Args:
            json_text: Whether the text must be JSON.
        """
        calls = [block.text for block in self.blocks if block.kind is BlockKind.TOOL_CALL]
        text = "".join(block.text for block in self.blocks if block.kind is BlockKind.TEXT)
        return not all(map(is_json, [*calls, *([text] if json_text and (text or not calls) else [])]))

    def read(self, event: GenerationEvent) -> Iterator[BlockChange]:
        """Yield what an event changes; the last event of a completion changes nothing, see ``end``."""
        if isinstance(event, ToolCallDelta):
            if not (self._one_call and event.index > 0):
                yield from self._grow(BlockKind.TOOL_CALL, event.call.arguments, event)
        elif isinstance(event, ReasoningDelta):
            yield from self._grow(BlockKind.REASONING, event.text)
        elif isinstance(event, TextDelta):
            yield from self._grow(BlockKind.TEXT, event.text, logprobs=event.logprobs)

    def end(self) -> Iterator[BlockChange]:
        """Yield the end of the open block, if there is one."""
        if self._open is not None:
            self._open = None
            yield BlockEnded(self.blocks[-1])

    def _grow(
        self, kind: BlockKind, text: str, call: ToolCallDelta | None = None, logprobs: Sequence[TokenLogprob] = ()
    ) -> Iterator[BlockChange]:
        place = (kind, 0 if call is None else call.index)
        if self._open != place:
            yield from self.end()
            block = Block(len(self.blocks), kind)
            if call is not None:
                block.call_id, block.name = call.call.id or "", call.call.name
            self.blocks.append(block)
            self._open = place
            yield BlockBegan(block)
        block = self.blocks[-1]
        block.logprobs.extend(logprobs)
        if text:
            block.parts.append(text)
            yield BlockGrew(block, text, logprobs)
