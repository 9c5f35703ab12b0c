"""Where the reasoning of an answer begins and ends, in tokens."""

import mlx.core as mx
import pytest

from mlxk.adapters.mlx.engine.build_sequence import ReasoningReader
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import ReasoningFormat, ReasoningStyle

pytestmark = pytest.mark.mlx
PIECES = ("\n", "<think>", "hm", "</think>", "So")
THINK = ReasoningFormat(ReasoningStyle.TAGS, "<think>", "</think>")


class Pieces:
    """Spells the tokens of ``PIECES``."""

    def feed(self, token: int) -> str:
        return PIECES[token]

    def flush(self) -> str:
        return ""


def found(tail: str, tokens: list[int]) -> list[tuple[int | None, bool]]:
    """Return after each token where the reasoning began, and whether it is over."""
    reader = ReasoningReader(Pieces(), OutputParser((), THINK, prompt_tail=tail))
    states = []
    for count in range(len(tokens) + 1):
        reader.read(mx.array(tokens[:count], mx.int32))
        states.append((reader.thinking_since, reader.over))
    return states


def test_reasoning_that_the_answer_begins_is_counted_from_its_tag() -> None:
    assert found("", [0, 1, 2, 2, 3, 4]) == [
        (None, False),
        (None, False),
        (2, False),
        (2, False),
        (2, False),
        (None, True),
        (None, True),
    ]


def test_reasoning_that_the_prompt_has_begun_is_counted_from_the_first_token() -> None:
    assert found("assistant\n<think>\n", [2, 2, 3]) == [(0, False), (0, False), (0, False), (None, True)]
    assert found("", [4, 1]) == [(None, False), (None, True), (None, True)]
