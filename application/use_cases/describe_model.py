"""Describe one model: read its files once, apply the rules, return the values for a listing or ``show``.

Decides which files are opened and how many bytes of each are read: each file at most once, except a safetensors header
longer than the first read. Another process may pull or remove the model meanwhile: an unfavourable finding counts only
when the directory is unchanged after reading, and a model that was removed is reported as not found.
"""

import datetime
from collections.abc import Mapping

import attrs

from mlxk.application.adapter_bases import OTHER_BASE, AdapterBases
from mlxk.application.ports.backends import BackendRegistry
from mlxk.application.ports.model_cache import ModelCache
from mlxk.application.ports.model_directories import FileListing, ModelFiles, WorkspaceStore
from mlxk.domain.errors import ModelNotFoundError, RevisionNotFoundError, StorageError
from mlxk.domain.formats.chat_templates import insertion_format, problems_in_text, tools_missing
from mlxk.domain.formats.reasoning import supports_reasoning
from mlxk.domain.models import detection, integrity
from mlxk.domain.models import snapshot as names
from mlxk.domain.models.file_formats import (
    ABSENT,
    MAX_DOCUMENT_BYTES,
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    UNREADABLE,
    Damage,
    Document,
    SafetensorsHeader,
    count_parameters,
    half_bytes,
    header_span,
    is_quantized,
    outside_layers,
    read_document,
    read_header,
    unpacked_bytes,
)
from mlxk.domain.models.footprint import WEIGHT_SUFFIXES, cache_bytes_per_token, cache_shape
from mlxk.domain.models.model import (
    Capability,
    HealthReport,
    ModelDescription,
    ModelDetails,
    ModelHandle,
    ModelType,
    Origin,
    Runtime,
    Workspace,
)
from mlxk.domain.models.snapshot import ModelCard, ModelSnapshot, is_template_file, read_card
from mlxk.domain.models.weights import SAFETENSORS, indexed_files, stray_weights

_DOCUMENTS = (
    names.CONFIG,
    names.ADAPTER_CONFIG,
    names.TOKENIZER_CONFIG,
    names.PREPROCESSOR_CONFIG,
    names.PROCESSOR_CONFIG,
    names.MODELOPT_CONFIG,
    names.SAFETENSORS_INDEX,
    names.PYTORCH_INDEX,
    names.TEMPLATE_DOCUMENT,
)
_END_BYTES = 64
"""Enough for the last brace of a JSON object and trailing white space."""
_MAX_TEMPLATE_BYTES = 1024 * 1024
_MAX_TEMPLATES = 16
_HEADER_GUESS_BYTES = 32 * 1024
"""Enough for the header of most small files, so that one read suffices."""


def read_snapshot(
    files: ModelFiles,
    cache: ModelCache,
    handle: ModelHandle,
    listing: FileListing,
    source_repo: str | None = None,
    mlx_owner: str | None = None,
) -> ModelSnapshot:
    """Read the snapshot of one model.

    Args:
        files: Reads its directory.
        cache: Has the hub's manifest of a cached model.
        handle: The model.
        listing: The listing of its files.
        source_repo: The hub repository that a workspace was made from; None when unknown.
        mlx_owner: A hub owner that publishes weights in MLX format only; None for none.
    """
    sizes = {entry.path: entry.size_bytes for entry in listing.files}
    reader = _Reader(files, handle.directory, sizes)
    documents = {path: reader.document(path) for path in _DOCUMENTS if path in sizes}
    headers = {path: reader.header(path) for path in sizes if path.endswith(SAFETENSORS)}
    index = documents.get(names.SAFETENSORS_INDEX, ABSENT).mapping
    is_adapter = names.CONFIG not in sizes and names.ADAPTER_CONFIG in sizes
    tensors = {path: header.tensors for path, header in headers.items()}
    strays = () if is_adapter else stray_weights(sizes, indexed_files(index), tensors)
    cached = handle.origin is Origin.CACHE
    manifest = cache.manifest(handle) if cached else None
    return ModelSnapshot(
        name=handle.name,
        origin=handle.origin,
        incomplete=cached and handle.revision is None,
        files={path: size for path, size in sizes.items() if path not in strays},
        strays=strays,
        dangling=listing.dangling,
        documents=documents,
        headers={path: header for path, header in headers.items() if path not in strays},
        card=reader.card(),
        template_files=reader.templates(),
        pointers=reader.pointers(),
        expected={entry.path: entry.size_bytes for entry in manifest or ()},
        published_for_mlx=mlx_owner is not None
        and (f"{mlx_owner}/" in handle.name or (source_repo or "").startswith(f"{mlx_owner}/")),
        cut=reader.cut(),
        unread=tuple(path for path in reader.unread if path not in strays),
    )


