"""Blocks: groups the events of a completion into consecutive blocks of reasoning, text and tool calls.

For APIs whose responses are lists of blocks and whose streams report each block's start and end. Blocks never overlap.
"""

import enum
import json
from collections.abc import Iterable, Iterator, Sequence

import attrs

from mlxk.domain.generation.grammar import is_json
from mlxk.domain.generation.request import (
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from mlxk.domain.text import is_valid_unicode, with_valid_unicode


class BlockKind(enum.Enum):
    """The kind of a block."""

    REASONING = "reasoning"
    TEXT = "text"
    TOOL_CALL = "tool call"


@attrs.define(eq=False)
class Block:
    """A block, as far as it has been generated."""

    index: int
    """Position in the response, from 0."""
    kind: BlockKind
    call_id: str = ""
    """Id of the tool call."""
    name: str = ""
    """Name of the called function."""
    parts: list[str] = attrs.field(factory=list)
    """Chunks of the text, joined on demand: appending to a string would copy it each time."""
    logprobs: list[TokenLogprob] = attrs.field(factory=list)
    """Log probabilities of the text's tokens, if requested."""

    @property
    def text(self) -> str:
        """Reasoning, text, or the arguments of a call as JSON text."""
        return "".join(self.parts)


@attrs.frozen
class BlockBegan:
    """A new block, still empty."""

    block: Block


@attrs.frozen
class BlockGrew:
    """A block has more text."""

    block: Block
    text: str
    """The new chunk, never empty."""
    logprobs: Sequence[TokenLogprob] = ()
    """Log probabilities of the chunk's tokens."""


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

    def is_truncated(self, *, json_text: bool) -> bool:
        """Whether the arguments of a call, or the text if it must be JSON, are incomplete JSON.

        Args:
            json_text: Whether the text must be JSON.
        """
        calls = [block.text for block in self.blocks if block.kind is BlockKind.TOOL_CALL]
        text = "".join(block.text for block in self.blocks if block.kind is BlockKind.TEXT)
        return not all(map(is_json, [*calls, *([text] if json_text and (text or not calls) else [])]))

    def read(self, event: GenerationEvent) -> Iterator[BlockChange]:
        """Yield the changes that an event makes. ``Finished`` makes none; call ``end`` after it."""
        if isinstance(event, ToolCallDelta):
            if not (self._one_call and event.index > 0):
                yield from self._grow(BlockKind.TOOL_CALL, event.call.arguments, event)
        elif isinstance(event, ReasoningDelta):
            yield from self._grow(BlockKind.REASONING, event.text)
        elif isinstance(event, TextDelta):
            yield from self._grow(BlockKind.TEXT, event.text, logprobs=event.logprobs)

    def collect(self, events: Iterable[GenerationEvent]) -> None:
        """Add events to the blocks, without the changes that they make."""
        for event in events:
            for _ in self.read(event):
                pass

    def end(self) -> Iterator[BlockChange]:
        """Yield the end of the open block, if any."""
        if self._open is not None:
            self._open = None
            yield BlockEnded(self.blocks[-1])

    def _grow(
        self, kind: BlockKind, text: str, call: ToolCallDelta | None = None, logprobs: Sequence[TokenLogprob] = ()
    ) -> Iterator[BlockChange]:
        key = (kind, 0 if call is None else call.index)
        if self._open != key:
            yield from self.end()
            block = Block(len(self.blocks), kind)
            if call is not None:
                block.call_id, block.name = call.call.id or "", call.call.name
            self.blocks.append(block)
            self._open = key
            yield BlockBegan(block)
        block = self.blocks[-1]
        block.logprobs.extend(logprobs)
        if text:
            block.parts.append(text)
            yield BlockGrew(block, text, logprobs)


def parsed_json(text: str) -> object:
    """Return the value of JSON text that a model wrote, such as arguments of a call, so that it can be encoded again.

    Half surrogate pairs are replaced by U+FFFD, and NaN and infinities by None.

    Raises:
        ValueError: The text is not valid JSON, or is nested too deeply.
    """
    try:
        value: object = json.loads(text, strict=False, parse_constant=lambda _: None)
        return value if is_valid_unicode(json.dumps(value, ensure_ascii=False)) else _with_valid_unicode(value)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _with_valid_unicode(value: object) -> object:
    if isinstance(value, str):
        return with_valid_unicode(value)
    if isinstance(value, list):
        return [_with_valid_unicode(entry) for entry in value]
    if isinstance(value, dict):
        return {_with_valid_unicode(name): _with_valid_unicode(entry) for name, entry in value.items()}
    return value
