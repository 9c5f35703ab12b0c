"""A rank's share of a model: how it is cut, loading it, and the steps that every rank does in the same order.

Tensor parallelism cuts the matrices of every layer, pipelining gives each rank some of the layers. Arrays are loaded
lazily: of the files only what the share needs is read, whole arrays that are then cut one after the other.

All that a share sends to others happens while it is evaluated. So every step is evaluated where it is begun, and the
shares exchange the same things in the same order, whatever is computed from the results later.
"""

import copy
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.nn.layers.distributed import shard_inplace, shard_linear
from mlx_lm import utils
from mlx_lm.models.cache import make_prompt_cache

from mlxk.adapters.mlx.compatibility import Library
from mlxk.adapters.mlx.loading.model_files import loading_directory
from mlxk.adapters.mlx.loading.text_model import mend_attention
from mlxk.adapters.mlx.loading.widening import parameter_bytes, widen
from mlxk.domain.errors import CapabilityError, IncompatibleModelError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle


class Cut(enum.Enum):
    """How a model is divided among ranks."""

    TENSOR = "tensor"
    PIPELINE = "pipeline"


class _Counted:
    """A group as far as cutting asks it, before there is one."""

    def __init__(self, size: int) -> None:
        self._size = size

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return 0


def require_library(handle: ModelHandle, backends: Sequence[str]) -> None:
    """Refuse a model of a library whose models are not divided.

    Args:
        handle: The model.
        backends: Names of the libraries that can compute it; empty when that is not known.

    Raises:
        CapabilityError: It is such a model.
    """
    if backends and Library.MLX_LM.value not in backends:
        raise CapabilityError(
            f"'{handle.name}' is computed by {backends[0]}, whose models are not spread over several processes.",
            hint="Run it in one process.",
        )


def cut_of(handle: ModelHandle, config: Mapping[str, Any], ranks: int) -> Cut:
    """Return how a model is divided among so many ranks; reads no weights.

    Raises:
        IncompatibleModelError: Its architecture cannot be divided, or not among so many.
    """
    reasons = []
    for cut in Cut:
        network = _lazy(handle)[0]
        divide = _divider(network, cut)
        if divide is None:
            continue
        reason = _uneven_heads(config, ranks, _is_cut_here(network)) if cut is Cut.TENSOR else None
        try:
            if reason is None:
                divide(_Counted(ranks))
                return cut
        except (ValueError, TypeError) as error:
            reason = str(error).splitlines()[0][:200]
        reasons.append(reason)
    kind = config.get("model_type", "its architecture")
    if not reasons:
        raise IncompatibleModelError(
            f"'{handle.name}' cannot be spread over several processes: there is no way to divide '{kind}'.",
            hint="Run it in one process. Architectures such as llama, qwen2, qwen3, qwen3_moe, gemma3, mixtral, gpt_oss"
            " and deepseek_v3 can be divided.",
        )
    raise IncompatibleModelError(
        f"'{handle.name}' cannot be divided among {ranks} processes: {'; '.join(reasons)}.",
        hint="Take another number of processes, most often 2 or 4.",
    )


def _uneven_heads(config: Mapping[str, Any], ranks: int, keeps_one: bool) -> str | None:
    """Return what prevents that every rank gets as many heads; a single pair of keys and values may stay whole."""
    nested = config.get("text_config")
    values = {**config, **nested} if isinstance(nested, dict) else config
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = values.get(name)
        if name == "num_key_value_heads" and heads == 1 and keeps_one:
            continue
        if isinstance(heads, int) and heads % ranks:
            return f"its {name} ({heads}) are no multiple of {ranks}"
    return None


_CUT_HERE = ("gemma", "gemma2", "gemma3", "gemma3_text", "mixtral")
"""Architectures that mlx-lm does not cut, and that are built of the same parts as those that it does."""


def _is_cut_here(network: Any) -> bool:  # noqa: ANN401
    return not hasattr(network, "shard") and getattr(network, "model_type", None) in _CUT_HERE


def _divider(network: Any, cut: Cut) -> Callable[[Any], None] | None:  # noqa: ANN401
    """Return what divides a network among the ranks of a group; None when nothing does so in this way."""
    if cut is Cut.PIPELINE:
        return getattr(getattr(network, "model", None), "pipeline", None)
    if _is_cut_here(network):
        return lambda group: _cut_layers(network.layers, group)
    return getattr(network, "shard", None)


_PARALLEL, _SUMMED = ("gate_proj", "up_proj"), "down_proj"


def _cut_layers(layers: Sequence[Any], group: Any) -> None:  # noqa: ANN401
    """Cut the matrices of every layer: heads and hidden numbers are divided, and the results summed over all ranks."""
    for layer in layers:
        _cut_attention(layer.self_attn, group)
        if hasattr(layer, "block_sparse_moe"):
            experts = layer.block_sparse_moe.switch_mlp
            for name in _PARALLEL:
                shard_inplace(experts[name], "all-to-sharded", group=group)
            shard_inplace(experts[_SUMMED], "sharded-to-all", group=group)
            layer.block_sparse_moe = _Summed(layer.block_sparse_moe, group)
        else:
            for name in _PARALLEL:
                layer.mlp[name] = shard_linear(layer.mlp[name], "all-to-sharded", group=group)
            layer.mlp[_SUMMED] = shard_linear(layer.mlp[_SUMMED], "sharded-to-all", group=group)


