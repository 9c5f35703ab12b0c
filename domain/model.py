"""A model on this machine: its resolved handle, the facts read from its files, and the description shown to people.

``ModelHandle`` is made once, by resolution, and passed to every door and adapter: nothing resolves a name twice.
"""

import datetime
import enum
from collections.abc import Mapping

import attrs

from mlxk.domain.capabilities import Backend, Capability, Framework, ModelType
from mlxk.domain.health import HealthReport
from mlxk.domain.workspace import Workspace


class Origin(enum.Enum):
    """Where a model lives."""

    CACHE = "cache"
    WORKSPACE = "workspace"
    BUILT_IN = "built-in"


@attrs.frozen
class ModelHandle:
    """One model, found: the immutable identity every later step works on."""

    name: str
    """``org/name`` in the cache, the absolute directory of a workspace, the bare name of a built-in."""
    directory: str
    """Absolute directory that holds the files."""
    origin: Origin
    revision: str | None = None
    """The snapshot's directory name in the cache; None elsewhere."""
    display_name: str | None = None
    """How a listing shows a workspace: relative names as asked, absolute ones as asked."""

    @property
    def short_name(self) -> str:
        """The last part of the name: a model's name without its organization, a workspace's directory name."""
        return self.name.rstrip("/").rpartition("/")[2]

    @property
    def label(self) -> str:
        """How messages call it: a workspace as it was asked for, anything else by its name."""
        return self.display_name or self.name

    @property
    def commit(self) -> str | None:
        """The revision when it is a full commit hash (40 hexadecimal digits), else None."""
        revision = self.revision
        return revision if revision and len(revision) == 40 and not revision.strip("0123456789abcdef") else None


@attrs.frozen
class Quantization:
    """How weights were quantized."""

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
    """Whether an installed backend can run the model, as far as its files tell."""

    compatible: bool
    reason: str | None = None
    """Why not; None when compatible."""


@attrs.frozen
class ModelDescription:
    """Everything a listing says about one model."""

    handle: ModelHandle
    size_bytes: int
    """Sum of all regular files, links followed."""
    modified: datetime.datetime
    """When the directory last changed, in UTC."""
    framework: Framework
    model_type: ModelType
    capabilities: tuple[Capability, ...]
    context_length: int | None
    """Tokens; None when the config does not say."""
    health: HealthReport
    runtime: Runtime
    workspace: Workspace | None = None
    """Provenance and state, for workspaces only."""
    text_backends: tuple[Backend, ...] = ()
    """What can write text with it, the one to prefer first; empty when nothing is known to."""

    def can(self, capability: Capability) -> bool:
        """Whether the model has a capability."""
        return capability in self.capabilities

    @property
    def content_hash(self) -> str | None:
        """What names the exact weights: a workspace's recorded hash, or a cached model's commit."""
        return self.handle.revision if self.workspace is None else self.workspace.content_hash

    @property
    def reason(self) -> str | None:
        """The first thing wrong: the health finding, else the runtime's, else None."""
        return self.runtime.reason if self.health.healthy else self.health.reason

    @property
    def runnable(self) -> bool:
        """Whether ``run`` will accept it."""
        return self.health.healthy and self.runtime.compatible


@attrs.frozen
class ModelDetails:
    """What ``show`` adds to a description."""

    description: ModelDescription
    files: tuple[FileEntry, ...]
    config: Mapping[str, object] | None
    """``config.json`` as it is; None when absent or not an object."""
    quantization: Quantization | None
    parameters: int | None
    """Weights counted from the safetensors headers, unpacked when quantized; None when they cannot be read."""
    license: str | None
    """From the model card's front matter."""
    chat_template: bool
    template_read: bool
    """Whether the text of a template was found; without one nothing is known about tools and reasoning."""
    supports_tools: bool
    supports_reasoning: bool
