"""A model on disk: its resolved handle, capabilities, health, workspace and description, and its name for clients.

A ``ModelHandle`` is created once, by resolution, and passed to all entrypoints and adapters. ``detection`` and
``integrity`` determine the other values.
"""

import datetime
import enum
import hashlib
from collections.abc import Mapping

import attrs

from mlxk.domain.errors import Remedy
from mlxk.domain.models.kv_cache import CacheShape


class Capability(enum.Enum):
    """A capability of a model; values are the names in the JSON API, in display order."""

    TEXT_GENERATION = "text-generation"
    CHAT = "chat"
    VISION = "vision"
    AUDIO = "audio"
    AUDIO_TRANSLATE_EN = "audio-translate-en"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    TEXT_TO_SPEECH = "text-to-speech"
    VOICE_CLONING = "voice-cloning"
    """Speech in the voice of a recording in the request."""
    MULTI_VECTOR = "multi-vector"
    """Embeddings with one vector for each token, for late interaction."""


OPERATIONS = (
    Capability.TEXT_GENERATION,
    Capability.AUDIO,
    Capability.EMBEDDINGS,
    Capability.RERANK,
    Capability.TEXT_TO_SPEECH,
)
"""The operations for which models are loaded. A model is loaded for the first of these that it has: ``AUDIO`` alone is
speech to text, beside ``TEXT_GENERATION`` it is a kind of input."""


class Framework(enum.Enum):
    """The format of a model's weights."""

    MLX = "MLX"
    GGUF = "GGUF"
    PYTORCH = "PyTorch"
    UNKNOWN = "Unknown"


class ModelType(enum.Enum):
    """The type of a model; values are the names in the JSON API."""

    CHAT = "chat"
    BASE = "base"
    EMBEDDING = "embedding"
    RERANKER = "reranker"
    AUDIO = "audio"
    VOICE = "voice"
    ADAPTER = "adapter"
    """Not a complete model: trained changes to a base model."""


DEDICATED_TYPES = {
    Capability.AUDIO: ModelType.AUDIO,
    Capability.EMBEDDINGS: ModelType.EMBEDDING,
    Capability.RERANK: ModelType.RERANKER,
    Capability.TEXT_TO_SPEECH: ModelType.VOICE,
}
"""Operation to the type of models that do only this operation and generate no text."""


class HealthStatus(enum.Enum):
    """Whether files are complete and undamaged. Files that cannot be judged are unhealthy."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


PARTIAL_DOWNLOAD = "Partial download"
"""Prefix of the reason of a model whose download is incomplete."""


@attrs.frozen
class HealthReport:
    """The result of a check of a model's files."""

    status: HealthStatus
    reason: str
    """One sentence; also given when healthy."""
    files: tuple[str, ...] = ()
    """The files at fault, relative to the model's directory, sorted."""
    missing_bytes: int | None = None
    """Bytes that a partial download lacks; None when unknown."""
    fix: Remedy | None = None
    """How to repair the files; None when unknown."""

    @property
    def healthy(self) -> bool:
        """Whether the files are complete and undamaged."""
        return self.status is HealthStatus.HEALTHY

    @property
    def unfinished(self) -> bool:
        """Whether the model is a partial download."""
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
"""The file that makes a directory a managed workspace, and records its provenance."""

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
    """Time when the hash was last recorded."""
    clean: bool | None = None
    """Whether the content still has the recorded hash; None without a recorded hash."""


def is_part_of_model(path: str) -> bool:
    """Whether a file belongs to the model, and not to the workspace's records, the hub client or git.

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
    """The immutable identity of a resolved model."""

    name: str
    """``org/name`` in the cache, the absolute directory of a workspace, the bare name of a built-in model."""
    directory: str
    """Absolute path of the directory with the files."""
    origin: Origin
    revision: str | None = None
    """Name of the snapshot's directory in the cache, usually a commit; None elsewhere."""
    display_name: str | None = None
    """A workspace's name for messages and listings: as the user typed it, or the directory's name; None elsewhere."""
    alias: str | None = attrs.field(default=None, eq=False)
    """The user's own name by which the model was found; None for any other reference."""
    adapter: str | None = attrs.field(default=None, eq=False)
    """Absolute directory of the adapter that the reference named, if this model is its base; None without one."""

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
    """What makes it compatible; None when nothing is known to."""


