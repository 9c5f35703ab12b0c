"""Integrity: whether a model's files are complete and undamaged, judged by names, sizes, headers and JSON files.

The rules have an order; the first one broken is the reason given. "Healthy" does not mean that the bytes of large files
are those that were published: the content verifier, which reads all of them, checks that.
"""

import itertools
import re
from collections.abc import Callable

from mlxk.domain.models import detection, weight_files
from mlxk.domain.models.model import HealthReport, healthy, unhealthy
from mlxk.domain.models.safetensors import Damage
from mlxk.domain.models.snapshot import CONFIG, PREPROCESSOR_CONFIG, PROCESSOR_CONFIG, TOKENIZER_CONFIG, ModelSnapshot
from mlxk.domain.models.weight_files import Gap, absent, listed

HARMLESS_LAYERS = 1000
"""Layers that a library builds quickly, with or without tensors for them; no model has as many."""

_COUNTS_LAYERS = re.compile(r"(^|_)(layers?|depth|blocks)$")
"""Names in a config that count layers."""

_TOKENIZERS = frozenset({"tokenizer.json", "tekken.json"})
_TOKENIZER_SUFFIXES = (".model", ".model.v3", ".spm", ".tiktoken", "vocab.txt")
_TOKENIZER_PAIR = ("vocab.json", "merges.txt")


def check(snapshot: ModelSnapshot) -> HealthReport:
    """Check a model's files. Never raises."""
    for rule in _RULES:
        fault = rule(snapshot)
        if fault:
            return fault
    return healthy("Multi-file model complete" if weight_files.weight_index(snapshot) else "Model is healthy")


def has_tokenizer(snapshot: ModelSnapshot) -> bool:
    """Whether there is a tokenizer in any format that the libraries read."""
    return any(
        "/" not in path and (path in _TOKENIZERS or path.endswith(_TOKENIZER_SUFFIXES)) for path in snapshot.files
    ) or all(path in snapshot.files for path in _TOKENIZER_PAIR)


def _listing_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    if snapshot.unreadable:
        return unhealthy(f"Directory cannot be read: {snapshot.unreadable}")
    return absent(snapshot, Gap("No snapshots found")) if snapshot.incomplete else None


def _link_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    """Find links whose content is gone, such as those into a blob store that was cleaned."""
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


def _config_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    if CONFIG not in snapshot.files:
        return absent(snapshot, Gap(f"{CONFIG} missing", (CONFIG,)))
    document = snapshot.document(CONFIG)
    if not document.valid:
        return unhealthy(_because(f"{CONFIG} contains invalid JSON", document.problem), (CONFIG,))
    return None if document.mapping else unhealthy(f"{CONFIG} is empty or invalid", (CONFIG,))


def _layout_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    """Find files that contradict their header."""
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
    """Find a config with an absurd number of layers: libraries build all of them before they notice missing tensors."""
    if not snapshot.headers:
        return None
    tensors = sum(len(header.tensors) for header in snapshot.headers.values())
    most = max(tensors, HARMLESS_LAYERS)
    parts = (snapshot.config, *(value for value in snapshot.config.values() if isinstance(value, dict)))
    for name, count in itertools.chain.from_iterable(part.items() for part in parts):
        if type(count) is int and count > most and _COUNTS_LAYERS.search(name):
            return unhealthy(f"{CONFIG} counts {count} layers ({name}), the weights hold {tensors} tensors", (CONFIG,))
    return None


def _size_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    """Find files whose size differs from the one the hub listed."""
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
        return unhealthy(f"Partial download: {listed(files)} ({missing} bytes missing)", files, missing)
    return unhealthy(f"Size differs from the download: {listed(files)}", files)


def _vision_fault(snapshot: ModelSnapshot) -> HealthReport | None:
    if detection.is_speech(snapshot) or not detection.is_vision(snapshot):
        return None
    name = next((path for path in (PREPROCESSOR_CONFIG, PROCESSOR_CONFIG) if path in snapshot.files), None)
    if name is None:
        expected = tuple(path for path in (PREPROCESSOR_CONFIG, PROCESSOR_CONFIG) if path in snapshot.expected)
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
    """Whether the model writes text and does not carry its tokenizer inside the weights, as GGUF files do."""
    classes = snapshot.config.get("architectures")
    writes = isinstance(classes, list) and any(isinstance(name, str) and "ForCausalLM" in name for name in classes)
    return writes and not snapshot.has_any(".gguf")


def _because(reason: str, problem: str | None) -> str:
    return f"{reason} ({problem})" if problem else reason


_RULES: tuple[Callable[[ModelSnapshot], HealthReport | None], ...] = (
    _listing_fault,
    _link_fault,
    _pointer_fault,
    _config_fault,
    weight_files.find_fault,
    _layout_fault,
    _count_fault,
    _size_fault,
    _vision_fault,
    _tokenizer_fault,
)
