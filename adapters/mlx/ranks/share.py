"""A rank's share of a model: dividing the model, loading the share, and the steps that all ranks execute in order.

Tensor parallelism cuts the matrices of every layer; pipelining gives each rank some of the layers. Arrays are loaded
lazily: only those that the share needs are read, as a whole, and cut one after the other.

Ranks communicate while arrays are evaluated. So evaluation of every step begins in that step, and all ranks exchange
the same data in the same order, whatever is computed from the results later.
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


class _GroupOfSize:
    """Stands in for MLX's group where only its size is needed, before the group exists."""

    def __init__(self, size: int) -> None:
        self._size = size

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return 0


def require_library(handle: ModelHandle, backends: Sequence[str]) -> None:
    """Refuse a model that mlx-lm cannot compute: only its models are divided.

    Args:
        handle: The model.
        backends: Names of the libraries that can compute it; empty if unknown.

    Raises:
        CapabilityError: Only other libraries can compute it.
    """
    if backends and Library.MLX_LM.value not in backends:
        raise CapabilityError(
            f"'{handle.name}' is computed by {backends[0]}, whose models are not spread over several processes.",
            hint="Run it in one process.",
        )


def cut_of(handle: ModelHandle, config: Mapping[str, Any], ranks: int) -> Cut:
    """Return how a model is divided among a number of ranks; reads no weights.

    Raises:
        IncompatibleModelError: Its architecture cannot be divided, or not among so many ranks.
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
                divide(_GroupOfSize(ranks))
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
    """Return why the heads cannot be divided equally; None if they can.

    Args:
        config: The model's config.
        ranks: Number of ranks.
        keeps_one: Whether each rank may keep a single key-value head whole.
    """
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
"""Architectures that mlx-lm cannot shard, with the same modules as those that it can; they are sharded here."""


def _is_cut_here(network: Any) -> bool:  # noqa: ANN401
    return not hasattr(network, "shard") and getattr(network, "model_type", None) in _CUT_HERE


def _divider(network: Any, cut: Cut) -> Callable[[Any], None] | None:  # noqa: ANN401
    """Return the function that divides a network among the ranks of a group; None if it cannot be cut in this way."""
    if cut is Cut.PIPELINE:
        return getattr(getattr(network, "model", None), "pipeline", None)
    if _is_cut_here(network):
        return lambda group: _cut_layers(network.layers, group)
    return getattr(network, "shard", None)


_PARALLEL, _SUMMED = ("gate_proj", "up_proj"), "down_proj"


def _cut_layers(layers: Sequence[Any], group: Any) -> None:  # noqa: ANN401
    """Shard every layer: each rank gets some heads and hidden units, and outputs are summed over all ranks."""
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
    """Sums the outputs of a block of experts that is sharded over all ranks."""

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
        The network, the config as mlx-lm reads it, and the size of the share, bytes.
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
    """The network of one rank with its KV caches, each under a number that is the same on all ranks.

    Used on one thread. Ranks that execute the same steps in the same order compute one model.

    Args:
        network: This rank's share.
        group: MLX's group of all ranks.
    """

    def __init__(self, network: Any, group: Any) -> None:  # noqa: ANN401
        self.network = network
        self._group = group
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
        """Execute a step on caches.

        Args:
            step: ``make``, ``copy``, ``drop``, or the name of a method of mlx-lm's caches.
            arguments: Numbers of caches, that of a new cache first, then the arguments of the method.
        """
        self._steps[step](*arguments)

    def read(self, cache: int, tokens: mx.array, *, logits: bool) -> mx.array:
        """Compute tokens, and start the evaluation.

        Args:
            cache: Number of the cache.
            tokens: Shape [B, L]; zeros except on rank 0.
            logits: Whether the logits are needed, or only the cache.

        Returns:
            The logits, shape [B, L, V].
        """
        layers = self.caches[cache]
        # The sum broadcasts the tokens of rank 0. MLX's gather would take one round of messages instead of two, but
        # crashes the process when a rank is killed meanwhile.
        tokens = mx.distributed.all_sum(tokens.astype(mx.int32), group=self._group)
        mx.async_eval(tokens)  # type: ignore[no-untyped-call] # by itself: later ranks of a pipeline need the shape only
        output: mx.array = self.network(tokens, cache=layers)
        states = [layer.state for layer in layers]
        mx.async_eval(*((output, states) if logits else (states,)))  # type: ignore[no-untyped-call]
        return output

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
