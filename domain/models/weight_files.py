"""Weight files: which files hold a model's weights, whether all of them exist, and the index of sharded weights."""

import itertools
import re
from collections.abc import Mapping

import attrs

from mlxk.domain.errors import Advice, ConversionFailedError, Remedy
from mlxk.domain.models.json_file import Document
from mlxk.domain.models.model import HealthReport, unhealthy
from mlxk.domain.models.safetensors import SafetensorsHeader
from mlxk.domain.models.snapshot import PYTORCH_INDEX, SAFETENSORS_INDEX, ModelSnapshot

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_MARKERS = (".partial", ".tmp", ".incomplete")
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_NAMED_AT_MOST = 5


@attrs.frozen
class Gap:
    """Files that are missing."""

    reason: str
    """The finding, a sentence that does not begin with a name."""
    files: tuple[str, ...] = ()
    """The files by name, sorted, where they are known."""
    proof: bool = False
    """Whether the files that exist prove that there must be others."""


def find_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    """Return the first thing wrong with the set of weight files; None when it is complete."""
    index = weight_index(snapshot)
    return _indexed_fault(snapshot, index) if index else _loose_fault(snapshot)


def weight_index(snapshot: ModelSnapshot) -> str | None:
    """Return the path of the index from weights to files; None when no index counts.

    An index counts when there is a weight file of its format, or no weight file at all, so that the shards
    are still to be downloaded.
    """
    if SAFETENSORS_INDEX in snapshot.files and (snapshot.has_any(".safetensors") or not snapshot.has_any(*_WEIGHTS)):
        return SAFETENSORS_INDEX
    if PYTORCH_INDEX in snapshot.files and snapshot.has_any(".bin"):
        return PYTORCH_INDEX
    return None


def absent(snapshot: ModelSnapshot, gap: Gap, missing_bytes: int | None = None) -> HealthReport:
    """Report missing files, as a partial download when there is evidence of one.

    Args:
        snapshot: The model.
        gap: What is missing.
        missing_bytes: Bytes that are missing, where the caller knows them better than the hub's listing.
    """
    known = [snapshot.expected[path] for path in gap.files if path in snapshot.expected]
    if gap.files and len(known) == len(gap.files):
        missing_bytes = sum(known)
    reason = gap.reason
    if snapshot.unfinished or known or (gap.proof and snapshot.from_hub):
        reason = f"Partial download: {reason[0].lower()}{reason[1:]}"
    if missing_bytes:
        reason += f" ({missing_bytes} bytes missing)"
    return unhealthy(reason, gap.files, missing_bytes)


def listed(paths: list[str] | tuple[str, ...]) -> str:
    """Return paths as text, the first few of many."""
    more = len(paths) - _NAMED_AT_MOST
    return ", ".join(paths[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _indexed_fault(snapshot: ModelSnapshot, index: str) -> HealthReport | None:
    document = snapshot.document(index)
    if not isinstance(document.value, dict):
        return unhealthy("Invalid index file", (index,))
    shards = _shards(document)
    if not shards:
        return unhealthy("Empty or invalid weight_map in index", (index,))
    missing = tuple(shard for shard in shards if shard not in snapshot.files)
    if missing:
        return _missing_shards(snapshot, document, shards, missing)
    empty = tuple(shard for shard in shards if not snapshot.files[shard])
    return unhealthy(f"Empty weight shards: {listed(empty)}", empty) if empty else None


def _shards(document: Document) -> tuple[str, ...]:
    weight_map = document.mapping.get("weight_map")
    if not isinstance(weight_map, dict):
        return ()
    return tuple(sorted({shard for shard in weight_map.values() if isinstance(shard, str) and shard}))


def _missing_shards(
    snapshot: ModelSnapshot, document: Document, shards: tuple[str, ...], missing: tuple[str, ...]
) -> HealthReport:
    present = snapshot.top_level(".safetensors")
    strangers = [path for path in present if path not in shards and not path.startswith("consolidated")]
    if strangers and not any(path in snapshot.expected for path in missing):
        return unhealthy(
            f"Index/shard mismatch. Index references {len(shards)} shards but found {len(present)} different files.",
            missing,
            fix=Remedy.REPAIR_INDEX,
        )
    metadata = document.mapping.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    here = sum(snapshot.headers[shard].data_bytes for shard in shards if shard in snapshot.headers)
    missing_bytes = total - here if type(total) is int and total > here else None
    return absent(snapshot, Gap(f"Missing weight shards: {listed(missing)}", missing, proof=True), missing_bytes)


def _loose_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    weights = snapshot.top_level(*_WEIGHTS) or sorted(path for path in snapshot.files if path.endswith(_WEIGHTS))
    numbered = [match for match in map(_SHARD.fullmatch, weights) if match]
    fault = _numbering_fault(snapshot, numbered)
    if fault:
        return fault
    owed = tuple(path for path in _expected_weights(snapshot) if path not in snapshot.files)
    if not weights:
        return absent(snapshot, Gap("No model weights found", owed))
    if owed and not any(path.endswith(".gguf") for path in weights):
        return absent(snapshot, Gap(f"Missing weight files: {listed(owed)}", owed))
    marked = tuple(path for path in snapshot.files if path.endswith(_MARKERS) or ".partial." in path)
    if marked:
        return unhealthy("Partial download marker detected", marked)
    empty = tuple(path for path in weights if not snapshot.files[path])
    if empty:
        return unhealthy(f"Empty weight files: {listed(empty)}", empty)
    if numbered:
        return absent(snapshot, Gap("Safetensors index missing for sharded model", (SAFETENSORS_INDEX,)))
    return None


def _numbering_fault(snapshot: ModelSnapshot, numbered: list[re.Match[str]]) -> HealthReport | None:
    """Return what is wrong with numbered files, such as ``model-00001-of-00003.safetensors``."""
    if not numbered:
        return None
    names = tuple(match.string for match in numbered)
    totals = {match[2] for match in numbered}
    if len(totals) > 1:
        return unhealthy("Inconsistent shard totals detected", names)
    total = int(totals.pop())
    if len(numbered) < total:
        missing = tuple(
            name for i in range(1, total + 1) if (name := f"model-{i:05d}-of-{total:05d}.safetensors") not in names
        )
        gap = Gap(f"Missing shards by pattern: {len(numbered)}/{total} present", missing, proof=True)
        return absent(snapshot, gap)
    empty = tuple(name for name in names if not snapshot.files[name])
    return unhealthy(f"Empty shards: {listed(empty)}", empty) if empty else None


def _expected_weights(snapshot: ModelSnapshot) -> list[str]:
    """Return the weight files that a loader needs, as far as the hub listed them."""
    return sorted(
        path
        for path in snapshot.expected
        if "/" not in path and path.startswith("model") and path.endswith(".safetensors")
    )


NAMED_AT_MOST = 5

LISTED_AT_MOST = 1000
"""Layers listed; a config may state more of them than fit into memory."""

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
    """Return the error that names what is missing.

    Args:
        tensors: What is missing, or the first of it.
        shards: The files that are absent.
        count: How much is missing, when ``tensors`` is only the first of it.
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
