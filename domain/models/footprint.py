"""What a model takes: memory, and whether this machine has it; the disk, and what of it nothing uses. All in bytes.

    needed = W + K * C + R          fits when needed <= budget

``W`` is the size of the weight files, ``K`` the KV cache of one token, ``C`` the tokens of context, ``R`` a reserve for
activations and buffers. The budget is a share of the memory available to MLX (``BUDGET_SHARE``). Readings come from the
``MemoryProbe`` port; whether a verdict is an error or a warning is the policy's decision.

Without an accelerator, numbers of 16 bits are emulated, which makes quantized layers many times slower than numbers of
32 bits, and so other layers where a library of the machine multiplies those. Where it pays and memory allows, weights
are therefore widened: each number of 16 bits takes twice its bytes then, in ``W`` as in ``K``. With such a library and
much free memory, quantized layers are unpacked as well.

Sizes on the disk are those that it has allocated, so that sums are what ``du`` says. Contents that several names lead
to are one content and count once.
"""

import enum
from collections.abc import Collection, Iterable, Mapping

import attrs

from mlxk.domain.models.cache_size import CacheShape
from mlxk.domain.models.snapshot import text_section

BUDGET_SHARE = 0.70
"""The share of the memory available to MLX that models may take."""

CACHE_SHARE = 0.20
"""The share that KV caches may take beside the weights: those of running sequences, and the prefix cache.

The remainder is for activations and for other processes.
"""

RESERVE_BYTES = 256 * 1024 * 1024
"""Activations, tokenizer and allocator slack; far above what a small model needs, small against a large one."""

DEFAULT_CONTEXT_TOKENS = 4096
"""Tokens of context an estimate includes by default: a long chat."""


def expected_context(window: int | None) -> int:
    """Return the tokens of context of an estimate: a long chat, or the model's context window when that is shorter."""
    return min(DEFAULT_CONTEXT_TOKENS, window or DEFAULT_CONTEXT_TOKENS)


WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".npz")

UNPACKED_SHARE = 0.5
"""The share of the free memory that a model with unpacked layers may take."""


class WeightForm(enum.Enum):
    """How weights are held in memory; values are the words for logs."""

    STORED = "its own type"
    WIDE = "float32"
    """Numbers of 16 bits, such as the scales of quantized layers, in 32 bits."""
    PLAIN = "float32, unpacked"

    @property
    def widened(self) -> bool:
        """Whether no numbers of 16 bits are left."""
        return self is not WeightForm.STORED


class Widening(enum.Enum):
    """When weights of 16 bits are held in 32 bits."""

    NEVER = "never"
    WHERE_FREE = "where free"
    """Where it pays, and they fit into the memory that is free now."""
    WITHIN_BUDGET = "within budget"
    """For all models that fit into the budget."""


@attrs.frozen
class Matrices:
    """What multiplies matrices of 32 bits."""

    on_cpu: bool = False
    """Whether no accelerator does."""
    library: str | None = None
    """The library of this machine that was made for it, with its version; None without one."""
    wanted: bool = True
    """Whether such a library is used where there is one."""

    @property
    def are_fast(self) -> bool:
        """Whether a CPU multiplies them about as fast as it can."""
        return self.on_cpu and self.library is not None

    @property
    def could_be_faster(self) -> bool:
        """Whether installing such a library would help."""
        return self.on_cpu and self.wanted and self.library is None


@attrs.frozen
class MemoryReading:
    """The machine's memory, in bytes."""

    total: int
    """Installed, or the limit of the control group when that is lower."""
    available: int
    """Usable right now without swapping."""
    accelerator_limit: int | None = None
    """The most an accelerator may take of unified memory, where one exists."""
    widening: Widening = Widening.NEVER
    """For weights of 16 bits; of use only where no accelerator computes."""
    swap_used: int | None = None
    """What the system has moved out of memory; None where it does not say."""

    @property
    def budget(self) -> int:
        """Bytes that all models may take together."""
        return int(self._ceiling * BUDGET_SHARE)

    @property
    def cache_budget(self) -> int:
        """Bytes that all KV caches may take together."""
        return int(self._ceiling * CACHE_SHARE)

    @property
    def _ceiling(self) -> int:
        return self.total if self.accelerator_limit is None else min(self.total, self.accelerator_limit)


class MemoryFit(enum.Enum):
    """How a model relates to the budget."""

    FITS = "fits"
    TIGHT = "tight"
    """Within the budget, but more than is available now."""
    EXCEEDS = "exceeds"
    UNKNOWN = "unknown"


