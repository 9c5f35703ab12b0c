"""A model on disk: its resolved handle, capabilities, health, workspace and description, and its name for clients.

A ``ModelHandle`` is created once, by resolution, and passed on to every entrypoint and adapter. The other values are
found by ``detection`` and ``integrity``.
"""

import datetime
import enum
import hashlib
from collections.abc import Mapping

import attrs

from mlxk.domain.errors import Remedy
from mlxk.domain.models.kv_cache import CacheShape


class Capability(enum.Enum):
    """One thing a model can do; values are the names in the JSON API, and the order is the order of listing."""

    TEXT_GENERATION = "text-generation"
    CHAT = "chat"
    VISION = "vision"
    AUDIO = "audio"
    AUDIO_TRANSLATE_EN = "audio-translate-en"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    TEXT_TO_SPEECH = "text-to-speech"
    VOICE_CLONING = "voice-cloning"
    """Speech in the voice of a recording that comes with the text."""
    MULTI_VECTOR = "multi-vector"
    """Embeddings of several vectors, one of each token, for late interaction."""


OPERATIONS = (
    Capability.TEXT_GENERATION,
    Capability.AUDIO,
    Capability.EMBEDDINGS,
    Capability.RERANK,
    Capability.TEXT_TO_SPEECH,
)
"""What models are loaded for. A model is loaded for the first of these that it can do: ``AUDIO`` alone is speech to
text, beside ``TEXT_GENERATION`` it is one more kind of input."""


class Framework(enum.Enum):
    """The format of a model's weights."""

    MLX = "MLX"
    GGUF = "GGUF"
    PYTORCH = "PyTorch"
    UNKNOWN = "Unknown"


class ModelType(enum.Enum):
    """The kind of a model in one word; values are the names in the JSON API."""

    CHAT = "chat"
    BASE = "base"
    EMBEDDING = "embedding"
    RERANKER = "reranker"
    AUDIO = "audio"
    VOICE = "voice"
    ADAPTER = "adapter"
    """No model by itself: it changes the answers of the one that it was trained on."""


DEDICATED_TYPES = {
    Capability.AUDIO: ModelType.AUDIO,
    Capability.EMBEDDINGS: ModelType.EMBEDDING,
    Capability.RERANK: ModelType.RERANKER,
    Capability.TEXT_TO_SPEECH: ModelType.VOICE,
}
"""The types of models that do one operation and do not generate text, by operation."""


class HealthStatus(enum.Enum):
    """Complete and undamaged, or not. There is no third state: files that cannot be judged are unhealthy."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


PARTIAL_DOWNLOAD = "Partial download"
"""Begins the reason of a model whose download was not finished."""


@attrs.frozen
class HealthReport:
    """The result of a check of a model's files."""

    status: HealthStatus
    reason: str
    """One sentence; also given when healthy."""
    files: tuple[str, ...] = ()
    """The files at fault, relative to the model's directory, sorted."""
    missing_bytes: int | None = None
    """How many bytes a partial download still lacks, where that is known."""
    fix: Remedy | None = None
    """The repair of the files, where one is known."""

    @property
    def healthy(self) -> bool:
        """Whether nothing was found wrong with the files."""
        return self.status is HealthStatus.HEALTHY

    @property
    def unfinished(self) -> bool:
        """Whether a download of the model was not finished."""
        return self.reason.startswith(PARTIAL_DOWNLOAD)


def healthy(reason: str = "Model is healthy") -> HealthReport:
    """Build a report of a complete, undamaged model."""
    return HealthReport(HealthStatus.HEALTHY, reason)


def unhealthy(
    reason: str, files: tuple[str, ...] = (), missing_bytes: int | None = None, fix: Remedy | None = None
) -> HealthReport:
    """Build a report of a damaged or incomplete model."""
    return HealthReport(HealthStatus.UNHEALTHY, reason, tuple(sorted(files)), missing_bytes or None, fix)


SENTINEL_NAME = ".mlxk_workspace.json"

_OTHER_DIRECTORIES = (".hf_cache/", ".git/")


