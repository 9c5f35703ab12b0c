"""Pooling: how the vectors of a text's tokens become the vector of the text, in the modes of sentence-transformers."""

from collections.abc import Mapping

import mlx.core as mx

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""In the order in which several are put beside one another."""

_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The older spelling of a config: a switch for each mode."""


def stated_modes(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the modes that a pooling config states, known or not; the mean where it states none."""
    stated = config.get("pooling_mode")
    if isinstance(stated, str):
        return (stated,)
    if isinstance(stated, list | tuple) and stated:
        return tuple(map(str, stated))
    switched = (name for key, name in _SWITCHES.items() if config.get(key))
    # A switch that is not known is a mode that is not known, and must not become the mean.
    unknown = (key for key, value in config.items() if key.startswith("pooling_mode_") and value is True)
    return (*switched, *(key for key in unknown if key not in _SWITCHES)) or ("mean",)


def pool(hidden: mx.array, mask: mx.array, modes: tuple[str, ...]) -> mx.array:
    """Return one vector of each text, the modes' side by side.

    Args:
        hidden: Vectors of tokens; shape (texts, length, dimensions).
        mask: One where there is a token, padding on the right; shape (texts, length).
        modes: Some of ``MODES``.
    """
    hidden, mask = hidden.astype(mx.float32), mask.astype(mx.float32)
    return mx.concatenate([_pooled(hidden, mask, mode) for mode in MODES if mode in modes], axis=-1)


def _pooled(hidden: mx.array, mask: mx.array, mode: str) -> mx.array:
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        last = mask.sum(axis=1).astype(mx.int32) - 1
        return mx.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    if mode == "max":
        return mx.where(mask[..., None] > 0, hidden, -mx.inf).max(axis=1)
    weights = mask * mx.arange(1, mask.shape[1] + 1) if mode == "weightedmean" else mask
    total = (hidden * weights[..., None]).sum(axis=1)
    counted = weights.sum(axis=1, keepdims=True)
    return total / (mx.sqrt(counted) if mode == "mean_sqrt_len_tokens" else counted)
