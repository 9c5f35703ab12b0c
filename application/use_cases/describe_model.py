"""Describe one model: read its files once, apply the rules, return the values for a listing or ``show``.

Another process may pull or remove the model meanwhile. An unfavourable finding therefore counts only when the directory
is the same after reading as before; a model that was removed is reported as not found, never as damaged.
"""

import datetime

import attrs

from mlxk.application.ports.backend_registry import BackendRegistry
from mlxk.application.ports.model_cache import ModelCache
from mlxk.application.ports.model_files import FileListing, ModelFiles
from mlxk.application.ports.workspace_store import WorkspaceStore
from mlxk.application.snapshot_reading import read_snapshot
from mlxk.domain.errors import ModelNotFoundError, RevisionNotFoundError, StorageError
from mlxk.domain.formats.reasoning import supports_reasoning, supports_tools
from mlxk.domain.models import detection, integrity
from mlxk.domain.models.memory import WEIGHT_SUFFIXES, cache_bytes_per_token
from mlxk.domain.models.model import (
    HealthReport,
    ModelDescription,
    ModelDetails,
    ModelHandle,
    Origin,
    Runtime,
    Workspace,
)
from mlxk.domain.models.safetensors import count_parameters
from mlxk.domain.models.snapshot import CONFIG, ModelSnapshot

_ATTEMPTS = 3
"""How often a model is read when it changes meanwhile."""

_NEVER = datetime.datetime.fromtimestamp(0, datetime.UTC)


@attrs.frozen
class _Reading:
    """The files of one model, read and checked."""

    snapshot: ModelSnapshot
    listing: FileListing
    report: HealthReport
    workspace: Workspace | None


@attrs.frozen
class DescribeModel:
    """Describes resolved models."""

    files: ModelFiles
    workspaces: WorkspaceStore
    registry: BackendRegistry
    cache: ModelCache
    default_owner: str = ""
    """The hub owner whose weights are all in the format of MLX; empty for none."""

    def __call__(self, handle: ModelHandle) -> ModelDescription:
        """Return the description of a model for a listing.

        Raises:
            ModelNotFoundError: The model was removed since it was resolved.
        """
        return self._description(handle, self._read(handle))

    def details(self, handle: ModelHandle) -> ModelDetails:
        """Return the details of a model for ``show``.

        Raises:
            ModelNotFoundError: The model was removed since it was resolved.
        """
        reading = self._read(handle)
        snapshot = reading.snapshot
        config = snapshot.config
        template = detection.chat_template_text(snapshot)
        stated = config.get("quantization")
        return ModelDetails(
            description=self._description(handle, reading),
            files=reading.listing.files,
            config=config if isinstance(snapshot.document(CONFIG).value, dict) else None,
            quantization=detection.quantization(config),
            parameters=count_parameters(snapshot.headers.values(), stated if isinstance(stated, dict) else {}),
            license=snapshot.card.license,
            chat_template=detection.has_chat_template(snapshot),
            template_read=bool(template),
            supports_tools=supports_tools(template),
            supports_reasoning=supports_reasoning(template),
        )

    def health(self, handle: ModelHandle) -> HealthReport:
        """Return the health report alone.

        Raises:
            ModelNotFoundError: The model was removed since it was resolved.
        """
        return self._read(handle).report

    def _description(self, handle: ModelHandle, reading: _Reading) -> ModelDescription:
        snapshot = reading.snapshot
        architecture = detection.architecture(snapshot)
        facts = detection.detect(snapshot, None if architecture is None else self.registry.dedicated_to(architecture))
        report = reading.report
        return ModelDescription(
            handle=handle,
            size_bytes=sum(snapshot.files.values()),
            modified=reading.listing.modified,
            framework=facts.framework,
            model_type=facts.model_type,
            capabilities=facts.capabilities,
            context_length=facts.context_length,
            health=report,
            runtime=self.registry.judge(snapshot, facts) if report.healthy else Runtime(False, report.reason),
            workspace=reading.workspace,
            weight_bytes=sum(size for path, size in snapshot.files.items() if path.endswith(WEIGHT_SUFFIXES)),
            cache_per_token=cache_bytes_per_token(snapshot.config),
        )

    def _read(self, handle: ModelHandle) -> _Reading:
        for attempt in range(_ATTEMPTS):
            reading = self._read_once(handle)
            sound = reading.report.healthy and not reading.snapshot.unread
            if sound or attempt == _ATTEMPTS - 1 or self._is_settled(handle, reading):
                break
        return reading

    def _read_once(self, handle: ModelHandle) -> _Reading:
        try:
            listing = self.files.list(handle.directory)
        except StorageError as error:
            self._require_presence(handle)
            return self._unreadable(handle, error)
        workspace = self.workspaces.read(handle) if handle.origin is Origin.WORKSPACE else None
        source_repo = workspace.source_repo if workspace else None
        snapshot = read_snapshot(self.files, self.cache, handle, listing, source_repo, self.default_owner or None)
        report = integrity.check(snapshot)
        if not report.healthy and handle.origin is Origin.CACHE:
            snapshot = attrs.evolve(snapshot, unfinished=self.cache.unfinished_downloads(handle))
            report = integrity.check(snapshot)
        return _Reading(snapshot, listing, report, workspace)

    def _is_settled(self, handle: ModelHandle, reading: _Reading) -> bool:
        """Whether the directory is unchanged since it was read.

        Raises:
            ModelNotFoundError: It was removed.
        """
        try:
            return self.files.list(handle.directory) == reading.listing
        except StorageError:
            self._require_presence(handle)
            return reading.snapshot.unreadable is not None

    def _require_presence(self, handle: ModelHandle) -> None:
        """Distinguish a model that was removed from one that cannot be read.

        Raises:
            ModelNotFoundError: It was removed.
        """
        present: ModelHandle | None = handle
        if handle.origin is Origin.WORKSPACE:
            present = self.workspaces.at(handle.directory)
        elif handle.origin is Origin.CACHE:
            try:
                present = self.cache.find(handle.name, handle.revision)
            except RevisionNotFoundError:
                present = None
        if present is None:
            raise ModelNotFoundError(f"model '{handle.display_name or handle.name}' is no longer on this machine")

    def _unreadable(self, handle: ModelHandle, error: StorageError) -> _Reading:
        snapshot = ModelSnapshot(name=handle.name, origin=handle.origin, unreadable=error.message)
        workspace = Workspace(managed=False) if handle.origin is Origin.WORKSPACE else None
        return _Reading(snapshot, FileListing((), (), _NEVER), integrity.check(snapshot), workspace)
