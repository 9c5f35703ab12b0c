"""Integrity: whether a model's files are complete and undamaged, judged by names, sizes, headers and JSON files.

The rules are ordered; the first broken one is the reason given. "Healthy" does not mean that the content of large files
is the published one: the content verifier, which reads all bytes, checks that.
"""

import itertools
import re
from collections.abc import Callable

import attrs

from mlxk.domain.errors import Remedy
from mlxk.domain.models import detection
from mlxk.domain.models.file_formats import Damage, Document
from mlxk.domain.models.model import PARTIAL_DOWNLOAD, HealthReport, healthy, unhealthy
from mlxk.domain.models.snapshot import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    PREPROCESSOR_CONFIG,
    PROCESSOR_CONFIG,
    PYTORCH_INDEX,
    SAFETENSORS_INDEX,
    TEMPLATE_DOCUMENT,
    TOKENIZER_CONFIG,
    ModelSnapshot,
    is_template_file,
)
from mlxk.domain.models.weights import misfit, stray_weights

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_PARTIAL_SUFFIXES = (".partial", ".tmp", ".incomplete")
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_MAX_NAMED = 5
"""Most files that a reason names."""


@attrs.frozen
class Gap:
    """Missing files."""

    reason: str
    """The finding, a sentence that does not begin with a name."""
    files: tuple[str, ...] = ()
    """The missing files, sorted; empty when unknown."""
    proof: bool = False
    """Whether the existing files prove that others are missing, as shard 1 of 3 does."""


def find_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    """Return the first fault of the set of weight files; None when it is complete."""
    index = weight_index(snapshot)
    return _indexed_fault(snapshot, index) if index else _loose_fault(snapshot)


def weight_index(snapshot: ModelSnapshot) -> str | None:
    """Return the path of the index of the weight files; None when no index counts.

    An index counts when there is a weight file of its format, or none at all, as before the shards are downloaded.
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
        gap: The missing files.
        missing_bytes: Their size, where the hub's listing does not have all of them; None when unknown.
    """
    known = [snapshot.expected[path] for path in gap.files if path in snapshot.expected]
    if gap.files and len(known) == len(gap.files):
        missing_bytes = sum(known)
    reason = gap.reason
    if snapshot.unfinished or known or (gap.proof and snapshot.from_hub):
        reason = f"{PARTIAL_DOWNLOAD}: {reason[0].lower()}{reason[1:]}"
    if missing_bytes:
        reason += f" ({missing_bytes} bytes missing)"
    return unhealthy(reason, gap.files, missing_bytes)


