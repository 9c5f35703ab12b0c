"""Prefill: computes prompts into KV caches, in chunks or several prompts in one pass; and the kinds of caches.

Prefill leaves out the prompt's last token, which is the first input of the decoding batch.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import attrs
import mlx.core as mx
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlxk.adapters.mlx.engine.prefix_cache import MediaIdentity, PrefixCache, PrefixIdentity, snapshot
from mlxk.adapters.mlx.engine.quantized_cache import QuantizedCache, group_for, kept_state, quantizable_layers
from mlxk.adapters.mlx.engine.sampling import TopLogprobs, exact_logits, score
from mlxk.adapters.mlx.engine.turbo_cache import TurboCache
from mlxk.domain.errors import CapabilityError, MlxkError
from mlxk.domain.generation.settings import EngineOptions

_KEPT_FROM_START = 4
"""First tokens that a rotating cache never evicts (attention sinks): attention depends strongly on them."""


@runtime_checkable
class FollowedNetwork(Protocol):
    """A distributed network: other processes repeat each call on their shards. Calls evaluate their result at once."""

    @abstractmethod
    def read(self, tokens: mx.array, cache: list[Any]) -> None:
        """Compute tokens, shape [B, L], into the cache, without the logits, which are large for a long prompt."""

    @abstractmethod
    def give_up(self) -> None:
        """Refuse all further calls: after a failure here, the other processes may wait for data that never comes."""


@attrs.define(eq=False)
class Prefill:
    """The prefill of one prompt."""

    network: Any
    tokens: list[int]
    """The complete prompt, at least one token."""
    cache: list[Any]
    """Holds the first ``position`` tokens; one object a layer."""
    position: int = 0
    stops: tuple[int, ...] = ()
    """Positions at which to take snapshots, ascending; see ``PrefixCache.stops``."""
    draft: "Prefill | None" = None
    """Prefill of the same prompt by the draft model; None without one."""
    recorder: Any = None
    """A ``HiddenStateRecorder`` around the network; None without a drafter."""
    alternatives: int | None = None
    """Number of alternatives when the prompt's tokens are scored; None when they are not."""
    scores: list[TopLogprobs] = attrs.field(factory=list)
    """Log probabilities of the prompt's tokens from the second on, as far as computed."""

    @property
    def is_drafted(self) -> bool:
        """Whether it prepares speculative decoding."""
        return self.draft is not None or self.recorder is not None

    def end_draft(self) -> None:
        """Continue without preparing speculative decoding."""
        self.draft = self.recorder = None

    @property
    def remaining(self) -> int:
        """Tokens still to compute, including those of the draft model."""
        return len(self.tokens) - 1 - self.position + (self.draft.remaining if self.draft is not None else 0)

    def advance(self, max_tokens: int) -> int:
        """Compute the next chunk of at most ``max_tokens``, wait for it, and return its size."""
        if self.position == len(self.tokens) - 1 and self.draft is not None:
            return self.draft.advance(max_tokens)
        end = min(self.position + max_tokens, len(self.tokens) - 1)
        end = next((stop for stop in self.stops if self.position < stop < end), end)
        chunk = self.tokens[self.position : end]
        if chunk:
            network = self.recorder or self.network
            if self.alternatives is None:
                compute = network.read if isinstance(network, FollowedNetwork) else network
                compute(mx.array([chunk]), cache=self.cache)
                mx.eval([kept_state(layer) for layer in self.cache])
            else:
                logits = exact_logits(network, mx.array([chunk]), self.cache)
                mx.eval([kept_state(layer) for layer in self.cache])
                self.scores += score(logits[0], self.tokens[self.position + 1 : end + 1], self.alternatives)
            self.position = end
        return len(chunk)

    def store(self, prefixes: PrefixCache, identity: PrefixIdentity, *, exact: bool, to_disk: bool = True) -> None:
        """Store a snapshot of the computed prefix in the prefix cache, and pass it to the disk tier if there is one."""
        put = prefixes.put_snapshot if to_disk else prefixes.put
        put(identity, self.tokens[: self.position], snapshot(self.cache), exact=exact)


def advance_together(prefills: Sequence[Prefill]) -> int:
    """Complete several prefills in one pass, wait for it, and return its number of tokens, padding included.

    The caches must be plain (``is_plain``). An exception leaves every prefill unchanged.
    """
    chunks = [each.tokens[each.position : -1] for each in prefills]
    lengths = [len(chunk) for chunk in chunks]
    longest = max(lengths)
    merged = [layers[0].merge(list(layers)) for layers in zip(*(each.cache for each in prefills), strict=True)]
    for layer in merged:
        layer.prepare(lengths=lengths, right_padding=[longest - length for length in lengths])
    padded = [chunk + [0] * (longest - len(chunk)) for chunk in chunks]
    exact_logits(prefills[0].network, mx.array(padded), merged)
    for layer in merged:
        layer.finalize()
    caches = [[layer.extract(index) for layer in merged] for index in range(len(prefills))]
    mx.eval([kept_state(layer) for cache in caches for layer in cache])
    for each, cache, length in zip(prefills, caches, lengths, strict=True):
        each.cache, each.position = cache, each.position + length
    return longest * len(prefills)


