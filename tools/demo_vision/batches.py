"""Drawings and conversations as arrays: patches of pictures, token ids, and weights of the tokens to learn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import conversations
import drawings
import numpy as np
import tokenizer as words
from conversations import Conversation, Figure
from drawings import Drawing
from tokenizers import Tokenizer

PATCH = 14
MERGED = 4
"""Patches that become one token."""

CELLS = MERGED * 4
"""Parts of a token's share of the picture in which the figure is looked for: each patch is divided in two by two."""

_HARD = 4.0
"""Weight of the words that name a figure; articles and full stops are learnt soon enough."""

_PLAIN_SHARE = 0.2
"""Share of the training that asks plain questions only."""

_CLIPS_SHARE = 0.5
"""Share of clips where a trained model learns about them."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side: N of them, P patches and P / 4 tokens in all."""

    pixels: Array
    """Shape [P, C]."""
    grids: Array
    """Shape [N, 3]: time, rows and columns of each picture, in patches."""
    figures: Array
    """Shape [N, 2]: colour and shape of each picture, by their places in the lists."""
    silhouettes: Array
    """Shape [P / 4, CELLS]: how much of each cell the figure covers, 0 to 1."""


@dataclass(frozen=True)
class Batch:
    """Conversations side by side: B of them, L tokens in the longest."""

    ids: Array
    """Shape [B, L]."""
    present: Array
    """Shape [B, L]: 1 for tokens, 0 for what fills the rows up."""
    weights: Array
    """Shape [B, L]: how much each token counts; 0 for what the model is told."""
    pictures: Pictures
    behind: Array
    """Shape [N, 2]: row and column of the token behind each picture."""
    order: Array
    """Shape [N]: which picture of its conversation each one is, from 0."""


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

    def pictures(self, count: int) -> Pictures:
        """Return drawings without a word."""
        figures = [conversations.figure(self._rng) for _ in range(count)]
        return self._pictures([drawings.draw(self._rng, each.colour, each.shape) for each in figures], figures)

    def conversations(self, progress: float) -> Batch:
        """Return conversations: first plain questions, then everything.

        Args:
            progress: Which share of the training is over.
        """
        kind = self._rng.random()
        plain_only = progress < _PLAIN_SHARE
        if plain_only or kind < 0.25:
            drawn = [conversations.plain(self._rng) for _ in range(24)]
        elif kind < 0.5:
            drawn = [conversations.elaborate(self._rng) for _ in range(18)]
        else:
            drawn = [conversations.several(self._rng) for _ in range(8)]
        if not plain_only:
            drawn += [conversations.text_only(self._rng) for _ in range(2)]
        return self._packed(drawn)

    def with_clips(self, _progress: float) -> Batch:
        """Return clips, or conversations as at the end of the training."""
        if self._rng.random() < _CLIPS_SHARE:
            return self._packed([conversations.clip(self._rng) for _ in range(8)])
        return self.conversations(1.0)

    def _packed(self, drawn: list[Conversation]) -> Batch:
        pictures = self._pictures(
            [each for conversation in drawn for each in conversation.drawings],
            [each for conversation in drawn for each in conversation.figures],
        )
        counts = iter([int(np.prod(grid)) // MERGED for grid in pictures.grids])
        rows = [self._row(each, lambda: next(counts)) for each in drawn]
        longest = max(len(ids) for ids, _ in rows)
        ids = np.zeros((len(rows), longest), np.int32)
        weights = np.zeros((len(rows), longest), np.float32)
        present = np.zeros((len(rows), longest), np.int32)
        for index, (row, row_weights) in enumerate(rows):
            ids[index, : len(row)] = row
            weights[index, : len(row)] = row_weights
            present[index, : len(row)] = 1
        behind = np.argwhere(ids == self._tokenizer.token_to_id(words.VISION_END))
        order = [place for conversation in drawn for place in range(len(conversation.drawings))]
        return Batch(ids, present, weights, pictures, behind.astype(np.int32), np.array(order, np.int32))

    def _pictures(self, drawn: Sequence[Drawing], figures: Sequence[Figure]) -> Pictures:
        seen = [self._processor.image_processor(images=[each.image]) for each in drawn]
        covered = [self._processor.image_processor(images=[each.silhouette])["pixel_values"] for each in drawn]
        colours = list(drawings.COLOURS)
        labels = [(colours.index(each.colour), drawings.SHAPES.index(each.shape)) for each in figures]
        return Pictures(
            np.concatenate([np.asarray(each["pixel_values"]) for each in seen]),
            np.concatenate([np.asarray(each["image_grid_thw"]) for each in seen]),
            np.array(labels, np.int32),
            _cells(np.concatenate([np.asarray(each) for each in covered])),
        )

    def _row(self, conversation: Conversation, next_count: Callable[[], int]) -> tuple[list[int], list[float]]:
        """Return the tokens of a conversation and their weights; each picture takes as many tokens as it has parts."""
        text = self._processor.tokenizer.apply_chat_template(conversation.messages, tokenize=False)
        pieces = text.split(words.IMAGE)
        filled = pieces[0] + "".join(words.IMAGE * next_count() + piece for piece in pieces[1:])
        said = f"{words.START_OF_TURN}assistant\n"
        told, *turns = filled.split(said)
        ids: list[int] = []
        weights: list[float] = []
        for turn in turns:
            answer, end, rest = turn.partition(words.END_OF_TURN)
            known, learnt = self._ids(told + said), self._ids(answer + end)
            ids += known + learnt
            weights += [0.0] * len(known) + [_HARD if token in self._hard else 1.0 for token in learnt]
            told = rest
        return ids, weights

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _cells(patches: Array) -> Array:
    """Return how much of each cell is white, from the patches of silhouettes; shape [P / 4, CELLS]."""
    half = PATCH // 2
    one_channel = patches.reshape(-1, 3, 2, PATCH, PATCH)[:, 0, 0] / 2 + 0.5
    cells = one_channel.reshape(-1, 2, half, 2, half).mean(axis=(2, 4))
    return np.clip(cells.reshape(-1, CELLS), 0, 1).astype(np.float32)
