"""Prefill: computing a prompt into a KV cache in chunks, and the kinds of KV cache.

Everything but the prompt's last token is computed here; that one is the first input of the decoding batch.
"""

from abc import abstractmethod
from typing import Any, Protocol

import attrs
import mlx.core as mx
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlxk.adapters.mlx.engine.prefix_cache import PrefixCache, snapshot
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.engine_options import EngineOptions

_KEPT_FROM_START = 4
"""Tokens a rotating cache never evicts: attention depends strongly on the first ones."""

_QUANTIZATION_GROUPS = (64, 32)
"""Sizes of the groups that share a scale when keys and values are quantized; the first that divides a head is used."""


@attrs.define(eq=False)
class Prefill:
    """The computation of one prompt."""

    network: Any
    tokens: list[int]
    """The whole prompt, at least one token."""
    cache: list[Any]
    """Holds the first ``position`` tokens; one object a layer."""
    position: int = 0
    divergence: int = 0
    """Where to take a snapshot, see ``prefix_cache``; 0: nowhere."""
    draft: "Prefill | None" = None
    """The same prompt for the draft model."""

    @property
    def remaining(self) -> int:
        """Tokens still to compute, the draft model's included."""
        return len(self.tokens) - 1 - self.position + (self.draft.remaining if self.draft is not None else 0)

    def advance(self, max_tokens: int) -> int:
        """Compute the next chunk of at most so many tokens, wait for it, and return its size."""
        if self.position == len(self.tokens) - 1 and self.draft is not None:
            return self.draft.advance(max_tokens)
        end = min(self.position + max_tokens, len(self.tokens) - 1)
        if self.position < self.divergence < end:
            end = self.divergence
        chunk = self.tokens[self.position : end]
        if chunk:
            self.network(mx.array([chunk]), cache=self.cache)
            mx.eval([layer.state for layer in self.cache])
            self.position = end
        return len(chunk)

    def store(self, prefixes: PrefixCache, identity: str) -> None:
        """Put a copy of the computed part into the prefix cache."""
        prefixes.put(identity, self.tokens[: self.position], snapshot(self.cache))


class Media(Protocol):
    """The images and audio of a prompt, and how the model computes a prompt with them."""

    identity: str
    """Distinguishes caches of prompts with the same tokens and other media; empty without media."""

    @abstractmethod
    def prefill(self, tokens: list[int], cache: list[Any], position: int) -> Prefill:
        """Begin the prefill of a prompt; on the owner thread.

        Args:
            tokens: The prompt and the tokens generated so far.
            cache: Holds the first ``position`` tokens.
            position: Tokens in the cache.
        """


def make_cache(network: Any, engine_options: EngineOptions, head_size: int | None) -> list[Any]:  # noqa: ANN401
    """Build a KV cache, one object a layer.

    Args:
        network: The model.
        engine_options: Its kind and size.
        head_size: Dimensions of one attention head; None when unknown.

    Raises:
        CapabilityError: The model's layers do not support this kind of cache.
    """
    cache: list[Any] = make_prompt_cache(network)
    if engine_options.max_kv_size is None and engine_options.kv_bits is None:
        return cache
    if not _standard_layers(cache):
        option = "max_kv_size" if engine_options.kv_bits is None else "kv_bits"
        raise CapabilityError(f"{option}: this model keeps no keys and values that could be bounded or quantized.")
    if engine_options.kv_bits is not None:
        _quantization_group(head_size)
    else:
        for index in _standard_layers(cache):
            cache[index] = RotatingKVCache(engine_options.max_kv_size, keep=_KEPT_FROM_START)
    return cache


def quantize_cache(cache: list[Any], bits: int, head_size: int | None) -> None:
    """Quantize the layers that are not quantized yet, in place; called between prefill chunks, as in mlx-lm."""
    for index in _standard_layers(cache):
        cache[index] = cache[index].to_quantized(group_size=_quantization_group(head_size), bits=bits)


def cache_kind(engine_options: EngineOptions) -> str:
    """Return a suffix for the identity of a cache of another kind than the usual one, for which it is empty."""
    if engine_options.kv_bits is not None:
        return f"#bits={engine_options.kv_bits}"
    return f"#size={engine_options.max_kv_size}" if engine_options.max_kv_size is not None else ""


def _standard_layers(cache: list[Any]) -> list[int]:
    """Return the indices of the layers that keep all keys and values unquantized."""
    return [index for index, layer in enumerate(cache) if type(layer) is KVCache]


def _quantization_group(head_size: int | None) -> int:
    for group in _QUANTIZATION_GROUPS:
        if head_size is None or head_size % group == 0:
            return group
    raise CapabilityError(f"kv_bits: the attention heads of this model, {head_size} numbers each, cannot be quantized.")
