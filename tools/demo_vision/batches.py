"""Conversations as arrays: token ids, weights of the tokens to learn, and the patches of the pictures."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import conversations
import drawings
import numpy as np
import tokenizer as words
from conversations import Conversation
from tokenizers import Tokenizer

_HARD = 4.0
"""Weight of the words that name a figure; articles and full stops are learnt soon enough."""


@dataclass(frozen=True)
class Batch:
    """Conversations side by side: B of them, L tokens in the longest, P patches and N pictures in all."""

    ids: np.ndarray
    """Shape [B, L]."""
    present: np.ndarray
    """Shape [B, L]: 1 for tokens, 0 for what fills the rows up."""
    weights: np.ndarray
    """Shape [B, L]: how much each token counts; 0 for what the model is told."""
    pixels: np.ndarray
    """Shape [P, C]."""
    grids: np.ndarray
    """Shape [N, 3]: time, rows and columns of each picture, in patches."""
    figures: np.ndarray
    """Shape [N, 2]: colour and shape of each picture, by their places in the lists."""


class Batches:
    """Draws batches.

    Args:
        processor: The model's processor: template, tokenizer and picture patches.
        tokenizer: The same tokenizer, bare.
        seed: Decides everything that is drawn.
    """

    def __init__(self, processor: Any, tokenizer: Tokenizer, seed: int) -> None:  # noqa: ANN401
        self._processor = processor
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        figures = (*drawings.COLOURS, *drawings.SHAPES)
        self._hard = {tokenizer.token_to_id(f"Ġ{name}") for name in figures}

    def draw(self, progress: float) -> Batch:
        """Return the next batch: first the plain questions that teach seeing, then everything."""
        kind = self._rng.random()
        plain_only = progress < 0.45
        if plain_only or kind < 0.4:
            drawn = [conversations.plain(self._rng) for _ in range(24)]
        elif kind < 0.72:
            drawn = [conversations.elaborate(self._rng) for _ in range(18)]
        else:
            drawn = [conversations.several(self._rng) for _ in range(8)]
        if not plain_only:
            drawn += [conversations.text_only(self._rng) for _ in range(2)]
        return self._packed(drawn)

    def _packed(self, drawn: list[Conversation]) -> Batch:
        looked_at = [self._processor.image_processor(images=[image]) for each in drawn for image in each.images]
        grids = np.concatenate([np.asarray(each["image_grid_thw"]) for each in looked_at])
        counts = iter([int(np.prod(grid)) // 4 for grid in grids])
        rows = [self._row(each, lambda: next(counts)) for each in drawn]
        longest = max(len(ids) for ids, _ in rows)
        ids = np.zeros((len(rows), longest), np.int32)
        weights = np.zeros((len(rows), longest), np.float32)
        present = np.zeros((len(rows), longest), np.int32)
        for index, (row, row_weights) in enumerate(rows):
            ids[index, : len(row)] = row
            weights[index, : len(row)] = row_weights
            present[index, : len(row)] = 1
        pixels = np.concatenate([np.asarray(each["pixel_values"]) for each in looked_at])
        return Batch(ids, present, weights, pixels, grids, _labels(drawn))

    def _row(self, conversation: Conversation, next_count: Callable[[], int]) -> tuple[list[int], list[float]]:
        """Return the tokens of a conversation and their weights; each picture takes as many tokens as it has parts."""
        text = self._processor.tokenizer.apply_chat_template(conversation.messages, tokenize=False)
        pieces = text.split(words.IMAGE)
        filled = pieces[0] + "".join(words.IMAGE * next_count() + piece for piece in pieces[1:])
        ids: list[int] = []
        weights: list[float] = []
        said = f"{words.START_OF_TURN}assistant\n"
        for index, turn in enumerate(filled.split(said)):
            heard = turn
            if index:
                answer, end, heard = turn.partition(words.END_OF_TURN)
                learnt = self._tokenizer.encode(answer + end, add_special_tokens=False).ids
                ids += learnt
                weights += [_HARD if token in self._hard else 1.0 for token in learnt]
            told = heard + (said if index < filled.count(said) else "")
            if told:
                known = self._tokenizer.encode(told, add_special_tokens=False).ids
                ids += known
                weights += [0.0] * len(known)
        return ids, weights


def _labels(drawn: list[Conversation]) -> np.ndarray:
    colours = list(drawings.COLOURS)
    figures = [figure for each in drawn for figure in each.figures]
    return np.array([(colours.index(each.colour), drawings.SHAPES.index(each.shape)) for each in figures], np.int32)