@attrs.frozen
class Workspace:
    """The provenance and state of one workspace."""

    managed: bool
    source_repo: str | None = None
    """The repository it was cloned or converted from."""
    source_revision: str | None = None
    operation: str | None = None
    """The operation that created it: clone, convert, tune or fuse."""
    created: datetime.datetime | None = None
    content_hash: str | None = None
    """``sha256:`` and 64 hexadecimal digits, as recorded."""
    hash_modified: datetime.datetime | None = None
    """When the hash was last recorded."""
    clean: bool | None = None
    """Whether the content still has the recorded hash; None without a recorded hash."""


def is_part_of_model(path: str) -> bool:
    """Whether a file belongs to the model, not to the workspace, the hub client or git.

    Args:
        path: Relative to the workspace, with ``/`` between parts.
    """
    return path != SENTINEL_NAME and not path.startswith(_OTHER_DIRECTORIES)


class Origin(enum.Enum):
    """Where a model is stored."""

    CACHE = "cache"
    WORKSPACE = "workspace"
    BUILT_IN = "built-in"


@attrs.frozen
class ModelHandle:
    """One resolved model: the immutable identity that every later step uses."""

    name: str
    """``org/name`` in the cache, the absolute directory of a workspace, the bare name of a built-in."""
    directory: str
    """Absolute directory that holds the files."""
    origin: Origin
    revision: str | None = None
    """The snapshot's directory name in the cache; None elsewhere."""
    display_name: str | None = None
    """The name of a workspace in listings, as the user typed it."""
    alias: str | None = attrs.field(default=None, eq=False)
    """The user's own name by which it was found; it is the same model without."""
    adapter: str | None = attrs.field(default=None, eq=False)
    """Absolute directory of the adapter that was named, whose base it is; it is the same model without."""

    @property
    def short_name(self) -> str:
        """The last part of the name: a model's name without its organization, a workspace's directory name."""
        return self.name.rstrip("/").rpartition("/")[2]

    @property
    def label(self) -> str:
        """Its name in messages: a workspace as the user typed it, any other model by its name."""
        return self.display_name or self.name

    @property
    def commit(self) -> str | None:
        """The revision when it is a full commit hash (40 hexadecimal digits), else None."""
        revision = self.revision
        return revision if revision and len(revision) == 40 and not revision.strip("0123456789abcdef") else None


@attrs.frozen
class Quantization:
    """The quantization of weights."""

    bits: int
    group_size: int
    mode: str = "affine"


@attrs.frozen
class FileEntry:
    """One file of a model."""

    path: str
    """Relative to the model's directory, with ``/`` between parts."""
    size_bytes: int


@attrs.frozen
class Runtime:
    """Whether an installed backend can run the model, judged by its files."""

    compatible: bool
    reason: str | None = None
    """Why not; None when compatible."""
    backends: tuple[str, ...] = ()
    """The backends for the model, the preferred one first; opaque names, see ``BackendRegistry``."""
    remedy: Remedy | None = None
    """What helps where it cannot; None when nothing is known to."""


@attrs.frozen
class ModelDescription:
    """The description of one model in a listing."""

    handle: ModelHandle
    size_bytes: int
    """Sum of the model's regular files, links followed, without weights that do not belong to it."""
    modified: datetime.datetime
    """When the directory last changed, in UTC."""
    framework: Framework
    model_type: ModelType
    capabilities: tuple[Capability, ...]
    context_length: int | None
    """Tokens; None when the config does not state it."""
    health: HealthReport
    runtime: Runtime
    workspace: Workspace | None = None
    """The state of a workspace; None for other models."""
    weight_bytes: int = 0
    """Sum of the weight files."""
    cache_per_token: int = 0
    """The most bytes that the KV cache of one token takes in 16 bits; 0 when the config does not state them."""
    cache_shape: CacheShape = attrs.field(factory=CacheShape)
    """What the config says of keys and values."""
    half_bytes: int = 0
    """What floating-point numbers of 16 bits take of the weights, at most."""
    quantized: bool = False
    """Whether some of its weights are packed in fewer bits."""
    undivided_bytes: int = 0
    """What is not part of a layer, such as embeddings, which every process holds that computes it with others."""
    plain_bytes: int | None = None
    """What its weights take as numbers of 32 bits, its quantized layers unpacked; None where none are, or unknown."""

    def can(self, capability: Capability) -> bool:
        """Whether the model has a capability."""
        return capability in self.capabilities

    @property
    def operation(self) -> Capability | None:
        """The operation the model is loaded for, one of ``OPERATIONS``; None when it can do none of them."""
        return next((capability for capability in OPERATIONS if capability in self.capabilities), None)

    @property
    def content_hash(self) -> str | None:
        """The identity of the exact weights: a workspace's recorded hash, or a cached model's commit."""
        return self.handle.revision if self.workspace is None else self.workspace.content_hash

    @property
    def reason(self) -> str | None:
        """The first thing wrong: the health finding, else the runtime's, else None."""
        return self.runtime.reason if self.health.healthy else self.health.reason

    @property
    def runnable(self) -> bool:
        """Whether ``run`` will accept it."""
        return self.health.healthy and self.runtime.compatible