@attrs.frozen
class MemoryVerdict:
    """The estimate for one model on one machine, in bytes."""

    fit: MemoryFit
    weights: int
    cache_per_token: int
    needed: int
    budget: int | None
    form: WeightForm = WeightForm.STORED
    """How the weights are held; the sizes above are those of this form."""
    widening_bytes: int = 0
    """What the form adds to the weights, or holding 16-bit numbers in 32 bits would add where they do not fit."""
    matrices: Matrices = Matrices()
    """What multiplies matrices on the machine."""


def judge_memory(
    reading: MemoryReading | None,
    weights: int,
    cache_per_token: int = 0,
    context_tokens: int = 0,
    half_bytes: int | None = None,
    plain_bytes: int | None = None,
) -> MemoryVerdict:
    """Estimate whether a model fits, in the form that the machine computes fastest and has the memory for.

    Args:
        reading: The machine's memory; None when it could not be read, and the verdict is then UNKNOWN.
        weights: Size of the weight files, bytes.
        cache_per_token: KV cache of one token in 16 bits, bytes.
        context_tokens: Tokens of context to hold.
        half_bytes: What 16-bit numbers take of the weights; None when unknown, and nothing is widened then.
        plain_bytes: What weights take of which quantized layers are unpacked; None where that is not faster.
    """
    narrow = _judge(reading, weights, cache_per_token, context_tokens)
    if reading is None or half_bytes is None or reading.widening is Widening.NEVER:
        return narrow
    if plain_bytes is not None:
        plain = _judge(reading, plain_bytes, 2 * cache_per_token, context_tokens)
        if plain.fit is MemoryFit.FITS and plain.needed <= reading.available * UNPACKED_SHARE:
            return attrs.evolve(plain, form=WeightForm.PLAIN, widening_bytes=plain_bytes - weights)
    wide = _judge(reading, weights + half_bytes, 2 * cache_per_token, context_tokens)
    allowed = {MemoryFit.FITS} if reading.widening is Widening.WHERE_FREE else {MemoryFit.FITS, MemoryFit.TIGHT}
    if wide.fit not in allowed:
        return attrs.evolve(narrow, widening_bytes=half_bytes)
    return attrs.evolve(wide, form=WeightForm.WIDE, widening_bytes=half_bytes)


def _judge(reading: MemoryReading | None, weights: int, cache_per_token: int, context_tokens: int) -> MemoryVerdict:
    needed = weights + cache_per_token * context_tokens + RESERVE_BYTES
    budget = None if reading is None else reading.budget
    return MemoryVerdict(fit_of(reading, needed), weights, cache_per_token, needed, budget)


def fit_of(reading: MemoryReading | None, needed: int) -> MemoryFit:
    """Return how so many bytes relate to a machine's memory."""
    if reading is None or needed > reading.budget:
        return MemoryFit.UNKNOWN if reading is None else MemoryFit.EXCEEDS
    return MemoryFit.TIGHT if needed > reading.available else MemoryFit.FITS


def cache_bytes_per_token(config: Mapping[str, object] | None) -> int:
    """Return the KV cache of one token, from a model's ``config.json``, bytes.

    Two tensors (keys, values) in 16 bits, for every layer and every key-value head. Models that attend to a window, or
    keep a state in place of a cache, need less: this is an upper bound. 0 when the config does not state it.
    """
    return cache_shape(config).bytes_per_token