def listed(paths: list[str] | tuple[str, ...]) -> str:
    """Return paths as text: the first few, and the number of the others."""
    more = len(paths) - _MAX_NAMED
    return ", ".join(paths[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


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
    others = [path for path in present if path not in shards and not path.startswith("consolidated")]
    if others and not any(path in snapshot.expected for path in missing):
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
    missing = tuple(path for path in _expected_weights(snapshot) if path not in snapshot.files)
    if not weights:
        return absent(snapshot, Gap("No model weights found", missing))
    if missing and not any(path.endswith(".gguf") for path in weights):
        return absent(snapshot, Gap(f"Missing weight files: {listed(missing)}", missing))
    partial = tuple(path for path in snapshot.files if path.endswith(_PARTIAL_SUFFIXES) or ".partial." in path)
    if partial:
        return unhealthy(f"{PARTIAL_DOWNLOAD} marker detected", partial)
    empty = tuple(path for path in weights if not snapshot.files[path])
    if empty:
        return unhealthy(f"Empty weight files: {listed(empty)}", empty)
    if numbered:
        return absent(snapshot, Gap("Safetensors index missing for sharded model", (SAFETENSORS_INDEX,)))
    return None


def _numbering_fault(snapshot: ModelSnapshot, numbered: list[re.Match[str]]) -> HealthReport | None:
    """Return the fault of numbered shards, such as ``model-00001-of-00003.safetensors``."""
    if not numbered:
        return None
    names = dict.fromkeys(match.string for match in numbered)
    totals = {match[2] for match in numbered}
    if len(totals) > 1:
        return unhealthy("Inconsistent shard totals detected", tuple(names))
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
    """Return the weight files of the hub's listing that a loader needs.

    Of files that are no numbered shards one is enough: the others may be copies, which a download skips.
    """
    strays = frozenset(stray_weights(snapshot.expected, frozenset()))
    needed = sorted(
        path
        for path in snapshot.expected
        if "/" not in path and path.startswith("model") and path.endswith(".safetensors") and path not in strays
    )
    shards = [path for path in needed if _SHARD.fullmatch(path)]
    return shards if any(path in snapshot.files for path in set(needed).difference(shards)) else needed


HARMLESS_LAYERS = 1000
"""Number of layers that a library builds quickly, even without tensors; more than any model has."""

_COUNTS_LAYERS = re.compile(r"(^|_)(layers?|depth|blocks)$")
"""Config fields that count layers."""

_TOKENIZERS = frozenset({"tokenizer.json", "tekken.json"})
_TOKENIZER_SUFFIXES = (".model", ".model.v3", ".spm", ".tiktoken", "vocab.txt")
_TOKENIZER_PAIR = ("vocab.json", "merges.txt")
_SETTINGS = frozenset(
    {
        CONFIG, TOKENIZER_CONFIG, PREPROCESSOR_CONFIG, PROCESSOR_CONFIG, SAFETENSORS_INDEX, PYTORCH_INDEX,
        TEMPLATE_DOCUMENT, "generation_config.json", "special_tokens_map.json", "added_tokens.json", "modules.json",
    }
)  # fmt: skip


def check(snapshot: ModelSnapshot) -> HealthReport:
    """Check a model's files. Never raises."""
    for rule in _ADAPTER_RULES if snapshot.is_adapter else _RULES:
        fault = rule(snapshot)
        if fault:
            return fault
    if snapshot.is_adapter:
        return healthy("Adapter is healthy")
    return healthy("Multi-file model complete" if weight_index(snapshot) else "Model is healthy")


def has_tokenizer(snapshot: ModelSnapshot) -> bool:
    """Whether the model has a tokenizer in a format that a library reads."""
    return any(
        "/" not in path and (path in _TOKENIZERS or path.endswith(_TOKENIZER_SUFFIXES)) for path in snapshot.files
    ) or all(path in snapshot.files for path in _TOKENIZER_PAIR)


def _listing_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    if snapshot.unreadable:
        return unhealthy(f"Directory cannot be read: {snapshot.unreadable}")
    return absent(snapshot, Gap("No snapshots found")) if snapshot.incomplete else None


def _link_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    """Find dangling links, for example into a blob store that was cleaned."""
    if not snapshot.dangling:
        return None
    sizes = [snapshot.expected.get(path) for path in snapshot.dangling]
    missing = sum(size or 0 for size in sizes) if all(size is not None for size in sizes) else None
    amount = f" ({missing} bytes missing)" if missing else ""
    return unhealthy(f"Broken links: {listed(snapshot.dangling)}{amount}", snapshot.dangling, missing)


def _pointer_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    if not snapshot.pointers:
        return None
    return unhealthy(f"LFS pointers instead of files: {', '.join(snapshot.pointers)}", snapshot.pointers)


def _adapter_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    if not snapshot.document(ADAPTER_CONFIG).mapping:
        return unhealthy(f"{ADAPTER_CONFIG} is no JSON object", (ADAPTER_CONFIG,))
    weights = next((path for path in ADAPTER_WEIGHTS if path in snapshot.files), None)
    if weights is None:
        return absent(snapshot, Gap(f"{ADAPTER_WEIGHTS[0]} missing", (ADAPTER_WEIGHTS[0],)))
    header = snapshot.headers[weights]
    if header.damage is not None:
        return unhealthy(f"{weights}: {header.damage.value}", (weights,))
    return None if header.tensors else unhealthy(f"{weights} has no tensors in it", (weights,))


def _config_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    if CONFIG not in snapshot.files:
        return absent(snapshot, Gap(f"{CONFIG} missing", (CONFIG,)))
    document = snapshot.document(CONFIG)
    if not document.valid:
        return unhealthy(_because(f"{CONFIG} contains invalid JSON", document.problem), (CONFIG,))
    return None if document.mapping else unhealthy(f"{CONFIG} is empty or invalid", (CONFIG,))


def _layout_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    """Find weight files whose size or layout contradicts their header."""
    damaged = {path: header for path, header in sorted(snapshot.headers.items()) if header.damage}
    if not damaged:
        return None
    worst = next(kind for kind in Damage if any(header.damage is kind for header in damaged.values()))
    files = tuple(path for path, header in damaged.items() if header.damage is worst)
    missing = sum(damaged[path].missing_bytes for path in files)
    amount = f" ({missing} bytes missing)" if missing else ""
    tensor = damaged[files[0]].misshapen
    first = f" (first tensor: {tensor})" if tensor else ""
    return unhealthy(f"Damaged safetensors, {worst.value}: {listed(files)}{first}{amount}", files, missing or None)


def _count_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    """Find a config with an absurd number of layers: libraries build them all before they notice missing tensors."""
    if not snapshot.headers:
        return None
    tensors = sum(len(header.tensors) for header in snapshot.headers.values())
    most = max(tensors, HARMLESS_LAYERS)
    parts = (snapshot.config, *(value for value in snapshot.config.values() if isinstance(value, dict)))
    for name, count in itertools.chain.from_iterable(part.items() for part in parts):
        if type(count) is int and count > most and _COUNTS_LAYERS.search(name):
            return unhealthy(f"{CONFIG} counts {count} layers ({name}), the weights hold {tensors} tensors", (CONFIG,))
    return None


def _fit_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    fault = misfit(snapshot.config, snapshot.headers)
    return unhealthy(f"Config and weights do not fit together: {fault}", (CONFIG,)) if fault else None


MAX_SETTINGS_BYTES = 64 * 1024 * 1024
MAX_TOKENIZER_BYTES = 256 * 1024 * 1024
"""Ten times the largest real tokenizers."""
MAX_TEMPLATE_BYTES = 1024 * 1024


def _length_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    """Find files that are too long for a library to read into memory."""
    for path, size in sorted(snapshot.files.items()):
        most = _most_bytes(path)
        if most is not None and size > most:
            return unhealthy(f"{path} is longer than {most // 2**20} MiB", (path,))
    return None


def _most_bytes(path: str) -> int | None:
    """Return the size limit of a file that libraries read into memory at once; None for all others."""
    if is_template_file(path):
        return MAX_TEMPLATE_BYTES
    if "/" in path:
        return None
    if path in _TOKENIZERS or path in _TOKENIZER_PAIR or path.endswith(_TOKENIZER_SUFFIXES):
        return MAX_TOKENIZER_BYTES
    return MAX_SETTINGS_BYTES if path in _SETTINGS else None


def _size_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    """Find files whose size differs from the hub's listing."""
    wrong = {
        path: size - snapshot.files[path]
        for path, size in sorted(snapshot.expected.items())
        if snapshot.files.get(path, size) != size
    }
    if not wrong:
        return None
    files = tuple(wrong)
    missing = sum(lack for lack in wrong.values() if lack > 0)
    if missing:
        return unhealthy(f"{PARTIAL_DOWNLOAD}: {listed(files)} ({missing} bytes missing)", files, missing)
    return unhealthy(f"Size differs from the download: {listed(files)}", files)


def _vision_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    name = next((path for path in (PREPROCESSOR_CONFIG, PROCESSOR_CONFIG) if path in snapshot.files), None)
    expected = tuple(path for path in (PREPROCESSOR_CONFIG, PROCESSOR_CONFIG) if path in snapshot.expected)
    needless = name is None and not expected and detection.needs_no_preprocessor(snapshot.config)
    if needless or detection.is_speech(snapshot) or not detection.is_vision(snapshot):
        return None
    if name is None:
        return absent(snapshot, Gap(f"Vision model missing {PREPROCESSOR_CONFIG} or {PROCESSOR_CONFIG}", expected))
    document = snapshot.document(name)
    if not document.valid:
        return unhealthy(_because(f"{name} invalid JSON", document.problem), (name,))
    return None if isinstance(document.value, dict) else unhealthy(f"{name} invalid", (name,))


def _tokenizer_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    stated = TOKENIZER_CONFIG in snapshot.files
    if stated:
        document = snapshot.document(TOKENIZER_CONFIG)
        if not document.valid:
            reason = _because(f"{TOKENIZER_CONFIG} contains invalid JSON", document.problem)
            return unhealthy(reason, (TOKENIZER_CONFIG,))
        if not isinstance(document.value, dict):
            return unhealthy(f"{TOKENIZER_CONFIG} exists but invalid", (TOKENIZER_CONFIG,))
    if snapshot.cut:
        return unhealthy(f"Cut short, no whole JSON object: {listed(snapshot.cut)}", snapshot.cut)
    if has_tokenizer(snapshot) or not (stated or _needs_tokenizer(snapshot)):
        return None
    expected = tuple(path for path in ("tokenizer.json", "tokenizer.model") if path in snapshot.expected)[:1]
    reason = f"{TOKENIZER_CONFIG} present but tokenizer.json missing" if stated else "No tokenizer found"
    return absent(snapshot, Gap(reason, expected))


def _needs_tokenizer(snapshot: ModelSnapshot) -> bool:
    """Whether the model generates text and its tokenizer is not in the weights, as in GGUF files."""
    classes = detection.listed(snapshot.config)
    generates = any(isinstance(name, str) and "ForCausalLM" in name for name in classes)
    return generates and not snapshot.has_any(".gguf")


def _because(reason: str, problem: str | None) -> str:
    return f"{reason} ({problem})" if problem else reason


_RULES: tuple[Callable[[ModelSnapshot], HealthReport | None], ...] = (
    _listing_fault,
    _link_fault,
    _pointer_fault,
    _config_fault,
    find_fault,
    _layout_fault,
    _count_fault,
    _fit_fault,
    _length_fault,
    _size_fault,
    _vision_fault,
    _tokenizer_fault,
)

_ADAPTER_RULES = (_listing_fault, _link_fault, _pointer_fault, _adapter_fault)
"""The rules for adapters, in order."""