@attrs.define
class _Reader:
    """Reads the files of one directory and records unreadable ones."""

    files: ModelFiles
    directory: str
    sizes: Mapping[str, int]
    beginnings: dict[str, bytes] = attrs.field(factory=dict)
    """The first bytes of each file that was read, as many as the Git LFS marker has."""
    unread: list[str] = attrs.field(factory=list)
    """Paths of the files that could not be read."""

    def document(self, path: str) -> Document:
        data = self._read(path, MAX_DOCUMENT_BYTES + 1)
        return UNREADABLE if data is None else read_document(data)

    def header(self, path: str) -> SafetensorsHeader:
        data, size_bytes = self._read(path, _HEADER_GUESS_BYTES), self.sizes[path]
        if data is None:
            return SafetensorsHeader(damage=Damage.INVALID)
        span = header_span(data)
        if len(data) < span <= min(size_bytes, MAX_HEADER_BYTES + PREFIX_BYTES):
            data = self._read(path, span) or data
        return read_header(data, size_bytes)

    def pointers(self) -> tuple[str, ...]:
        """Return the files that are Git LFS pointers; only files as short as pointers are opened."""
        marker = names.LFS_MARKER
        short = [path for path, size in self.sizes.items() if len(marker) < size < names.LFS_POINTER_LIMIT]
        for path in short:
            if path not in self.beginnings:
                self._read(path, len(marker))
        return tuple(path for path in short if self.beginnings[path] == marker)

    def cut(self) -> tuple[str, ...]:
        """Return ``tokenizer.json`` if it is truncated, that is, does not end with ``}``; it is too long to parse."""
        path = names.TOKENIZER
        if path not in self.sizes or path in self.unread:
            return ()
        end = self.files.read_end(self.directory, path, _END_BYTES)
        if end is None:
            self.unread.append(path)
            return ()
        return () if end.rstrip().endswith(b"}") else (path,)

    def card(self) -> ModelCard:
        return (
            read_card(self._read(names.README, names.MAX_CARD_BYTES) or b"")
            if names.README in self.sizes
            else ModelCard()
        )

    def templates(self) -> dict[str, str]:
        paths = [path for path in self.sizes if is_template_file(path)][:_MAX_TEMPLATES]
        texts = {path: self._read(path, _MAX_TEMPLATE_BYTES) or b"" for path in paths}
        return {path: text.decode("utf-8", errors="replace") for path, text in texts.items()}

    def _read(self, path: str, limit: int) -> bytes | None:
        data = self.files.read(self.directory, path, limit)
        self.beginnings[path] = (data or b"")[: len(names.LFS_MARKER)]
        if data is None:
            self.unread.append(path)
        return data


