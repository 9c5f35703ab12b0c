"""A decoder in numpy, for one sequence: the reference for models that read images into the embeddings of a prompt."""

import math
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

Array = Any


@attrs.frozen
class Shape:
    """What the configuration of a decoder of two layers says."""

    prefix: str
    """Of the names of its weights."""
    heads: int = 4
    groups: int = 2
    base: float = 10000.0
    sections: tuple[int, ...] = ()
    """Pairs of each head that turn by time, row and column; none where all turn by the place."""
    interleaved: bool = False
    """Whether rows and columns have every third pair, instead of pairs beside one another."""


def decoded(
    embeddings: Array, weights: Mapping[str, Array], shape: Shape, positions: Array, deep: Array = None
) -> Array:
    """Return the hidden states of a prompt.

    Args:
        embeddings: Of its tokens, those of the image included; shape (length, dimensions).
        weights: By name.
        shape: Of the decoder.
        positions: Time, row and column of each token; shape (3, length).
        deep: What is added to the first layer's output; of the shape of ``embeddings``.
    """
    length = len(embeddings)
    later = np.triu(np.full((length, length), -np.inf), 1)
    values = embeddings
    for layer in range(2):
        name = f"{shape.prefix}layers.{layer}"
        read = scaled(values, weights, f"{name}.input_layernorm")
        query, key, value = (
            linear(read, weights, f"{name}.self_attn.{part}_proj").reshape(length, count, -1).transpose(1, 0, 2)
            for part, count in (("q", shape.heads), ("k", shape.groups), ("v", shape.groups))
        )
        if f"{name}.self_attn.q_norm.weight" in weights:
            query = scaled(query, weights, f"{name}.self_attn.q_norm")
            key = scaled(key, weights, f"{name}.self_attn.k_norm")
        query, key = (turned(each, shape, positions) for each in (query, key))
        key, value = (np.repeat(each, shape.heads // shape.groups, 0) for each in (key, value))
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1]) + later
        grown = np.exp(scores - scores.max(-1, keepdims=True))
        found = (grown / grown.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(length, -1)
        values = values + linear(found, weights, f"{name}.self_attn.o_proj")
        read = scaled(values, weights, f"{name}.post_attention_layernorm")
        gate = linear(read, weights, f"{name}.mlp.gate_proj")
        inner = gate / (1 + np.exp(-gate)) * linear(read, weights, f"{name}.mlp.up_proj")
        values = values + linear(inner, weights, f"{name}.mlp.down_proj")
        if deep is not None and layer == 0:
            values = values + deep
    return scaled(values, weights, f"{shape.prefix}norm")


def linear(values: Array, weights: Mapping[str, Array], name: str) -> Array:
    return values @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def scaled(values: Array, weights: Mapping[str, Array], name: str) -> Array:
    return values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-6) * weights[f"{name}.weight"]


def turned(values: Array, shape: Shape, positions: Array) -> Array:
    """Return heads turned by their positions, each half against the other; shape (heads, length, dimensions)."""
    half = values.shape[-1] // 2
    which = np.zeros(half, int)
    if shape.sections and shape.interleaved:
        for axis in (1, 2):
            which[axis : shape.sections[axis] * 3 : 3] = axis
    elif shape.sections:
        which = np.repeat(np.arange(len(shape.sections)), shape.sections)
    angles = positions[which].T * shape.base ** (-np.arange(half) / half)
    first, second = values[..., :half], values[..., half:]
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


def positions_of(tokens: list[int], image: int, grid: tuple[int, int] | None) -> Array:
    """Return time, row and column of each token of a prompt with at most one image of so many rows and columns.

    Args:
        tokens: Of the prompt.
        image: The token of which there is one for each part of the image.
        grid: Rows and columns of the image; None without one, or where it is read as text is.
    """
    found = np.tile(np.arange(len(tokens)), (3, 1))
    if grid is None or image not in tokens:
        return found
    rows, columns = grid
    first = tokens.index(image)
    after = first + rows * columns
    found[0, first:after] = first
    found[1, first:after] = first + np.repeat(np.arange(rows), columns)
    found[2, first:after] = first + np.tile(np.arange(columns), rows)
    found[:, after:] = first + max(rows, columns) + np.arange(len(tokens) - after)
    return found
