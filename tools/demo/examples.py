"""Turns conversations into token batches with a weight for every token.

A batch holds about the same number of tokens whatever the length of its conversations, so every step
costs the same. Only answers carry full weight; prompts get a little, which speeds up the first steps.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from conversations import Conversation, ConversationStream
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizer import END_OF_TURN, START_OF_TURN

_PROMPT_WEIGHT = 0.02
_WINDOW = 640
_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a conversation and how much each counts in the loss."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded ids and weights of several examples."""

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]


class Encoder:
    """Encodes conversations with the shipped template and tokenizer."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        """Take the tokenizer as mlx-lm loads it."""
        self._tokenizer = tokenizer
        self._end = self._ids(END_OF_TURN)[0]
        self._header = self._ids(f"{START_OF_TURN}assistant\n")

    def encode(self, conversation: Conversation) -> Example:
        """Return the ids and weights of a conversation."""
        prompt = self.prompt(conversation)
        completion = conversation.turns[-1].completion(prefilled=conversation.thinking)
        answer = [*self._ids(completion), self._end]
        weights = [_PROMPT_WEIGHT] * len(prompt)
        for turn, (start, stop) in enumerate(self._answers(prompt)):
            if turn not in conversation.untrained:
                weights[start:stop] = [1.0] * (stop - start)
        return Example(prompt + answer, weights + [1.0] * len(answer))

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the ids of the prompt for the last turn."""
        text = self._tokenizer.apply_chat_template(
            conversation.prompt(),
            tools=conversation.tools,
            add_generation_prompt=True,
            enable_thinking=conversation.thinking,
            tokenize=False,
        )
        return self._ids(text)

    def _answers(self, prompt: list[int]) -> list[tuple[int, int]]:
        """Return where the earlier answers lie, each with its end mark."""
        size, found, position = len(self._header), [], 0
        while position < len(prompt):
            if prompt[position : position + size] == self._header and self._end in prompt[position:]:
                stop = prompt.index(self._end, position) + 1
                found.append((position + size, stop))
                position = stop
            else:
                position += 1
        return found

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def batches(encoder: Encoder, seed: int, tokens: int) -> Iterator[Batch]:
    """Yield batches of about ``tokens`` tokens for ever, in an order that only the seed decides."""
    stream = ConversationStream(seed)
    rng = random.Random(seed + 1)
    while True:
        window = sorted((encoder.encode(stream.draw()) for _ in range(_WINDOW)), key=lambda one: len(one.ids))
        groups: list[list[Example]] = [[]]
        for example in window:
            if groups[-1] and _rounded(len(example.ids)) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        yield from map(_padded, groups)


def _rounded(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE


def _padded(examples: list[Example]) -> Batch:
    length = _rounded(max(len(example.ids) for example in examples))
    ids = np.zeros((len(examples), length), np.int32)
    weights = np.zeros((len(examples), length), np.float32)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        weights[row, : len(example.ids)] = example.weights
    return Batch(ids, weights)
