"""Convert a model: quantize it, dequantize it, or rebuild the index of its shards.

The source is only read. The result is a new workspace, which appears when it is complete.
"""

import enum
import json

import attrs

from mlxk.application.policy import require_closed, require_whole_model
from mlxk.application.ports.backends import BackendRegistry, ConvertedWeights, WeightConverter
from mlxk.application.ports.model_cache import ModelCache, reserved_source
from mlxk.application.ports.model_directories import ModelFiles, Provenance, WorkspaceDraft, WorkspaceStore
from mlxk.application.ports.system import Progress
from mlxk.application.use_cases.describe_model import DescribeModel, read_snapshot
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import (
    Advice,
    CapabilityError,
    ConversionFailedError,
    IncompatibleModelError,
    Remedy,
    UnhealthyModelError,
    UntrustedModelCodeError,
    ValidationError,
)
from mlxk.domain.models import detection
from mlxk.domain.models.integrity import listed
from mlxk.domain.models.model import (
    Capability,
    HealthReport,
    ModelDetails,
    ModelHandle,
    ModelType,
    Origin,
    Quantization,
    Workspace,
    is_part_of_model,
)
from mlxk.domain.models.snapshot import CONFIG, SAFETENSORS_INDEX, ModelSnapshot
from mlxk.domain.models.weights import build_index, incomplete, require_complete

BITS = (2, 3, 4, 6, 8)
GROUP_SIZES = (32, 64, 128)

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".safetensors.index.json", ".bin.index.json")


class ConvertMode(enum.Enum):
    """What to do with the weights."""

    REPAIR_INDEX = "repair-index"
    QUANTIZE = "quantize"
    DEQUANTIZE = "dequantize"


@attrs.frozen
class ConvertRequest:
    """Source, target and options of a conversion."""

    reference: str
    target: str
    mode: ConvertMode
    bits: int | None = None
    group_size: int | None = None
    """Weights per quantization scale; None means 64."""
    check_health: bool = True
    """Whether to refuse an unhealthy result."""


@attrs.frozen
class ConvertResult:
    """Result of a conversion."""

    source: ModelHandle
    handle: ModelHandle
    provenance: Provenance
    workspace: Workspace
    mode: ConvertMode
    weights: ConvertedWeights | None
    """None after a repair of the index."""
    rebuilt: bool
    """Whether an index was written; a model with one weight file needs none."""
    warning: str | None
    """A loss of quality to expect; None when there is none."""
    report: HealthReport | None
    """Result of the health check; None without one."""


