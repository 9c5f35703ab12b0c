"""Weight files of a model: which files of a directory they are, and the tensors that their headers and index name.

Repositories and folders hold more than one model: the same weights under other names, in the format of other libraries,
adapters and states of a training. Those are neither loaded nor counted.

Of every model that generates text, the embedding, the last norm and the layers are judged, which all loaders build as
the config describes; further shapes only of decoders of a plain build. All else is judged when it is loaded.
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

_BESIDE_A_MODEL = (
    "consolidated*", "adapter_model*", "adapters", "*_adapters", "*lora*", "optimizer*", "optim_*", "scheduler*",
    "training_*", "rng_state*", "pytorch_model*", "tf_model*", "flax_model*",
)  # fmt: skip
"""Names of safetensors files, without their suffix, that are no weights of the model they lie beside."""

_FOLDER_OF_A_PART = re.compile(
    r"\d+_\w+|.*(?:token|codec|vocoder|encoder|decoder|vision|visual|audio|speech|tower|mtp|assistant).*", re.I
)
"""Folders of weights that the libraries load beside those of the model: modules of sentence encoders, audio codecs."""

_VARIANT = re.compile(
    r"model[._-](?:(?:fp|bf|f|float|bfloat|int|uint|q|w|mxfp|nvfp)?\d+(?:[._-]?bits?)?|(?:non[._-]?)?ema)(?:\W.*|_.*)?"
)
"""Names, without their suffix, of other forms of ``model.safetensors``, such as ``model.fp16``."""

_OTHER_FORMATS = (
    ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack", ".tflite", ".mlmodel",
    ".nemo",
)  # fmt: skip


def indexed_files(index: Mapping[str, object]) -> frozenset[str]:
    """Return the files that an index names; empty when it is none."""
    return frozenset(indexed_tensors(index))


def indexed_tensors(index: Mapping[str, object]) -> dict[str, set[str]]:
    """Return the files that an index names, and the tensors in each; empty when it is none."""
    weight_map, found = index.get("weight_map"), defaultdict[str, set[str]](set)
    for tensor, path in weight_map.items() if isinstance(weight_map, dict) else ():
        if isinstance(path, str) and path:
            found[path].add(tensor)
    return dict(found)


def is_one_set(paths: Collection[str]) -> bool:
    """Whether files are one numbered set without a gap, as ``model-00001-of-00002.safetensors`` and its sibling are."""
    found = [_NUMBERED.fullmatch(path) for path in paths]
    sets = {(match["stem"], match["total"]) for match in found if match}
    return all(found) and len(sets) == 1 and {int(total) for _, total in sets} == {len(found)}


def undecided_weights(paths: Collection[str], indexed: frozenset[str]) -> tuple[str, ...]:
    """Return the weight files whose tensors tell which of them are the model, sorted; empty where the names do.

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

    An index counts when all of its files are there. Without one, ``model.safetensors`` is the model, before numbered
    shards and other names, and a file that repeats a tensor of a better one is a copy. A directory without safetensors
    of its own has no strays: nothing says which of its files are the model.

    Args:
        paths: All files, relative to the model's directory.
        indexed: The files that the index names; empty without an index.
        tensors: Weight file to the names of its tensors; None when they are unknown, as before a download.
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
    """Return the files directly in the directory that make up the model.

    Args:
        here: The safetensors files there.
        tensors: See ``stray_weights``.
        stale: Whether there is an index that names files which are absent; what is there may then belong to it.
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
    return any(fnmatchcase(stem, pattern) for pattern in _BESIDE_A_MODEL)


def _is_variant(path: str) -> bool:
    """Whether a file is named as another form of ``model.safetensors``."""
    return _VARIANT.fullmatch(path[: -len(SAFETENSORS)].lower()) is not None


def _rank(path: str) -> tuple[int, str]:
    """Order files by how likely each is the model itself."""
    stem = path[: -len(SAFETENSORS)]
    if stem == "model":
        return 0, path
    if _NUMBERED.fullmatch(stem):
        return 1, path
    return (2 if stem.startswith("model") else 3 if stem.startswith("weights") else 4), path


NAMED_AT_MOST = 5

LISTED_AT_MOST = 1000
"""Layers listed; a config may state more of them than fit into memory."""

PLAIN_DECODERS = frozenset(
    {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3", "stablelm"}
)

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
"""Entries of configs in which the number of layers may not be that of one stack, or layers may be without tensors."""

_PACKED = "U32"
"""Type of quantized weights, whose rows hold several values a word."""

_NUMBERED_SAFETENSORS = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
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
    for match in filter(None, map(_NUMBERED_SAFETENSORS.fullmatch, paths)):
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
    """Yield the tensors whose shapes every loader takes from the config, where there is one of each kind."""
    section = own_text_section(config)
    hidden, rows = _size(section, "hidden_size"), _size(section, "vocab_size")
    if not hidden or any(section.get(name) for name in (*_OTHER_COUNTS, "embedding_size")):
        return
    if config.get("model_type") in _WIDER_EMBEDDINGS:
        return
    for kind, shape in ((_EMBEDDING, (rows, hidden)), (_LAST_NORM, (hidden,))):
        found = [name for name in tensors if kind.fullmatch(name) and not _OTHER_STACK.search(name)]
        if len(found) == 1 and all(shape):
            yield found[0], shape


def _counts_one_stack(config: Mapping[str, object], tensors: frozenset[str]) -> bool:
    """Whether a config counts the layers of the only stack of a model that is not for images or sound."""
    sections = (config, own_text_section(config))
    if any(section.get(name) for section in sections for name in _OTHER_COUNTS):
        return False
    found = {match[1] for match in filter(None, map(_LAYER.match, tensors)) if not _OTHER_STACK.search(match[1])}
    return len(found) == 1


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
    """Return a tensor's shape, empty where its meaning is unknown, and whether its values are packed."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("shape"), list):
        return (), False
    if tensor.get("dtype") not in {*_FULL_TYPES, _PACKED}:
        return (), False
    return tuple(size for size in tensor["shape"] if type(size) is int), tensor.get("dtype") == _PACKED


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
