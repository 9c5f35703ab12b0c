"""Weight files: which files of a directory are the model, and whether index, tensors and config agree.

A directory may hold more than the model: copies of its weights, formats of other libraries, adapters, training states.
These strays are neither loaded nor counted.

For every model that generates text, the shapes of the embedding and the last norm and the number of layers are compared
with the config, since all loaders build these by it; further shapes only for plain decoders. Loading checks the rest.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase

from mlxk.domain.errors import Advice, ConversionFailedError, Remedy
from mlxk.domain.models.file_formats import SafetensorsHeader
from mlxk.domain.models.snapshot import is_litter, own_text_section, text_section

SAFETENSORS = ".safetensors"
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?:\.safetensors)?")

_STRAY_PATTERNS = (
    "consolidated*", "adapter_model*", "adapters", "*_adapters", "*lora*", "optimizer*", "optim_*", "scheduler*",
    "training_*", "rng_state*", "pytorch_model*", "tf_model*", "flax_model*",
)  # fmt: skip
"""Names of safetensors files, without suffix, that are not weights of the model in the same directory."""

_FOLDER_OF_A_PART = re.compile(
    r"\d+_\w+|.*(?:token|codec|vocoder|encoder|decoder|vision|visual|audio|speech|tower|mtp|assistant).*", re.I
)
"""Folders whose weights libraries load besides the model's, such as modules of sentence encoders, audio codecs."""

_VARIANT = re.compile(
    r"model[._-](?:(?:fp|bf|f|float|bfloat|int|uint|q|w|mxfp|nvfp)?\d+(?:[._-]?bits?)?|(?:non[._-]?)?ema)(?:\W.*|_.*)?"
)
"""Names, without suffix, of variants of ``model.safetensors``, such as ``model.fp16``."""

_OTHER_FORMATS = (
    ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack", ".tflite", ".mlmodel",
    ".nemo",
)  # fmt: skip


def indexed_files(index: Mapping[str, object]) -> frozenset[str]:
    """Return the files that an index names; empty for an invalid index."""
    return frozenset(indexed_tensors(index))


def indexed_tensors(index: Mapping[str, object]) -> dict[str, set[str]]:
    """Return file to tensors by an index; empty for an invalid index."""
    weight_map, tensors = index.get("weight_map"), defaultdict[str, set[str]](set)
    for tensor, path in weight_map.items() if isinstance(weight_map, dict) else ():
        if isinstance(path, str) and path:
            tensors[path].add(tensor)
    return dict(tensors)


def is_one_set(paths: Collection[str]) -> bool:
    """Whether files are one complete set of numbered shards, such as ``model-00001-of-00002.safetensors``."""
    matches = [_NUMBERED.fullmatch(path) for path in paths]
    sets = {(match["stem"], match["total"]) for match in matches if match}
    return all(matches) and len(sets) == 1 and {int(total) for _, total in sets} == {len(matches)}


def undecided_weights(paths: Collection[str], indexed: frozenset[str]) -> tuple[str, ...]:
    """Return the weight files whose headers must be read to decide which are the model, sorted.

    Empty where the names decide it.

    Args:
        paths: See ``stray_weights``.
        indexed: See ``stray_weights``.
    """
    weights = [path for path in paths if path.endswith(SAFETENSORS) and not is_litter(path)]
    here = [path for path in weights if "/" not in path and not _is_beside(path)]
    parts = [path for path in weights if "/" in path and _FOLDER_OF_A_PART.fullmatch(path.split("/", 1)[0])]
    if indexed and indexed <= set(paths):
        return tuple(sorted(parts))
    if not here or len(here) + len(parts) < 2 or (is_one_set(here) and not parts):
        return ()
    return tuple(sorted([*here, *parts]))