_ATTEMPTS = 3
"""How often a model is read at most while another process changes it."""

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
    """The hub owner whose weights are all in MLX format; empty for none."""
    bases: AdapterBases | None = None
    """Finds the bases of adapters; None assumes that they are present."""

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
            strays=snapshot.strays,
            config=config if isinstance(snapshot.document(names.CONFIG).value, dict) else None,
            quantization=detection.quantization(config),
            parameters=count_parameters(snapshot.headers.values(), stated if isinstance(stated, dict) else {}),
            license=snapshot.card.license,
            chat_template=detection.has_chat_template(snapshot),
            template_read=bool(template),
            tools_missing=tools_missing(template),
            supports_reasoning=supports_reasoning(template),
            template_text=template,
            inserts=insertion_format(detection.added_tokens(snapshot).__contains__) is not None,
            voices=detection.voices(snapshot),
            base=self.bases.describe(handle) if snapshot.is_adapter and self.bases is not None else None,
        )

    def health(self, handle: ModelHandle) -> HealthReport:
        """Return the health report alone.

        Raises:
            ModelNotFoundError: The model was removed since it was resolved.
        """
        return self._read(handle).report

    def checked(self, handle: ModelHandle) -> tuple[HealthReport, tuple[str, ...]]:
        """Return the health report and the problems of a healthy model, a sentence each.

        Problems are defects of the chat template, or of an adapter's base.

        Raises:
            ModelNotFoundError: The model was removed since it was resolved.
        """
        reading = self._read(handle)
        if not reading.report.healthy:
            return reading.report, ()
        described = self._description(handle, reading)
        if reading.snapshot.is_adapter:
            base = None if self.bases is None else self.bases.describe(handle)
            mismatch = f"{OTHER_BASE}: {base.name}" if base is not None and base.differs else None
            return reading.report, tuple(filter(None, (described.runtime.reason, mismatch)))
        template, for_chat = detection.chat_template_text(reading.snapshot), described.model_type is ModelType.CHAT
        generates = Capability.TEXT_GENERATION in described.capabilities
        return reading.report, problems_in_text(template, for_chat=for_chat) if generates else ()

    def _description(self, handle: ModelHandle, reading: _Reading) -> ModelDescription:
        snapshot = reading.snapshot
        architecture = detection.architecture(snapshot)
        facts = detection.detect(snapshot, None if architecture is None else self.registry.dedicated_to(architecture))
        report = reading.report
        runtime = self.registry.judge(snapshot, facts) if report.healthy else Runtime(False, report.reason)
        if snapshot.is_adapter and runtime.compatible and self.bases is not None:
            problem = self.bases.problem(handle)
            runtime = runtime if problem is None else Runtime(False, problem)
        return ModelDescription(
            handle=handle,
            size_bytes=sum(snapshot.files.values()),
            modified=reading.listing.modified,
            framework=facts.framework,
            model_type=facts.model_type,
            capabilities=facts.capabilities,
            context_length=facts.context_length,
            health=report,
            runtime=runtime,
            workspace=reading.workspace,
            weight_bytes=sum(size for path, size in snapshot.files.items() if path.endswith(WEIGHT_SUFFIXES)),
            cache_per_token=cache_bytes_per_token(snapshot.config),
            cache_shape=cache_shape(snapshot.config),
            half_bytes=_half_bytes(snapshot),
            undivided_bytes=sum(map(outside_layers, snapshot.headers.values())),
            quantized=any(map(is_quantized, snapshot.headers.values())),
            plain_bytes=_plain_bytes(snapshot),
        )

    def _read(self, handle: ModelHandle) -> _Reading:
        for attempt in range(_ATTEMPTS):
            reading = self._read_once(handle)
            complete = reading.report.healthy and not reading.snapshot.unread
            if complete or attempt == _ATTEMPTS - 1 or self._is_settled(handle, reading):
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


def _half_bytes(snapshot: ModelSnapshot) -> int:
    """Return the bytes of 16-bit weights; a weight file other than safetensors counts entirely."""
    sizes = {path: size for path, size in snapshot.files.items() if path.endswith(WEIGHT_SUFFIXES)}
    headers = snapshot.headers
    return sum(half_bytes(headers[path], size) if path in headers else size for path, size in sizes.items())


def _plain_bytes(snapshot: ModelSnapshot) -> int | None:
    """Return the bytes of the weights with quantized layers unpacked; None when none are quantized, or unknown."""
    stated = snapshot.config.get("quantization")
    headers = [header for path, header in snapshot.headers.items() if path in snapshot.files]
    return unpacked_bytes(headers, stated) if isinstance(stated, dict) else None