@attrs.frozen
class ConvertModel:
    """Converts one model into a new workspace."""

    resolve: ResolveModel
    cache: ModelCache
    files: ModelFiles
    workspaces: WorkspaceStore
    registry: BackendRegistry
    converter: WeightConverter
    describe: DescribeModel

    def __call__(self, request: ConvertRequest, progress: Progress) -> ConvertResult:
        """Make a workspace with the converted model.

        Raises:
            ValidationError: Bits, group size, source or target are invalid.
            UnhealthyModelError: The source is not healthy.
            UntrustedModelCodeError: The source needs Python code from its own files.
            CapabilityError, IncompatibleModelError: The format or architecture cannot be converted.
            ConversionFailedError: The backend fails, weights are missing, or the result is not healthy.
            MlxkError: The result cannot be written, see ``WorkspaceStore``.
        """
        scheme = _scheme(request)
        source = self.resolve(request.reference)
        place = self.workspaces.place(request.target, source.short_name)
        if place == source.directory or place.startswith(f"{source.directory}/"):
            raise ValidationError("target: it lies in the model to convert")
        require_closed(source, self.files)
        reserved = reserved_source(self.cache, source, "converting it", progress)
        provenance = self._provenance(source, request, scheme)
        with reserved, self.workspaces.draft(place, provenance, keep_unfinished=False) as draft:
            if request.mode is ConvertMode.REPAIR_INDEX:
                rebuilt, weights, warning = self._repair(source, draft), None, None
            else:
                details = self._require_healthy(source)
                if details.strays:
                    progress.note(f"Left out, as they do not belong to the model: {listed(details.strays)}")
                warning = _warning(details, scheme)
                rebuilt, weights = True, self._convert(details, draft, scheme, progress)
            report = self._check_result(draft) if request.check_health else None
            handle = draft.publish()
        workspace = self.workspaces.read(handle)
        return ConvertResult(source, handle, provenance, workspace, request.mode, weights, rebuilt, warning, report)

    def _convert(
        self, details: ModelDetails, draft: WorkspaceDraft, scheme: Quantization | None, progress: Progress
    ) -> ConvertedWeights:
        source = details.description.handle
        backend = self._backend(details)
        if scheme is None and details.quantization is None:
            raise ValidationError(f"dequantize: '{source.label}' is not quantized", options=("dequantize",))
        if scheme is not None and scheme == details.quantization:
            raise ValidationError(
                f"quantize: '{source.label}' is {scheme.bits}-bit already, in groups of that size",
                options=("quantize",),
            )
        listing = self.files.list(source.directory)
        strays = details.strays
        carried = [entry.path for entry in listing.files if is_carried_over(entry.path) and entry.path not in strays]
        _copy_all(draft, source, carried)
        if scheme is None:
            weights = self.converter.dequantize(source, draft.directory, backend, progress)
        else:
            weights = self.converter.quantize(source, draft.directory, backend, scheme, progress)
        self._require_loadable(draft, source.label, backend)
        return weights

    def _repair(self, source: ModelHandle, draft: WorkspaceDraft) -> bool:
        """Copy a model and rebuild its index from the headers of its weight files; return whether it has an index.

        Raises:
            ConversionFailedError: A weight file or a tensor is missing.
        """
        listing = self.files.list(source.directory)
        snapshot = read_snapshot(self.files, self.cache, source, listing)
        headers = {path: snapshot.headers[path] for path in snapshot.top_level(".safetensors")}
        index = build_index(headers)
        present = frozenset(tensor for header in headers.values() for tensor in header.tensors)
        require_complete(list(headers), present, snapshot.document(SAFETENSORS_INDEX).mapping, snapshot.config)
        strays = snapshot.strays
        _copy_all(
            draft,
            source,
            [entry.path for entry in listing.files if _is_copied(entry.path) and entry.path not in strays],
        )
        if len(headers) > 1:
            draft.write(SAFETENSORS_INDEX, (json.dumps(index, indent=2) + "\n").encode())
        self._require_all_tensors(draft, snapshot)
        return len(headers) > 1

    def _require_all_tensors(self, draft: WorkspaceDraft, snapshot: ModelSnapshot) -> None:
        """Check the tensors with the backend that would run the model, if one supports the architecture."""
        architecture = detection.architecture(snapshot)
        media = detection.is_vision(snapshot)
        backends = self.registry.converters(media)
        supporting = [each for each in backends if architecture and self.registry.supports(each, architecture)]
        if supporting and not detection.is_speech(snapshot):
            self._require_loadable(draft, snapshot.short_name, supporting[0])

    def _require_loadable(self, draft: WorkspaceDraft, name: str, backend: str) -> None:
        """Check with a backend that the result has all tensors that the architecture needs."""
        missing = self.converter.missing_tensors(attrs.evolve(_handle(draft), display_name=name), backend)
        if missing:
            raise incomplete(list(missing))

    def _require_healthy(self, source: ModelHandle) -> ModelDetails:
        details = self.describe.details(source)
        require_whole_model(details.description)
        if not details.description.health.healthy:
            raise UnhealthyModelError(
                f"'{source.label}' is not whole: {details.description.health.reason}",
                hint=Advice(Remedy.FETCH_BEFORE_CONVERTING),
                fix=details.description.health.fix,
            )
        if details.config and details.config.get("model_file"):
            raise UntrustedModelCodeError(
                f"'{source.label}' wants to run code of its own (config.json: model_file); it is never executed."
            )
        return details

    def _backend(self, details: ModelDetails) -> str:
        """Return the backend that converts all parts of the model, the encoders of images and audio included."""
        description, config = details.description, details.config or {}
        name = description.handle.label
        if description.model_type is ModelType.AUDIO:
            raise CapabilityError(f"'{name}' turns speech into text, and such models cannot be converted")
        remedy = description.runtime.remedy
        if remedy is not None:
            raise IncompatibleModelError(
                f"'{name}' cannot be converted: {description.runtime.reason}", hint=Advice(remedy)
            )
        foreign = detection.foreign_quantization(config)
        if "quantization" not in config and foreign:
            method = str(foreign.get("quant_method", "another method"))
            raise IncompatibleModelError(
                f"'{name}' is quantized by {method}, which cannot be converted", hint=Advice(Remedy.FIND_CONVERSION)
            )
        media = description.can(Capability.VISION) or description.can(Capability.AUDIO)
        backend = self.registry.converters(media)[0]
        architecture = str(config.get("model_type", ""))
        if not self.registry.supports(backend, architecture):
            raise IncompatibleModelError(
                f"'{name}' is of the architecture '{architecture}', which {backend} does not know"
            )
        return backend

    def _check_result(self, draft: WorkspaceDraft) -> HealthReport:
        report = self.describe.health(_handle(draft))
        if not report.healthy:
            raise ConversionFailedError(f"the result is not whole: {report.reason}")
        return report

    def _provenance(self, source: ModelHandle, request: ConvertRequest, scheme: Quantization | None) -> Provenance:
        repo, revision = source.name, source.commit
        if source.origin is Origin.WORKSPACE:
            record = self.workspaces.read(source)
            repo, revision = record.source_repo or "", record.source_revision
        return Provenance(
            operation="convert",
            source_repo=repo or None,
            source_revision=revision,
            mode=request.mode.value,
            bits=scheme.bits if scheme else None,
            group_size=scheme.group_size if scheme else None,
        )


