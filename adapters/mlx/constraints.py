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
    detokenizer: Callable[[], Detokenizer]
    parser: Callable[[], AnswerStream]
    """Makes what tells reasoning from answer."""

    def __call__(self, generated: Sequence[int]) -> tuple[LogitsProcessor, ...]:
        """Build the processors for an answer that holds these tokens already."""
        processors: list[LogitsProcessor] = []
        if self.thinking_budget is not None:
            processors.append(ThinkingBudget(self.thinking_budget, self.closing, self.detokenizer(), self.parser()))
        if self.grammar is not None:
            constraint = self.grammar.constrain(answer_begins(self.detokenizer(), self.parser()))
            if generated:
                # The first call sets where counting begins; the next one then reads what is there already.
                constraint(mx.array([], dtype=mx.int32), mx.zeros((1, 1)))
            processors.append(_honest(constraint))
        return tuple(processors)


class ThinkingBudget:
    """Makes the model end its reasoning after so many tokens of it.

    Args:
        budget: Tokens of reasoning.
        closing: The tokens that end it.
        detokenizer: Fresh.
        parser: Fresh, knowing what the prompt ends with.
    """

    def __init__(self, budget: int, closing: Sequence[int], detokenizer: Detokenizer, parser: AnswerStream) -> None:
        self._budget = budget
        self._closing = closing
        self._detokenizer = detokenizer
        self._parser = parser
        self._read = 0
        self._thinking_since: int | None = 0 if parser.thinking else None
        self._closing_since: int | None = None
        self._done = False

    def __call__(self, generated: mx.array, logits: mx.array) -> mx.array:
        """Leave the logits alone until the budget is spent, then allow the closing tokens only, one after the other."""
        count = generated.size
        if self._done or count < self._budget:
            return logits
        if self._closing_since is None:
            self._look(generated)
            if self._thinking_since is None or count - self._thinking_since < self._budget:
                return logits
            self._closing_since = count
        place = count - self._closing_since
        if place >= len(self._closing):
            self._done = True
            return logits
        only = mx.arange(logits.shape[-1])[None] == self._closing[place]
        return mx.where(only, mx.zeros_like(logits), -math.inf)

    def _look(self, generated: mx.array) -> None:
        """Read what was said since the last look."""
        fresh: Any = generated[self._read :].tolist()
        for token in fresh:
            self._parser.feed(self._detokenizer.feed(token))
            self._read += 1
            if self._parser.thinking and self._thinking_since is None:
                self._thinking_since = self._read
            elif not self._parser.thinking and self._thinking_since is not None:
                self._thinking_since, self._done = None, True


def _honest(constraint: GrammarConstraint) -> LogitsProcessor:
    """Make an answer fail, rather than end as if all were well, when its grammar was given up."""

    def process(generated: mx.array, logits: mx.array) -> mx.array:
        logits = constraint(generated, logits)
        if constraint.error is not None:
            raise ExecutionError(f"The grammar cannot be followed any further: {constraint.error}")
        return logits

    return process