def _cut_attention(attention: Any, group: Any) -> None:  # noqa: ANN401
    ranks = group.size()
    heads, pairs = ("n_heads", "n_kv_heads") if hasattr(attention, "n_heads") else ("num_heads", "num_key_value_heads")
    keeps_pair = getattr(attention, pairs) == 1
    for name in ("q_proj",) if keeps_pair else ("q_proj", "k_proj", "v_proj"):
        attention[name] = shard_linear(attention[name], "all-to-sharded", group=group)
    attention.o_proj = shard_linear(attention.o_proj, "sharded-to-all", group=group)
    setattr(attention, heads, getattr(attention, heads) // ranks)
    if keeps_pair:
        attention.repeats = getattr(attention, heads)
    else:
        setattr(attention, pairs, getattr(attention, pairs) // ranks)


class _Summed(nn.Module):  # type: ignore[misc] # MLX has no types for it
    """A block of experts of which every rank has a part."""

    def __init__(self, block: nn.Module, group: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.block = block
        self._group = group

    def __call__(self, states: mx.array) -> mx.array:
        return mx.distributed.all_sum(self.block(states), group=self._group)


def _lazy(handle: ModelHandle) -> tuple[Any, dict[str, Any]]:
    with loading_directory(handle) as directory:
        network, config = utils.load_model(directory, lazy=True, trust_remote_code=False)
    mend_attention(network)
    return network, config


def load_share(handle: ModelHandle, cut: Cut, group: Any, form: WeightForm) -> tuple[Any, dict[str, Any], int]:  # noqa: ANN401
    """Load this rank's share of a model.

    Args:
        handle: The model.
        cut: How it is divided.
        group: MLX's group of all ranks.
        form: How to hold the weights; quantized ones stay quantized.

    Returns:
        The network, the config that mlx-lm read, and what the share takes, bytes.
    """
    network, config = _lazy(handle)
    divide = _divider(network, cut)
    assert divide is not None  # ``cut_of`` has found it
    divide(group)
    size = widen(network, WeightForm.WIDE) if form.widened else parameter_bytes(network)
    mx.eval(network.parameters())
    network.eval()
    return network, config, size


class Share:
    """The network of one rank with its KV caches, each under a number that all ranks have for it.

    Used on one thread. Ranks whose shares are given the same steps in the same order compute one model.

    Args:
        network: This rank's share.
        group: MLX's group of all ranks.
    """

    def __init__(self, network: Any, group: Any) -> None:  # noqa: ANN401
        self.network = network
        self._group = group
        self._first = group.rank() == 0
        self.caches: dict[int, list[Any]] = {}
        self._steps: Mapping[str, Callable[..., None]] = {
            "make": self._make,
            "merge": self._merge,
            "extend": self._extend,
            "filter": self._filter,
            "extract": self._extract,
            "trim": self._trim,
            "copy": self._copy,
            "drop": self._drop,
        }

    def do(self, step: str, *arguments: Any) -> None:  # noqa: ANN401 - JSON
        """Do a step on caches; every rank knows the same ones.

        Args:
            step: Its name: a method of mlx-lm's caches, ``make``, ``copy`` or ``drop``.
            arguments: Numbers of caches, the one that results first, and those of the method.
        """
        self._steps[step](*arguments)

    def read(self, cache: int, tokens: mx.array, *, logits: bool) -> mx.array:
        """Compute tokens, and begin to evaluate them at once.

        Args:
            cache: Number of the cache.
            tokens: Shape [B, L]; rank 0 has them, others give zeros of this shape.
            logits: Whether the logits are needed, or the cache only.

        Returns:
            The logits, shape [B, L, V].
        """
        layers = self.caches[cache]
        # MLX's gather takes one round of messages, not two, but crashes the process when a rank is killed meanwhile.
        tokens = mx.distributed.all_sum(tokens.astype(mx.int32), group=self._group)
        mx.async_eval(tokens)  # type: ignore[no-untyped-call] # a rank that gets a layer's output needs only their shape
        found: mx.array = self.network(tokens, cache=layers)
        states = [layer.state for layer in layers]
        mx.async_eval(*((found, states) if logits else (states,)))  # type: ignore[no-untyped-call]
        return found

    def _make(self, new: int) -> None:
        self.caches[new] = make_prompt_cache(self.network)

    def _merge(self, new: int, old: Sequence[int]) -> None:
        layered = zip(*(self.caches[each] for each in old), strict=True)
        self.caches[new] = [layers[0].merge(list(layers)) for layers in layered]

    def _extend(self, cache: int, other: int) -> None:
        for layer, added in zip(self.caches[cache], self.caches[other], strict=True):
            layer.extend(added)

    def _filter(self, cache: int, keep: list[int]) -> None:
        for layer in self.caches[cache]:
            layer.filter(keep)

    def _extract(self, new: int, old: int, index: int) -> None:
        self.caches[new] = [layer.extract(index) for layer in self.caches[old]]
        mx.async_eval([layer.state for layer in self.caches[new]])  # type: ignore[no-untyped-call]

    def _trim(self, cache: int, tokens: int) -> None:
        for layer in self.caches[cache]:
            layer.trim(tokens)

    def _copy(self, new: int, old: int) -> None:
        self.caches[new] = copy.deepcopy(self.caches[old])

    def _drop(self, *caches: int) -> None:
        for each in caches:
            self.caches.pop(each, None)
