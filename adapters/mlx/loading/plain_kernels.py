"""Replacements, in plain MLX operations, for custom Metal kernels of the libraries' networks.

mlx-lm and mlx-vlm have the same kernels, for Muse Spark. Intermediate results are rounded to the type of the weights
where the kernels do so.
"""

import sys

import mlx.core as mx
from mlx import nn


def run_without_metal(network: nn.Module) -> None:
    """Replace the Metal kernels in the modules of a network's classes if this machine has no Metal."""
    if mx.metal.is_available():
        return
    for module in {type(each).__module__ for each in network.modules()}:
        namespace = vars(sys.modules[module])
        namespace |= {name: plain for name, plain in _PLAIN.items() if name in namespace}


def _normed(values: mx.array, eps: float, weight: mx.array | None = None) -> mx.array:
    """Return the RMS norm, computed in 32 bits."""
    return mx.fast.rms_norm(values.astype(mx.float32), None if weight is None else weight.astype(mx.float32), eps)


def _expert_routing(
    logits: mx.array, expert_bias: mx.array, *, top_k: int, multiplier: float, score_eps: float, route_scale: float
) -> list[mx.array]:
    """Return the indices of the best experts and their weights, shape [..., K] both."""
    scores = mx.sigmoid(logits.astype(mx.float32) * multiplier)
    experts = mx.argsort(-(scores + expert_bias), axis=-1)[..., :top_k]
    weights = mx.take_along_axis(scores, experts, axis=-1)
    return [experts.astype(mx.uint32), weights / (weights.sum(axis=-1, keepdims=True) + score_eps) * route_scale]


def _pre_norm(stream: mx.array, norm: nn.RMSNorm, *, dtype: mx.Dtype) -> mx.array:
    return _normed(stream, norm.eps, norm.weight).astype(dtype)


def _norm_add_norm(  # noqa: PLR0913 - the kernel's
    branch: mx.array,
    stream: mx.array,
    *,
    alpha: mx.array,
    beta: mx.array,
    post_weight: mx.array | None,
    post_eps: float,
    next_norm: nn.RMSNorm | None,
) -> tuple[mx.array, mx.array | None]:
    """Return the stream with the normed branch added, and this sum normed for the next layer; None without one."""
    kind = branch.dtype
    scaled = branch if post_weight is None else branch * post_weight.astype(kind)
    total = alpha * stream + beta * _normed(scaled, post_eps).astype(kind)
    total = total.astype(mx.float32)
    return total, None if next_norm is None else _pre_norm(total, next_norm, dtype=kind)


def _post_expert_norm_combine(experts: mx.array, weights: mx.array, *, norm_weight: mx.array, eps: float) -> mx.array:
    """Return the weighted sum of the normed outputs of experts: [..., K, D] and [..., K] make [..., D]."""
    normed = _normed(experts.astype(mx.float32) * norm_weight, eps)
    return (normed * weights.astype(experts.dtype)[..., None]).sum(axis=-2).astype(experts.dtype)


def _qk_norm(
    qkvg: mx.array, *, n_heads: int, n_kv_heads: int, head_dim: int, eps: float, query_scale: float
) -> list[mx.array]:
    """Return normed queries and keys, shape [B, L, H, D] each, from the concatenated projections."""
    both = n_heads + n_kv_heads
    heads = qkvg[..., : both * head_dim].reshape(*qkvg.shape[:-1], both, head_dim)
    normed = _normed(heads, eps).astype(qkvg.dtype)
    return [(normed[..., :n_heads, :] * query_scale).astype(qkvg.dtype), normed[..., n_heads:, :]]


def _qk_norm_rope(
    qkvg: mx.array, *, head_dim: int, rope_base: float, offset: int | mx.array, **settings: float
) -> list[mx.array]:
    """Return the results of ``_qk_norm``, rotated by their positions."""

    def rotated(heads: mx.array) -> mx.array:
        by_head = heads.swapaxes(1, 2)
        result = mx.fast.rope(by_head, head_dim, traditional=True, base=rope_base, scale=1.0, offset=offset)
        return result.swapaxes(1, 2)

    return [rotated(each) for each in _qk_norm(qkvg, head_dim=head_dim, **settings)]  # type: ignore[arg-type]


def _rms_norm_sigmoid_gate(x: mx.array, gate: mx.array, *, eps: float) -> mx.array:
    """Return the normed heads times the sigmoid of their gates: [B, H, L, D] and [B, L, H * D] make [B, L, H * D]."""
    normed = _normed(x, eps).swapaxes(1, 2).reshape(gate.shape)
    return (normed * mx.sigmoid(gate.astype(mx.float32))).astype(x.dtype)


_PLAIN = {
    "expert_routing": _expert_routing,
    "norm_add_norm": _norm_add_norm,
    "post_expert_norm_combine": _post_expert_norm_combine,
    "pre_norm": _pre_norm,
    "qk_norm": _qk_norm,
    "qk_norm_rope": _qk_norm_rope,
    "rms_norm_sigmoid_gate": _rms_norm_sigmoid_gate,
}
