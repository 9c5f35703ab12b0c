"""What holds one answer to more than its sampling settings: a budget for reasoning, and a grammar."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.detokenizer import Detokenizer
from mlxk.adapters.mlx.grammar import CompiledGrammar, GrammarConstraint, answer_begins
from mlxk.adapters.mlx.sampling import LogitsProcessor
from mlxk.domain.answer_stream import AnswerStream
from mlxk.domain.errors import ExecutionError


@attrs.define(eq=False)
class Constraints:
    """Makes the logits processors of one answer; called again when the answer has to begin anew."""

    grammar: CompiledGrammar | None
    thinking_budget: int | None
    closing: tuple[int, ...]
    """The tokens that end reasoning."""
    opening: tuple[int, ...]
    """The tokens that begin it."""
    detokenizer: Callable[[], Detokenizer]
    parser: Callable[[], AnswerStream]
    """Makes what tells reasoning from answer."""

    def __call__(self, generated: Sequence[int]) -> tuple[LogitsProcessor, ...]:
        """Build the processors for an answer that holds these tokens already."""
        processors: list[LogitsProcessor] = []
        if self.thinking_budget is not None:
            reader = ReasoningReader(self.detokenizer(), self.parser())
            processors.append(ThinkingBudget(self.thinking_budget, self.closing, self.opening, reader))
        if self.grammar is not None:
            constraint = self.grammar.constrain(answer_begins(self.detokenizer(), self.parser()))
            if generated:
                # The first call sets where counting begins; the next one then reads what is there already.
                constraint(mx.array([], dtype=mx.int32), mx.zeros((1, 1)))
            processors.append(_honest(constraint))
        return tuple(processors)


class ReasoningReader:
    """Follows an answer, to tell since when it reasons.

    Args:
        detokenizer: Fresh.
        parser: Fresh, knowing what the prompt ends with.
    """

    def __init__(self, detokenizer: Detokenizer, parser: AnswerStream) -> None:
        self._detokenizer = detokenizer
        self._parser = parser
        self._read = 0
        self.thinking_since: int | None = 0 if parser.thinking else None
        """Tokens of the answer before its reasoning; None while there is no reasoning."""
        self.over = False
        """Whether it reasons no longer, or never will; then nobody needs to look, which waits for the device."""

    def look(self, generated: mx.array) -> None:
        """Read what was said since the last look."""
        fresh: Any = generated[self._read :].tolist()
        for token in fresh:
            self._parser.feed(self._detokenizer.feed(token))
            self._read += 1
            if self._parser.thinking and self.thinking_since is None:
                self.thinking_since = self._read
            elif not self._parser.thinking and self.thinking_since is not None:
                self.thinking_since, self.over = None, True
        self.over = self.over or self._parser.past_reasoning


class ThinkingBudget:
    """Makes the model end its reasoning after so many tokens of it.

    A model that is cut short would often begin to reason anew: it cannot, where one token is what begins reasoning.

    Args:
        budget: Tokens of reasoning.
        closing: The tokens that end it.
        opening: The tokens that begin it.
        reader: Fresh.
    """

    def __init__(self, budget: int, closing: Sequence[int], opening: Sequence[int], reader: ReasoningReader) -> None:
        self._budget = budget
        self._closing = closing
        self._never_again = opening[0] if len(opening) == 1 else None
        self._reader = reader
        self._closing_since: int | None = None

    def __call__(self, generated: mx.array, logits: mx.array) -> mx.array:
        """Leave the logits alone until the budget is spent, then allow the closing tokens only, one after the other."""
        count = generated.size
        if self._closing_since is None:
            if self._reader.over or count < self._budget:
                return logits
            self._reader.look(generated)
            since = self._reader.thinking_since
            if self._reader.over or since is None or count - since < self._budget:
                return logits
            self._closing_since = count
        place, tokens = count - self._closing_since, mx.arange(logits.shape[-1])[None]
        if place < len(self._closing):
            return mx.where(tokens == self._closing[place], mx.zeros_like(logits), -math.inf)
        return logits if self._never_again is None else mx.where(tokens == self._never_again, -math.inf, logits)


def _honest(constraint: GrammarConstraint) -> LogitsProcessor:
    """Make an answer fail, rather than end as if all were well, when its grammar was given up."""

    def process(generated: mx.array, logits: mx.array) -> mx.array:
        logits = constraint(generated, logits)
        if constraint.error is not None:
            raise ExecutionError(f"The grammar cannot be followed any further: {constraint.error}")
        return logits

    return process
