"""The tensors in weight files, by their headers: the index over them, those that are absent, and those that do not fit.

Shapes are judged for decoders of a plain build only, whose loaders take the shapes that the config describes and no
others; all others are judged when they are loaded.
"""

import itertools
import re
from collections.abc import Iterator, Mapping

from mlxk.domain.errors import Advice, ConversionFailedError, Remedy
from mlxk.domain.models.file_formats import SafetensorsHeader
from mlxk.domain.models.memory import text_section

NAMED_AT_MOST = 5

LISTED_AT_MOST = 1000
"""Layers listed; a config may state more of them than fit into memory."""

PLAIN_DECODERS = frozenset(
    {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3", "stablelm"}
)

_PACKED = "U32"
"""Type of quantized weights, whose rows hold several values a word."""

_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_OTHER_STACK = re.compile(r"visi|visual|image|audio|speech|encoder|tower|mtp")
_LAYER = re.compile(r"(.*\b(?:layers|h|blocks|block))\.(\d{1,9})\.")


def build_index(headers: Mapping[str, SafetensorsHeader]) -> dict[str, object]:
    """Return the index over weight files.

    Args:
        headers: Of every weight file directly in the model's directory, by path.

    Raises:
        ConversionFailedError: A file is damaged, or two hold the same tensor.
    """
    weight_map: dict[str, str] = {}
    for path in sorted(headers):
        header = headers[path]
        if header.damage:
            raise ConversionFailedError(f"{path} is damaged: {header.damage.value}", hint="Fetch the model again.")
        for tensor in header.tensors:
            if tensor in weight_map:
                raise ConversionFailedError(f"{tensor} is in two files: {weight_map[tensor]} and {path}")
            weight_map[tensor] = path
    total = sum(header.data_bytes for header in headers.values())
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def absent_shards(paths: list[str]) -> list[str]:
    """Return the missing files of numbered sets (``-00001-of-00003``), sorted."""
    absent = []
    for match in filter(None, map(_NUMBERED.fullmatch, paths)):
        total = int(match[3])
        siblings = (f"{match[1]}-{number:05d}-of-{match[3]}.safetensors" for number in range(1, total + 1))
        absent += [name for name in siblings if name not in paths]
    return sorted(set(absent))


def absent_tensors(old_index: Mapping[str, object], paths: list[str], present: frozenset[str]) -> list[str]:
    """Return the tensors that an old index maps to missing files and that no other file holds, sorted.

    Args:
        old_index: As it was read; empty when there is none.
        paths: The weight files that exist.
        present: The tensors in them.
    """
    weight_map = old_index.get("weight_map")
    if not isinstance(weight_map, dict):
        return []
    here = frozenset(paths)
    return sorted(tensor for tensor, path in weight_map.items() if path not in here and tensor not in present)


def absent_layers(config: Mapping[str, object], present: frozenset[str]) -> tuple[list[str], int]:
    """Return the layers of the config that have no tensor, and their number.

    They are named with their stack, in order, and no more than ``LISTED_AT_MOST``.
    Image and audio stacks are not judged, nor is a model whose config has no number of layers or too small a one.
    """
    nested = config.get("text_config")
    count = (nested if isinstance(nested, dict) else config).get("num_hidden_layers", config.get("num_hidden_layers"))
    if type(count) is not int or count < 1:
        return [], 0
    stacks: dict[str, set[int]] = {}
    for match in filter(None, map(_LAYER.match, present)):
        if not _OTHER_STACK.search(match[1]):
            stacks.setdefault(match[1], set()).add(int(match[2]))
    longest = max((max(numbers) + 1 for numbers in stacks.values()), default=0)
    if not stacks or longest > count or any(len(numbers) == count for numbers in stacks.values()):
        return [], 0
    name, numbers = max(stacks.items(), key=lambda stack: (len(stack[1]), stack[0]))
    missing = (number for number in range(count) if number not in numbers)
    listed = [f"{name}.{number}" for number in itertools.islice(missing, LISTED_AT_MOST)]
    return listed, count - len(numbers)


def require_complete(
    paths: list[str], present: frozenset[str], old_index: Mapping[str, object], config: Mapping[str, object]
) -> None:
    """Refuse weight files that refer to others that are missing.

    Raises:
        ConversionFailedError: They do; the message has the first tensors or files, ``detail`` all of them.
    """
    shards = absent_shards(paths)
    tensors = absent_tensors(old_index, paths, present) if shards else []
    layers, layer_count = ([], 0) if tensors else absent_layers(config, present)
    missing = tensors or layers or shards
    if missing:
        raise incomplete(missing, shards, layer_count or len(missing))


def incomplete(tensors: list[str], shards: list[str] | None = None, count: int | None = None) -> ConversionFailedError:
    """Return the error about missing tensors or files.

    Args:
        tensors: The missing tensors, or the first of them.
        shards: The missing files.
        count: Number of missing tensors, when ``tensors`` has only the first of them.
    """
    left = (count or len(tensors)) - NAMED_AT_MOST
    more = f" and {left} more" if left > 0 else ""
    files = f" (absent: {', '.join(shards[:NAMED_AT_MOST])})" if shards else ""
    named = ", ".join(tensors[:NAMED_AT_MOST])
    return ConversionFailedError(
        f"weights are missing, and an index over the rest would hide it: {named}{more}{files}",
        hint=Advice(Remedy.FETCH_AGAIN),
        detail={"missing": tensors, **({"absent_files": shards} if shards else {})},
    )


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
