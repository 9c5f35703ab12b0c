"""What is trained: the network, and probes that teach it to see long before it has learnt to talk about it.

A vision tower that is taught through the answers of a language model alone hears of its mistakes from far away. Probes
on what it sees name the figure and paint its silhouette; they make learning shapes take minutes. Another one asks the
language model behind every picture which one it was and what it showed, without which it takes hours until it can tell
several apart. The probes are not saved.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from batches import CELLS, MERGED, Batch, Pictures
from conversations import MOST_IMAGES
from drawings import COLOURS, SHAPES

_SILHOUETTE = 16.0
"""Weight of the silhouettes: they are many small questions, and teach most."""

_IN_PASSING = 0.2
"""Weight of these once the model talks."""

_REPORT = 0.5
"""Weight of what the language model says behind each picture."""


class Probes(nn.Module):
    """Guesses from what a tower says, and from what the language model makes of it.

    Args:
        width: Numbers in what either says of one token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.names = nn.Linear(width, len(COLOURS) + len(SHAPES))
        self.silhouette = nn.Linear(width, CELLS)
        self.report = nn.Linear(width, len(COLOURS) + len(SHAPES) + MOST_IMAGES)

    def loss(self, seen: mx.array, pictures: Pictures) -> mx.array:
        """Return how wrong the guesses about names and silhouettes are.

        Args:
            seen: What the tower said of each token, shape [P / 4, width].
            pictures: What it was shown.
        """
        ends = np.cumsum(np.prod(pictures.grids, axis=1) // MERGED)
        whole = mx.stack([part.mean(axis=0) for part in mx.split(seen, ends[:-1].tolist(), axis=0)])
        covered = self.silhouette(seen)
        loss: mx.array = _SILHOUETTE * nn.losses.binary_cross_entropy(covered, mx.array(pictures.silhouettes))
        return loss + _named(self.names(whole), pictures)

    def reported(self, hidden: mx.array, batch: Batch) -> mx.array:
        """Return how wrong the language model is behind each picture about what that showed.

        Args:
            hidden: What it makes of each token, shape [B, L, width].
            batch: What it read.
        """
        guesses = self.report(hidden[mx.array(batch.behind[:, 0]), mx.array(batch.behind[:, 1])])
        orders = guesses[:, len(COLOURS) + len(SHAPES) :]
        loss: mx.array = nn.losses.cross_entropy(orders, mx.array(batch.order), reduction="mean")
        return loss + _named(guesses, batch.pictures)


class Sight(nn.Module):
    """A vision tower that learns to see.

    Args:
        tower: The model's.
        probes: What teaches it.
    """

    def __init__(self, tower: Any, probes: Probes) -> None:  # noqa: ANN401 - mlx-vlm has no types to name
        super().__init__()
        self.tower = tower
        self.probes = probes

    def loss(self, pictures: Pictures) -> mx.array:
        """Return how wrong the guesses are."""
        return self.probes.loss(_seen(self.tower, pictures), pictures)


class Lesson(nn.Module):
    """The whole model, answering questions, with its sight still probed in passing.

    Args:
        model: The network.
        probes: Those its tower was taught with.
    """

    def __init__(self, model: Any, probes: Probes) -> None:  # noqa: ANN401
        super().__init__()
        self.model = model
        self.probes = probes

    def loss(self, batch: Batch) -> mx.array:
        """Return how wrong the answers are, and a little of how wrong the guesses are."""
        language, config = self.model.language_model, self.model.config
        ids, weights = mx.array(batch.ids), mx.array(batch.weights)
        grids = mx.array(batch.pictures.grids)
        places, _ = language.get_rope_index(ids, grids, None, mx.array(batch.present))
        seen = _seen(self.model.vision_tower, batch.pictures)
        embedded = self.model.merge_input_ids_with_image_features(
            config.image_token_id, config.video_token_id, seen, language.model.embed_tokens(ids), ids
        )
        hidden = language.model(ids, inputs_embeds=embedded, position_ids=places)
        logits = language.model.embed_tokens.as_linear(hidden)
        losses = nn.losses.cross_entropy(logits[:, :-1], ids[:, 1:]) * weights[:, 1:]
        answers: mx.array = losses.sum() / weights[:, 1:].sum()
        reported = self.probes.reported(hidden, batch)
        return answers + _REPORT * reported + _IN_PASSING * self.probes.loss(seen, batch.pictures)


def _named(guesses: mx.array, pictures: Pictures) -> mx.array:
    """Return how wrong guesses about colour and shape are."""
    colours, shapes = guesses[:, : len(COLOURS)], guesses[:, len(COLOURS) : len(COLOURS) + len(SHAPES)]
    figures = mx.array(pictures.figures)
    loss: mx.array = nn.losses.cross_entropy(colours, figures[:, 0], reduction="mean")
    return loss + nn.losses.cross_entropy(shapes, figures[:, 1], reduction="mean")


def _seen(tower: Any, pictures: Pictures) -> mx.array:  # noqa: ANN401
    """Return what a tower says of each token, shape [P / 4, width]."""
    seen: mx.array = tower(mx.array(pictures.pixels), mx.array(pictures.grids))
    return seen
