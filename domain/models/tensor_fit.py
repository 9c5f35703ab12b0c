"""Whether the tensors of a model have the shapes that its config describes, from headers alone.

Judged for decoders of a plain build only, whose loaders take these shapes and no others; all others are judged when
they are loaded.
"""

from collections.abc import Iterator, Mapping

from mlxk.domain.models.file_formats import SafetensorsHeader
from mlxk.domain.models.memory import text_section
from mlxk.domain.models.weight_index import absent_layers

PLAIN_DECODERS = frozenset(
    {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3", "stablelm"}
)

_PACKED = "U32"
"""Type of quantized weights, whose rows hold several values a word."""


def misfit(config: Mapping[str, object], headers: Mapping[str, SafetensorsHeader]) -> str | None:
    """Return how tensors and config contradict one another; None when they do not, or cannot be compared."""
    if config.get("model_type") not in PLAIN_DECODERS:
        return None
    tensors = {name: tensor for header in headers.values() for name, tensor in header.tensors.items()}
    for name, expected in _expected(text_section(config)):
        shape, packed = _shape(tensors.get(name))
        seen, wanted = (shape[:1], expected[:1]) if packed else (shape, expected)
        if len(shape) == len(expected) and seen != wanted:
            return f"config.json makes {name} {_text(expected)}, the weights have {_text(shape)}"
    layers, count = absent_layers(config, frozenset(tensors))
    more = f" and {count - 1} more" if count > 1 else ""
    return f"config.json counts layers that are not among the weights: {layers[0]}{more}" if layers else None


def _expected(config: Mapping[str, object]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield tensors and their shapes, as far as the config states them."""
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    width = _size(config, "head_dim") or (hidden // heads if heads else 0)
    keys = _size(config, "num_key_value_heads") or heads
    rows = {
        "model.embed_tokens.weight": _size(config, "vocab_size"),
        "model.layers.0.self_attn.q_proj.weight": heads * width,
        "model.layers.0.self_attn.k_proj.weight": keys * width,
        "model.layers.0.mlp.gate_proj.weight": _size(config, "intermediate_size"),
    }
    yield from ((name, (count, hidden)) for name, count in rows.items() if count and hidden)
    if hidden:
        yield "model.norm.weight", (hidden,)


def _size(config: Mapping[str, object], name: str) -> int:
    value = config.get(name)
    return value if type(value) is int and value > 0 else 0


def _shape(tensor: object) -> tuple[tuple[int, ...], bool]:
    """Return a tensor's shape, empty without one, and whether its values are packed."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("shape"), list):
        return (), False
    return tuple(size for size in tensor["shape"] if type(size) is int), tensor.get("dtype") == _PACKED


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