def give_up(network: Any, error: Exception) -> None:  # noqa: ANN401
    """Have a distributed network refuse further calls after a failure, unless it raised the error itself."""
    if not isinstance(error, MlxkError) and isinstance(network, FollowedNetwork):
        network.give_up()


class Media(Protocol):
    """The images and audio of a prompt, and how the model computes a prompt with them."""

    identity: MediaIdentity
    kind: str
    """Suffix of ``PrefixIdentity.kind`` for what else a cache depends on; empty for most models."""

    @abstractmethod
    def encode_with(self, others: Sequence["Media"]) -> None:
        """Encode the media of this prompt and of others together, where that pays; ``prefill`` encodes the rest.

        On the owner thread. A fault of one prompt's media is not raised here, but by its own ``prefill``.
        """

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
        engine_options: Kind and size of the cache.
        head_size: Dimensions of one attention head; None when unknown.

    Raises:
        CapabilityError: The model's layers do not support this kind of cache.
    """
    cache: list[Any] = make_prompt_cache(network)
    if engine_options.max_kv_size is None and engine_options.kv_bits is None:
        return cache
    bounded = engine_options.kv_bits is None
    layers = _boundable_layers(cache) if bounded else quantizable_layers(cache)
    if engine_options.is_turboquant:
        layers = _without_last(layers, cache)
    if not bounded and hasattr(getattr(network, "model", None), "kv_reuse_layers"):
        raise CapabilityError("kv_bits: layers of this model read keys and values of another one as they are.")
    if not layers:
        option = "max_kv_size" if bounded else "kv_bits"
        raise CapabilityError(f"{option}: this model keeps no keys and values that could be bounded or quantized.")
    if bounded:
        for index in layers:
            cache[index] = RotatingKVCache(engine_options.max_kv_size, keep=_KEPT_FROM_START)
    elif engine_options.is_turboquant and engine_options.kv_bits is not None:
        for index in layers:
            cache[index] = TurboCache(engine_options.kv_bits)
    else:
        group_for(() if head_size is None else (head_size,), engine_options.kv_group_size)
    return cache


def usable_options(network: Any, engine_options: EngineOptions, head_size: int | None) -> EngineOptions:  # noqa: ANN401
    """Return options that the model's cache supports: unless required, group size and then kind of cache are dropped.

    Args:
        network: The model.
        engine_options: The requested options.
        head_size: Dimensions of one attention head; None when unknown.
    """
    if engine_options.cache_required:
        return engine_options
    any_group_size = attrs.evolve(engine_options, kv_group_size=None)
    for options in (engine_options, any_group_size):
        with contextlib.suppress(CapabilityError):
            make_cache(network, options, head_size)
            return options
    return attrs.evolve(any_group_size, kv_bits=None, kv_scheme=None, max_kv_size=None)


def quantize_cache(cache: list[Any], bits: float, group_size: int | None) -> None:
    """Quantize the layers that are not quantized yet, in place; called between prefill chunks, as in mlx-lm.

    Args:
        cache: One object a layer.
        bits: Bits a number.
        group_size: Numbers that share a scale; None chooses one for each layer.

    Raises:
        CapabilityError: A layer's keys and values cannot be quantized.
    """
    for index in quantizable_layers(cache):
        cache[index] = QuantizedCache.of(cache[index], int(bits), group_size)


def is_plain(cache: list[Any]) -> bool:
    """Whether every layer keeps all keys and values, unquantized."""
    return all(type(layer) is KVCache for layer in cache)


def cache_kind(engine_options: EngineOptions) -> str:
    """Return the part of ``PrefixIdentity.kind`` that names a quantized or bounded cache; empty for the usual one."""
    if engine_options.is_turboquant:
        return f"#turboquant={engine_options.kv_bits:g}"
    if engine_options.kv_bits is not None:
        group_size = engine_options.kv_group_size
        return f"#bits={engine_options.kv_bits:g}" + (f"#group={group_size}" if group_size is not None else "")
    return f"#size={engine_options.max_kv_size}" if engine_options.max_kv_size is not None else ""


def _without_last(layers: list[int], cache: list[Any]) -> list[int]:
    """Remove the last of more than two layers, as mlx-vlm does: quantization harms it most."""
    count = sum(hasattr(layer, "empty") for layer in cache)  # a vision model's entry of positions is no layer
    return [index for index in layers if count <= 2 or index != count - 1]


def _boundable_layers(cache: list[Any]) -> list[int]:
    """Return the indices of mlx-lm's plain layers, which may evict tokens; mlx-vlm's may hold images."""
    return [index for index in quantizable_layers(cache) if isinstance(cache[index], KVCache)]
