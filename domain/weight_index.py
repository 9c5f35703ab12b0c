"""The index of sharded weights: rebuilding it from the shards, and the signs that some of them are absent.

An index says which file holds which tensor. It is only rebuilt over weights that are all here: an index over what
happens to be here would make half a model look whole.
"""

import re
from collections.abc import Mapping

from mlxk.domain.errors import ConversionFailedError
from mlxk.domain.safetensors import SafetensorsHeader

NAMED_AT_MOST = 5

_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_OTHER_STACK = re.compile(r"visi|visual|image|audio|speech|encoder|tower|mtp")
_LAYER = re.compile(r"(.*\b(?:layers|h|blocks|block))\.(\d+)\.")


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
    """Return the files that others prove to exist by how they are numbered (``-00001-of-00003``), sorted."""
    absent = []
    for match in filter(None, map(_NUMBERED.fullmatch, paths)):
        total = int(match[3])
        siblings = (f"{match[1]}-{number:05d}-of-{match[3]}.safetensors" for number in range(1, total + 1))
        absent += [name for name in siblings if name not in paths]
    return sorted(set(absent))


def absent_tensors(old_index: Mapping[str, object], paths: list[str], present: frozenset[str]) -> list[str]:
    """Return the tensors that an old index places in files that are not here and that no other file holds, sorted.

    Args:
        old_index: As it was read; empty when there is none.
        paths: The weight files that are here.
        present: The tensors in them.
    """
    weight_map = old_index.get("weight_map")
    if not isinstance(weight_map, dict):
        return []
    here = frozenset(paths)
    return sorted(tensor for tensor, path in weight_map.items() if path not in here and tensor not in present)


def absent_layers(config: Mapping[str, object], present: frozenset[str]) -> list[str]:
    """Return the layers that the config counts and no tensor belongs to, by the name of the stack, in order.

    Stacks for pictures and sound are not judged, nor is a model whose config does not count, or counts too little.
    """
    nested = config.get("text_config")
    count = (nested if isinstance(nested, dict) else config).get("num_hidden_layers", config.get("num_hidden_layers"))
    if type(count) is not int or count < 1:
        return []
    stacks: dict[str, set[int]] = {}
    for match in filter(None, map(_LAYER.match, present)):
        if not _OTHER_STACK.search(match[1]):
            stacks.setdefault(match[1], set()).add(int(match[2]))
    longest = max((max(numbers) + 1 for numbers in stacks.values()), default=0)
    if not stacks or longest > count or any(len(numbers) == count for numbers in stacks.values()):
        return []
    name, numbers = max(stacks.items(), key=lambda stack: (len(stack[1]), stack[0]))
    return [f"{name}.{number}" for number in range(count) if number not in numbers]


def require_complete(
    paths: list[str], present: frozenset[str], old_index: Mapping[str, object], config: Mapping[str, object]
) -> None:
    """Make sure that the files do not tell of others that are not here.

    Raises:
        ConversionFailedError: They do; the message names the first tensors or files, ``detail`` all of them.
    """
    shards = absent_shards(paths)
    tensors = absent_tensors(old_index, paths, present) if shards else []
    missing = tensors or absent_layers(config, present) or shards
    if missing:
        raise incomplete(missing, shards)


def incomplete(tensors: list[str], shards: list[str] | None = None) -> ConversionFailedError:
    """Return the error that names what is missing."""
    more = f" and {len(tensors) - NAMED_AT_MOST} more" if len(tensors) > NAMED_AT_MOST else ""
    files = f" (absent: {', '.join(shards[:NAMED_AT_MOST])})" if shards else ""
    named = ", ".join(tensors[:NAMED_AT_MOST])
    return ConversionFailedError(
        f"weights are missing, and an index over the rest would hide it: {named}{more}{files}",
        hint="Fetch the model again: mlxk pull MODEL --force-resume",
        detail={"missing": tensors, **({"absent_files": shards} if shards else {})},
    )