def _scheme(request: ConvertRequest) -> Quantization | None:
    if request.mode is not ConvertMode.QUANTIZE:
        if request.group_size is not None:
            raise ValidationError("q-group-size belongs to quantize", options=("q-group-size", "quantize"))
        return None
    if request.bits not in BITS:
        raise ValidationError(f"quantize must be 2, 3, 4, 6, or 8 (got {request.bits})", options=("quantize",))
    group_size = 64 if request.group_size is None else request.group_size
    if group_size not in GROUP_SIZES:
        raise ValidationError(f"q-group-size must be 32, 64 or 128 (got {group_size})", options=("q-group-size",))
    return Quantization(request.bits, group_size)


def _warning(details: ModelDetails, scheme: Quantization | None) -> str | None:
    before = details.quantization
    if scheme is None or before is None:
        return None
    if before.bits < scheme.bits:
        return f"Source already {before.bits}-bit. Quantizing to {scheme.bits}-bit does not increase precision."
    return f"Source already {before.bits}-bit. Quantizing twice loses more than quantizing the original once."


def _copy_all(draft: WorkspaceDraft, source: ModelHandle, paths: list[str]) -> None:
    for path in paths:
        draft.copy(source.directory, path, lambda count: None)


def is_carried_over(path: str) -> bool:
    """Whether a conversion copies a file unchanged: all but ``config.json``, the index and top-level weight files.

    Weight files in subfolders belong to other components.
    """
    return _is_copied(path) and path != CONFIG and ("/" in path or not path.endswith(_WEIGHTS))


def _is_copied(path: str) -> bool:
    return is_part_of_model(path) and path != SAFETENSORS_INDEX


def _handle(draft: WorkspaceDraft) -> ModelHandle:
    return ModelHandle(draft.directory, draft.directory, Origin.WORKSPACE)