def stray_weights(
    paths: Collection[str], indexed: frozenset[str], tensors: Mapping[str, Collection[str]] | None = None
) -> tuple[str, ...]:
    """Return the weight files that do not belong to the model, sorted.

    An index counts when all of its files exist. Without one, ``model.safetensors`` has precedence, then numbered
    shards, then other names, and a file with a tensor of a preceding file is a copy. A directory without safetensors
    at its top has no strays: nothing tells which of its files are the model.

    Args:
        paths: All files, relative to the model's directory.
        indexed: The files that the index names; empty without an index.
        tensors: Weight file to the names of its tensors; None when unknown, as before a download.
    """
    weights = [path for path in paths if path.endswith(SAFETENSORS)]
    here = [path for path in weights if "/" not in path]
    kept = set(indexed) if indexed and indexed <= set(paths) else _without_index(here, tensors, bool(indexed))
    if not any("/" not in path for path in kept):
        return ()
    known = set().union(*(tensors.get(path, ()) for path in kept)) if tensors else set()
    for path in sorted(weights):
        if "/" in path and _FOLDER_OF_A_PART.fullmatch(path.split("/", 1)[0]):
            own = set(tensors.get(path, ())) if tensors else set()
            kept |= set() if own & known else {path}
    others = (path for path in paths if path.lower().endswith(_OTHER_FORMATS))
    return tuple(sorted({*weights, *others} - kept))


def _without_index(here: list[str], tensors: Mapping[str, Collection[str]] | None, stale: bool) -> set[str]:
    """Return the files of the model at the top of its directory.

    Args:
        here: The safetensors files there.
        tensors: See ``stray_weights``.
        stale: Whether there is an index with missing files; the existing files may belong to it, so all are kept.
    """
    plain = [path for path in here if not _is_beside(path)]
    if stale or not plain:
        return set(plain)
    single = "model" + SAFETENSORS in plain
    kept: set[str] = set()
    known: set[str] = set()
    for path in sorted(plain, key=_rank):
        own = tensors.get(path, ()) if tensors else ()
        shard = not single and _rank(path)[0] == 1
        if not shard and (not known.isdisjoint(own) or (single and not own and _is_variant(path))):
            continue
        kept.add(path)
        known.update(own)
    return kept


def _is_beside(path: str) -> bool:
    stem = path[: -len(SAFETENSORS)].lower()
    return any(fnmatchcase(stem, pattern) for pattern in _STRAY_PATTERNS)


def _is_variant(path: str) -> bool:
    """Whether a file is, by its name, a variant of ``model.safetensors``."""
    return _VARIANT.fullmatch(path[: -len(SAFETENSORS)].lower()) is not None


def _rank(path: str) -> tuple[int, str]:
    """Return the sort key of a file: the likeliest file of the model first."""
    stem = path[: -len(SAFETENSORS)]
    if stem == "model":
        return 0, path
    if _NUMBERED.fullmatch(stem):
        return 1, path
    return (2 if stem.startswith("model") else 3 if stem.startswith("weights") else 4), path


NAMED_AT_MOST = 5
"""Most names in a message."""

LISTED_AT_MOST = 1000
"""Most layers to list; a config may state more of them than fit into memory."""

