"""Which files of a directory are a model: the weights that its index names, without copies and litter.

Repositories and folders hold more than one model: the same weights under other names, in the format of other libraries,
adapters and states of a training. Those are neither loaded nor counted. ``domain.models.weight_index`` judges what the
index names, this module only who belongs to it.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

SAFETENSORS = ".safetensors"

_LITTER_FOLDERS = frozenset(
    {
        "__macosx", ".appledouble", ".spotlight-v100", ".trashes", ".trash", ".fseventsd", ".temporaryitems",
        ".documentrevisions-v100", "temporary items", "network trash folder", "$recycle.bin",
        "system volume information", "lost+found", "@eadir", "#recycle", "@recycle", ".@__thumb",
    }
)  # fmt: skip
_LITTER_NAMES = frozenset(
    {
        ".ds_store", ".localized", ".apdisk", ".volumeicon.icns", "icon\r", "thumbs.db", "ehthumbs.db",
        "ehthumbs_vista.db", "desktop.ini", ".directory", "thumbs.db:encryptable",
    }
)  # fmt: skip
_LITTER_BEGINNINGS = ("._", ".nfs0", ".smbdelete", ".fuse_hidden", ".afpdeleted", "~$")
_LITTER_ENDINGS = (":zone.identifier", ":afp_afpinfo", ":afp_resource", ":com.apple.quarantine")

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


def is_litter(path: str) -> bool:
    """Whether a file was left by macOS, Windows or a network drive: its name, or a folder it is in."""
    *folders, name = path.lower().split("/")
    return (
        name in _LITTER_NAMES
        or name.startswith(_LITTER_BEGINNINGS)
        or name.endswith(_LITTER_ENDINGS)
        or any(folder in _LITTER_FOLDERS or folder.startswith("._") for folder in folders)
    )


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