def cache_shape(config: Mapping[str, object] | None) -> CacheShape:
    """Return the shape of a model's keys and values, from its ``config.json``."""
    values = text_section(config or {})
    layers, heads = _count(values, "num_hidden_layers", "n_layer"), _count(values, "num_attention_heads", "n_head")
    hidden = _count(values, "hidden_size", "n_embd")
    head_size = _count(values, "head_dim") or (hidden // heads if heads else 0)
    return CacheShape(layers, _count(values, "num_key_value_heads") or heads, head_size)


def _count(values: Mapping[str, object], *names: str) -> int:
    """Return the first positive integer among some keys, else 0."""
    found = (values.get(name) for name in names)
    return next((each for each in found if isinstance(each, int) and not isinstance(each, bool) and each > 0), 0)


class WasteKind(enum.Enum):
    """Why nothing needs a part of the cache."""

    REVISIONS = "revisions"
    """Revisions that no branch or tag names, and that are not the current one."""
    PARTIAL = "partial"
    """Downloads that were not finished."""
    ORPHANED = "orphaned"
    """Whole files that no revision has."""


@attrs.frozen
class StoredContent:
    """The bytes of one file on the disk."""

    name: str
    """Of the blob, or the path in the snapshot where that holds the file itself."""
    identity: str
    """The same for all names that lead to these bytes, in any model."""
    size_bytes: int
    revisions: frozenset[str] = frozenset()
    """The revisions that have the file."""
    partial: bool = False
    """Whether it belongs to a download that was not finished."""


@attrs.frozen
class StoredRevision:
    """One snapshot of a model."""

    name: str
    references: tuple[str, ...]
    """Branches and tags that point to it, sorted."""
    is_current: bool
    """Whether the name of the model alone means it."""
    own_bytes: int
    """Its directories, links and record, without the contents of files."""

    @property
    def is_old(self) -> bool:
        """Whether nothing names it."""
        return not self.is_current and not self.references


@attrs.frozen
class ModelUsage:
    """One model of the cache."""

    name: str
    """``org/name``."""
    revisions: tuple[StoredRevision, ...]
    """Sorted by name."""
    contents: tuple[StoredContent, ...]
    """Sorted by name, each once."""
    other_bytes: int = 0
    """Directories, references and records."""
    link_to: str | None = None
    """Where the model's folder leads when it is a link: nothing there is counted."""
    linked_parts: tuple[str, ...] = ()
    """Parts of the model's folder that are links to other places, of which nothing is counted; sorted."""

    @property
    def total_bytes(self) -> int:
        """Everything that the model takes."""
        own = sum(revision.own_bytes for revision in self.revisions)
        return self.other_bytes + own + sum(content.size_bytes for content in self.contents)

    @property
    def identities(self) -> frozenset[str]:
        """The contents of the model."""
        return frozenset(content.identity for content in self.contents)

    @property
    def partial(self) -> tuple[StoredContent, ...]:
        """What is left of downloads that were not finished."""
        return tuple(content for content in self.contents if content.partial)

    @property
    def orphaned(self) -> tuple[StoredContent, ...]:
        """Whole files that no revision has."""
        return tuple(content for content in self.contents if not content.partial and not content.revisions)

    def shared_bytes(self, elsewhere: Collection[str]) -> int:
        """Return the bytes that other models have as well.

        Args:
            elsewhere: The contents of other models.
        """
        return size_of(content for content in self.contents if content.identity in elsewhere)

    def unique_to(self, revision: str) -> int:
        """Return the bytes that only one revision has, its own included."""
        own = sum(each.own_bytes for each in self.revisions if each.name == revision)
        return own + size_of(content for content in self.contents if content.revisions == {revision})

    def shared_by(self, revision: str) -> int:
        """Return the bytes of a revision that other revisions have as well."""
        return size_of(each for each in self.contents if revision in each.revisions and len(each.revisions) > 1)


@attrs.frozen
class Waste:
    """What can go of one model."""

    name: str
    """``org/name``."""
    revisions: tuple[str, ...] = ()
    """Old ones."""
    partial: tuple[str, ...] = ()
    """Names of contents."""
    orphaned: tuple[str, ...] = ()
    """Names of contents."""
    whole: bool = False
    """Whether the model has no revision at all, so that nothing of it stays."""
    size_bytes: int = 0
    """What the disk gets back."""

    def within(self, shown: "Waste") -> "Waste":
        """Return what is part of another waste as well; the size is left as it is."""
        return attrs.evolve(
            self,
            revisions=tuple(each for each in self.revisions if each in shown.revisions),
            partial=tuple(each for each in self.partial if each in shown.partial),
            orphaned=tuple(each for each in self.orphaned if each in shown.orphaned),
            whole=self.whole and shown.whole,
        )


def find_waste(usage: ModelUsage, kinds: Collection[WasteKind], elsewhere: Collection[str] = ()) -> Waste | None:
    """Return what can go of a model; None when that is nothing. What links lead to is never part of it.

    Args:
        usage: The model.
        kinds: What to look for.
        elsewhere: Contents of other models, whose bytes are not freed.
    """
    if usage.link_to is not None or usage.linked_parts:
        return None
    partial = usage.partial if WasteKind.PARTIAL in kinds else ()
    orphaned = usage.orphaned if WasteKind.ORPHANED in kinds else ()
    old = [each for each in usage.revisions if each.is_old] if WasteKind.REVISIONS in kinds else []
    names = frozenset(each.name for each in old)
    going = [each for each in usage.contents if each.revisions and each.revisions <= names]
    whole = not usage.revisions and WasteKind.PARTIAL in kinds and len(partial + orphaned) == len(usage.contents)
    if not (partial or orphaned or old or whole):
        return None
    freed = size_of(each for each in (*partial, *orphaned, *going) if each.identity not in elsewhere)
    return Waste(
        usage.name,
        tuple(sorted(names)),
        tuple(content.name for content in partial),
        tuple(content.name for content in orphaned),
        whole,
        freed + sum(each.own_bytes for each in old) + (usage.other_bytes if whole else 0),
    )


def size_of(contents: Iterable[StoredContent]) -> int:
    """Return the bytes of some contents."""
    return sum(content.size_bytes for content in contents)
