"""Which files hold a model's weights, and whether all of them are here.

Owns the index, the numbering of shards and the loose files; the bytes inside them are ``domain.safetensors``.
"""

import re

import attrs

from mlxk.domain.documents import Document
from mlxk.domain.health import HealthReport, unhealthy
from mlxk.domain.snapshot import PYTORCH_INDEX, SAFETENSORS_INDEX, ModelSnapshot

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_MARKERS = (".partial", ".tmp", ".incomplete")
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_NAMED_AT_MOST = 5


@attrs.frozen
class Gap:
    """Files that should be here and are not."""

    reason: str
    """The finding, as a sentence that does not begin with a name."""
    files: tuple[str, ...] = ()
    """The files by name, sorted, where they are known."""
    proof: bool = False
    """Whether the files that are here prove that the others belong to them."""


def find_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    """Return the first thing wrong with the set of weight files; None when it is complete."""
    index = weight_index(snapshot)
    return _indexed_fault(snapshot, index) if index else _loose_fault(snapshot)


def weight_index(snapshot: ModelSnapshot) -> str | None:
    """Return the index that says which file holds which weight; None when no index counts.

    An index counts when a weight of its format is here, or when the hub's record or the lack of any weight shows that
    the shards are still to come.
    """
    if SAFETENSORS_INDEX in snapshot.files and (snapshot.has_any(".safetensors") or not snapshot.has_any(*_WEIGHTS)):
        return SAFETENSORS_INDEX
    if PYTORCH_INDEX in snapshot.files and snapshot.has_any(".bin"):
        return PYTORCH_INDEX
    return None


def absent(snapshot: ModelSnapshot, gap: Gap, missing_bytes: int | None = None) -> HealthReport:
    """Report missing files, as a partial download when something shows that it is one.

    Args:
        snapshot: The model.
        gap: What is missing.
        missing_bytes: How much is missing, where the caller knows better than the hub's record.
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
    rest = len(paths) - _NAMED_AT_MOST
    return ", ".join(paths[:_NAMED_AT_MOST]) + (f" and {rest} more" if rest > 0 else "")


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
            f"Index/shard mismatch (mlx-vlm #624). Index references {len(shards)} shards but found {len(present)} "
            "different files. Fix: mlxk convert <model> <output> --repair-index",
            missing,
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
    """Return what is wrong with files that count themselves, such as ``model-00001-of-00003.safetensors``."""
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
    """Return the weight files a loader would look for, as far as the hub recorded them."""
    return sorted(
        path
        for path in snapshot.expected
        if "/" not in path and path.startswith("model") and path.endswith(".safetensors")
    )