@attrs.frozen
class ModelDescription:
    """The description of one model in a listing."""

    handle: ModelHandle
    size_bytes: int
    """Total size of the model's regular files, links followed, without stray weights."""
    modified: datetime.datetime
    """Time of the last change of the directory, in UTC."""
    framework: Framework
    model_type: ModelType
    capabilities: tuple[Capability, ...]
    context_length: int | None
    """Context window, tokens; None when the config does not state it."""
    health: HealthReport
    runtime: Runtime
    workspace: Workspace | None = None
    """The state of a workspace; None for other models."""
    weight_bytes: int = 0
    """Total size of the weight files."""
    cache_per_token: int = 0
    """Upper bound of the KV cache in 16 bits, bytes per token; 0 when the config does not state its shape."""
    cache_shape: CacheShape = attrs.field(factory=CacheShape)
    """Shape of the KV cache by the config."""
    half_bytes: int = 0
    """Upper bound of the bytes of the weights that are 16-bit floating-point numbers."""
    quantized: bool = False
    """Whether some of its weights are quantized."""
    undivided_bytes: int = 0
    """Size of the weights outside of layers, such as embeddings; every rank of a spread model holds these."""
    plain_bytes: int | None = None
    """Size of the weights as 32-bit numbers with unpacked layers; None without quantized layers, or when unknown."""

    def can(self, capability: Capability) -> bool:
        """Whether the model has a capability."""
        return capability in self.capabilities

    @property
    def operation(self) -> Capability | None:
        """The operation for which the model is loaded, one of ``OPERATIONS``; None when it has none of them."""
        return next((capability for capability in OPERATIONS if capability in self.capabilities), None)

    @property
    def content_hash(self) -> str | None:
        """The identity of the exact weights: a workspace's recorded hash, or a cached model's commit."""
        return self.handle.revision if self.workspace is None else self.workspace.content_hash

    @property
    def reason(self) -> str | None:
        """Why the model cannot run: the health report's reason, else the runtime's; None when it can."""
        return self.runtime.reason if self.health.healthy else self.health.reason

    @property
    def runnable(self) -> bool:
        """Whether the model is healthy and compatible."""
        return self.health.healthy and self.runtime.compatible


class ToolsMissing(enum.Enum):
    """What a model lacks for tool calls; values are the names in the JSON API."""

    TEMPLATE = "template"
    """A chat template that renders tools."""
    FORMAT = "format"
    """A known format of calls."""


@attrs.frozen
class AdapterBase:
    """The base model of an adapter."""

    name: str | None
    """Its name in messages; None where it is not on this machine."""
    problem: str | None
    """Why it was not found; None when it was."""
    differs: bool | None = None
    """Whether its weights differ from those that the adapter was trained on; None when unknown."""


@attrs.frozen
class ModelDetails:
    """A description with further details of one model."""

    description: ModelDescription
    files: tuple[FileEntry, ...]
    config: Mapping[str, object] | None
    """``config.json`` as stored; None when absent or not an object."""
    quantization: Quantization | None
    parameters: int | None
    """Number of weights by the safetensors headers, unpacked when quantized; None when they cannot be read."""
    license: str | None
    """From the model card's front matter."""
    chat_template: bool
    """Whether it has a chat template, or a library has code in place of one."""
    template_read: bool
    """Whether the text of a template was found; without it, support of tools and reasoning is unknown."""
    tools_missing: ToolsMissing | None
    """What it lacks for tool calls; None when it lacks nothing."""
    supports_reasoning: bool
    strays: tuple[str, ...] = ()
    """Weight files beside the model that are neither loaded nor counted, sorted."""
    template_text: str = ""
    """The chat template; empty when none was found."""
    inserts: bool = False
    """Whether its tokenizer has fill-in-the-middle tokens."""
    voices: tuple[str, ...] = ()
    """Names of its voices, the default first; empty for a model without named voices."""
    base: AdapterBase | None = None
    """The base of an adapter; None for any other model."""

    @property
    def may_reason(self) -> bool:
        """Whether it supports reasoning, or that is unknown for lack of a template's text."""
        return self.supports_reasoning or not self.template_read

    @property
    def supports_tools(self) -> bool:
        """Whether the chat template renders tools and the model's calls can be parsed."""
        return self.tools_missing is None


@attrs.frozen
class ServedModel:
    """A model that clients of the server can name."""

    id: str
    """The model's name for clients; never a path of this machine."""
    details: ModelDetails
    alias_of: str | None = None
    """The model's own name, where ``id`` is an alias set by the operator."""
    stands_in: bool = False
    """Whether it is the operator's fallback for an unknown model that the client named."""
    adapter_version: str | None = None
    """Identifies the version of the adapter in use; None without one."""

    @property
    def description(self) -> ModelDescription:
        """The model's description."""
        return self.details.description

    @property
    def handle(self) -> ModelHandle:
        """The model's handle."""
        return self.description.handle

    @property
    def can_chat(self) -> bool:
        """Whether it has a chat template."""
        return Capability.CHAT in self.description.capabilities

    @property
    def is_transcription_only(self) -> bool:
        """Whether it is a speech-to-text model, which generates no other text."""
        return self.description.operation is Capability.AUDIO

    @property
    def fingerprint(self) -> str:
        """Identifies the model and its exact weights; equal on all machines."""
        version = self.description.content_hash or ""
        facts = f"{self.alias_of or self.id}\n{version}\n{self.description.size_bytes}"
        facts += f"\n{self.adapter_version}" if self.adapter_version is not None else ""
        return f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def served_id(handle: ModelHandle) -> str:
    """Return a model's name for clients: without the path of a workspace."""
    return handle.short_name if handle.origin is Origin.WORKSPACE else handle.name