PLAIN_DECODERS = frozenset(
    {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3", "stablelm"}
)
"""Architectures whose tensors all have the usual names and shapes."""

_WIDER_EMBEDDINGS = frozenset({"mllama", "mllama_text_model"})
"""Architectures whose embedding has more rows than the vocabulary has tokens."""

_FULL_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of weights that are not quantized."""

_EMBEDDING = re.compile(r"(?:.+\.)?(?:embed_tokens|word_embeddings|tok_embeddings|backbone\.embeddings)\.weight")
_LAST_NORM = re.compile(
    r"(?:.+\.)?(?:model\.norm|(?:model|backbone)\.(?:norm_f|final_layernorm|embedding_norm))\.weight"
)

_OTHER_COUNTS = (
    "is_encoder_decoder", "encoder_layers", "decoder_layers", "num_encoder_layers", "num_layers", "n_layer", "n_layers",
    "block_configs",
)  # fmt: skip
"""Fields of configs with several stacks of layers, or layers without tensors, where layers cannot be counted."""

_PACKED = "U32"
"""Type of quantized weights; a 32-bit word packs several values."""

_OTHER_STACK = re.compile(r"visi|visual|image|audio|speech|encoder|tower|mtp")
_LAYER = re.compile(r"(.*\b(?:layers|h|blocks|block))\.(\d{1,9})\.")


def build_index(headers: Mapping[str, SafetensorsHeader]) -> dict[str, object]:
    """Return a new index over weight files.

    Args:
        headers: Weight file at the top of the model's directory to its header.

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
    matches = filter(None, map(_NUMBERED.fullmatch, (path for path in paths if path.endswith(SAFETENSORS))))
    sets = {(match["stem"], match["total"]) for match in matches}
    complete = {
        f"{stem}-{number:05d}-of-{total}{SAFETENSORS}" for stem, total in sets for number in range(1, int(total) + 1)
    }
    return sorted(complete - set(paths))


def absent_tensors(old_index: Mapping[str, object], paths: list[str], present: frozenset[str]) -> list[str]:
    """Return the tensors that an old index maps to missing files and that no existing file has, sorted.

    Args:
        old_index: The parsed index; empty when there is none.
        paths: The weight files that exist.
        present: The tensors in these files.
    """
    weight_map = old_index.get("weight_map")
    if not isinstance(weight_map, dict):
        return []
    here = frozenset(paths)
    return sorted(tensor for tensor, path in weight_map.items() if path not in here and tensor not in present)


def absent_layers(config: Mapping[str, object], present: frozenset[str]) -> tuple[list[str], int]:
    """Return the layers of the config without any tensor, and their number.

    At most ``LISTED_AT_MOST`` are listed, in order, each with the name of its stack. Image and audio stacks are not
    judged, nor models whose config has no number of layers, or one below that of the weights.
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
    """Refuse an incomplete set of weight files.

    Raises:
        ConversionFailedError: Tensors, layers or shards are missing; the message has the first, ``detail`` all listed.
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
    """Return a contradiction between tensors and config; None without one, or when they cannot be compared."""
    tensors = {name: tensor for header in headers.values() for name, tensor in header.tensors.items()}
    plain = config.get("model_type") in PLAIN_DECODERS
    expected = _expected(text_section(config)) if plain else _expected_of_any(config, frozenset(tensors))
    for name, wanted in expected:
        shape, packed = _shape(tensors.get(name))
        seen, wanted_here = (shape[:1], wanted[:1]) if packed else (shape, wanted)
        if len(shape) == len(wanted) and seen != wanted_here:
            return f"config.json makes {name} {_text(wanted)}, the weights have {_text(shape)}"
    if not plain and not _counts_one_stack(config, frozenset(tensors)):
        return None
    layers, count = absent_layers(config, frozenset(tensors))
    more = f" and {count - 1} more" if count > 1 else ""
    return f"config.json counts layers that are not among the weights: {layers[0]}{more}" if layers else None


def _expected_of_any(config: Mapping[str, object], tensors: frozenset[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield embedding and last norm with their shapes by the config, where the model has exactly one of each."""
    section = own_text_section(config)
    hidden, rows = _size(section, "hidden_size"), _size(section, "vocab_size")
    if not hidden or any(section.get(name) for name in (*_OTHER_COUNTS, "embedding_size")):
        return
    if config.get("model_type") in _WIDER_EMBEDDINGS:
        return
    for kind, shape in ((_EMBEDDING, (rows, hidden)), (_LAST_NORM, (hidden,))):
        names = [name for name in tensors if kind.fullmatch(name) and not _OTHER_STACK.search(name)]
        if len(names) == 1 and all(shape):
            yield names[0], shape


def _counts_one_stack(config: Mapping[str, object], tensors: frozenset[str]) -> bool:
    """Whether the model has exactly one stack of layers besides image and audio stacks: the one the config counts."""
    sections = (config, own_text_section(config))
    if any(section.get(name) for section in sections for name in _OTHER_COUNTS):
        return False
    stacks = {match[1] for match in filter(None, map(_LAYER.match, tensors)) if not _OTHER_STACK.search(match[1])}
    return len(stacks) == 1


def _expected(config: Mapping[str, object]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield tensors of a plain decoder with their shapes, as far as the config states them."""
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
    """Return a tensor's shape, empty for an unknown type, and whether its values are packed."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("shape"), list):
        return (), False
    if tensor.get("dtype") not in {*_FULL_TYPES, _PACKED}:
        return (), False
    return tuple(size for size in tensor["shape"] if type(size) is int), tensor.get("dtype") == _PACKED


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