class ToolsMissing(enum.Enum):
    """What a model lacks for tool calls; values are those of the JSON API."""

    TEMPLATE = "template"
    """Its chat template does not read tools, or it has none."""
    FORMAT = "format"
    """It writes calls in a format that is not known."""


@attrs.frozen
class AdapterBase:
    """The model that an adapter belongs to."""

    name: str | None
    """Its name in messages; None where it is not here."""
    problem: str | None
    """Why it is not here."""
    differs: bool | None = None
    """Whether it has other weights than what the adapter was trained on; None when unknown."""


@attrs.frozen
class ModelDetails:
    """A description with the details that ``show`` adds."""

    description: ModelDescription
    files: tuple[FileEntry, ...]
    config: Mapping[str, object] | None
    """``config.json`` as stored; None when absent or not an object."""
    quantization: Quantization | None
    parameters: int | None
    """Weights counted from the safetensors headers, unpacked when quantized; None when they cannot be read."""
    license: str | None
    """From the model card's front matter."""
    chat_template: bool
    template_read: bool
    """Whether the text of a template was found; without one, tools and reasoning are unknown."""
    tools_missing: ToolsMissing | None
    """What it lacks for tool calls; None when it lacks nothing."""
    supports_reasoning: bool
    strays: tuple[str, ...] = ()
    """Weight files beside the model that are neither loaded nor counted, sorted."""
    template_text: str = ""
    """The chat template; empty when none was found."""
    inserts: bool = False
    """Whether the files of its tokenizer name tokens for text between a prefix and a suffix."""
    voices: tuple[str, ...] = ()
    """The names of the voices in which it speaks, the usual one first; none for one that has no names for them."""
    base: AdapterBase | None = None
    """Of an adapter alone."""

    @property
    def may_reason(self) -> bool:
        """Whether it reasons as far as is known; without the text of a template, it may."""
        return self.supports_reasoning or not self.template_read

    @property
    def supports_tools(self) -> bool:
        """Whether the model is told about tools, and its calls are understood."""
        return self.tools_missing is None


@attrs.frozen
class ServedModel:
    """A model that clients can name."""

    id: str
    """The name clients use; never a path of this machine."""
    details: ModelDetails
    alias_of: str | None = None
    """The model's own name, where ``id`` is an alias of the operator."""
    stands_in: bool = False
    """Whether the client named a model that does not exist, for which the operator has this one answer."""
    adapter_version: str | None = None
    """Identifies the adapter with which it answers; None without one."""

    @property
    def description(self) -> ModelDescription:
        """Its description."""
        return self.details.description

    @property
    def handle(self) -> ModelHandle:
        """Its handle."""
        return self.description.handle

    @property
    def can_chat(self) -> bool:
        """Whether it has a chat template."""
        return Capability.CHAT in self.description.capabilities

    @property
    def is_transcription_only(self) -> bool:
        """Whether it transcribes speech and generates no text of its own."""
        return self.description.operation is Capability.AUDIO

    @property
    def fingerprint(self) -> str:
        """Identifies exactly these weights, equally on every machine."""
        version = self.description.content_hash or ""
        facts = f"{self.alias_of or self.id}\n{version}\n{self.description.size_bytes}"
        facts += f"\n{self.adapter_version}" if self.adapter_version is not None else ""
        return f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def served_id(handle: ModelHandle) -> str:
    """Return the name of a model for clients."""
    return handle.short_name if handle.origin is Origin.WORKSPACE else handle.name
