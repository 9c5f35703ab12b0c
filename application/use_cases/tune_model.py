"""Train an adapter on examples: check the data, judge the memory, train, and publish a workspace with the adapter."""

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator

import attrs

from mlxk.application.adapter_bases import fingerprint
from mlxk.application.example_images import ExampleImages
from mlxk.application.policy import require_whole_model
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.model_cache import ModelCache, reserved_source
from mlxk.application.ports.model_directories import ModelFiles, Provenance, WorkspaceDraft, WorkspaceStore
from mlxk.application.ports.system import Progress
from mlxk.application.ports.tuning import (
    ADAPTER_FILES,
    ModelTuner,
    TrainedModel,
    TrainingFiles,
    TrainingJob,
    UnfinishedTraining,
)
from mlxk.application.training_policy import require_suitable, require_training_memory, trained_model
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import (
    Advice,
    MlxkError,
    Remedy,
    ValidationError,
)
from mlxk.domain.models.footprint import MemoryVerdict
from mlxk.domain.models.integrity import listed
from mlxk.domain.models.model import ModelDetails, ModelHandle, Origin, Workspace
from mlxk.domain.tuning.base import RECORD, BaseModel
from mlxk.domain.tuning.data import (
    TEST,
    TRAIN,
    VALID,
    DataFault,
    FileCheck,
    TrainingData,
    across_files,
    divided,
    first_faults,
)
from mlxk.domain.tuning.example_lines import MAX_LINE_BYTES
from mlxk.domain.tuning.examples import ExampleKind, NamedImage
from mlxk.domain.tuning.record import CARD, TrainingRecord, UsedData
from mlxk.domain.tuning.training import (
    ExampleLengths,
    NetworkShape,
    TrainingPoint,
    TuningChoices,
    TuningSettings,
    training_bytes,
)

_SHOWN_AT_MOST = 20
"""Most faults, and most remarks, that are reported to the progress."""
_DETAILED_AT_MOST = 1000
"""Most faults in the detail of an error."""


@attrs.frozen
class TuneRequest:
    """Model, data, target and options of a training."""

    reference: str
    """The reference of the base model, as typed."""
    data: str
    """The path of the data; see ``TrainingFiles.find``."""
    target: str
    """The target, as typed."""
    choices: TuningChoices = attrs.field(factory=TuningChoices)
    held_out: float | None = None
    """The share of the examples to hold out for validation; None means the default."""
    resume: bool = False
    """Whether to continue the unfinished training of the target."""
    restart: bool = False
    """Whether to discard an unfinished training of the target."""


@attrs.frozen
class TuningPlan:
    """The settings, data and memory of a training, known before it begins."""

    settings: TuningSettings
    data: TrainingData
    lengths: ExampleLengths
    memory: MemoryVerdict
    resumed_at: int | None
    """The step from which an unfinished training is continued; None begins anew."""


@attrs.frozen
class TuneResult:
    """A finished training and its workspace."""

    base: ModelHandle
    handle: ModelHandle
    workspace: Workspace
    plan: TuningPlan
    record: TrainingRecord


@attrs.frozen
class TrainingWatch:
    """Callbacks of a training."""

    planned: Callable[[TuningPlan], None]
    """Called before training begins."""
    report: Callable[[TrainingPoint], None]
    """See ``ModelTuner.train``."""
    stopped: Callable[[], bool]
    """See ``ModelTuner.train``."""


@attrs.frozen
class ReadTrainingData:
    """Reads and checks training data; loads nothing of a model."""

    files: TrainingFiles
    images: ExampleImages

    def __call__(self, path: str, progress: Progress) -> TrainingData:
        """Return the examples of a file or folder, after decoding every image that they name.

        The first remarks and faults are noted to the progress.

        Raises:
            ValidationError: There is no data, or a line or an image is invalid; ``detail`` lists the faults.
            StorageError: A file cannot be read.
        """
        digest = hashlib.sha256()
        checks = {}
        for split, file in sorted(self.files.find(path).items()):
            digest.update(f"{split}\0".encode())
            check = FileCheck(posixpath.basename(file)).read(_hashed(self.files.lines(file, MAX_LINE_BYTES), digest))
            check.examples = [each.beside(posixpath.dirname(file)) for each in check.examples]
            checks[split] = check
        self._check_images(checks.values(), digest)
        faults, remarks = across_files(checks)
        faults = [*(each for check in checks.values() for each in check.faults), *faults]
        remarks = [*(each for check in checks.values() for each in check.remarks), *remarks]
        for line in (*first_faults(faults, _SHOWN_AT_MOST), *_first(remarks)):
            progress.note(line)
        if faults:
            raise _invalid_data(faults)
        examples = {split: tuple(check.examples) for split, check in checks.items()}
        return TrainingData(
            examples.get(TRAIN, ()), examples.get(VALID, ()), examples.get(TEST, ()), f"sha256:{digest.hexdigest()}"
        )

    def _check_images(self, checks: Iterable[FileCheck], digest: "hashlib._Hash") -> None:
        """Decode every image once; add its fault to the faults of its lines, or its content to the digest."""
        faults: dict[NamedImage, str | None] = {}
        for check in checks:
            for example in check.examples:
                for image in example.images:
                    if image not in faults:
                        faults[image] = self._fault_of(image, digest)
                    if (fault := faults[image]) is not None:
                        fault = f"{image.place}: the image {image.title}: {fault}"
                        check.faults.append(DataFault(check.file, example.line, fault))

    def _fault_of(self, image: NamedImage, digest: "hashlib._Hash") -> str | None:
        """Return why an image cannot be decoded; for a valid image, add its content to the digest and return None."""
        try:
            digest.update(self.images.check(image).encode())
        except MlxkError as error:
            return error.message
        return None


def _hashed(lines: Iterator[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    """Yield lines, and add each to a digest."""
    for line in lines:
        digest.update(line)
        yield line


def _first(remarks: list[str]) -> list[str]:
    more = len(remarks) - _SHOWN_AT_MOST
    return [*remarks[:_SHOWN_AT_MOST], *([f"… and {more} more remarks"] if more > 0 else [])]


def _invalid_data(faults: list[DataFault]) -> ValidationError:
    listed_faults = [
        {"file": each.file, "line": each.line, "message": each.message} for each in faults[:_DETAILED_AT_MOST]
    ]
    others = "" if len(faults) == 1 else f" (the first of {len(faults)} faults)"
    return ValidationError(f"{faults[0]}{others}", detail={"faults": listed_faults, "count": len(faults)})


@attrs.frozen
class TuneModel:
    """Trains one model into a new workspace."""

    resolve: ResolveModel
    describe: DescribeModel
    cache: ModelCache
    files: ModelFiles
    workspaces: WorkspaceStore
    memory: MemoryProbe
    read: ReadTrainingData
    tuner: Callable[[], ModelTuner]
    """Returns the tuner; the first call loads its libraries."""

    def __call__(self, request: TuneRequest, watch: TrainingWatch, progress: Progress) -> TuneResult:
        """Train, and make the workspace.

        Raises:
            ValidationError: The data, a setting or the target is invalid, or the training cannot be resumed.
            CapabilityError, IncompatibleModelError, UnhealthyModelError: The model cannot be trained.
            InsufficientMemoryError: Training exceeds the memory budget.
            MlxkError: The model cannot be loaded, or a file cannot be written; the last checkpoint is kept.
        """
        data = self.read(request.data, progress)
        if not data.train:
            raise ValidationError(f"data: there are no examples for training in '{request.data}'")
        data = divided(data, request.held_out, request.choices.seed)
        details = self._trainable(request.reference, data)
        base = details.description.handle
        place = self.workspaces.place(request.target, base.short_name)
        config = details.config or {}
        pairs, context = data.kind is ExampleKind.PAIR, details.description.context_length
        settings = request.choices.settings(config, len(data.train), context, pairs=pairs)
        with reserved_source(self.cache, base, "training it", progress):
            model = trained_model(details.description)
            lengths = self.tuner().lengths(
                model, (*data.train, *data.valid), settings.max_length, mask_prompt=settings.mask_prompt
            )
            longest = lengths.longest * (2 if pairs else 1)
            extra = training_bytes(NetworkShape.of(config), settings, longest, details.description.weight_bytes)
            verdict = require_training_memory(details.description, self.memory, extra)
            origin = self._origin(base, place)
            plan = TuningPlan(settings, data, lengths, verdict, None)
            with self.workspaces.draft(place, _provenance(origin, settings), keep_unfinished=True) as draft:
                return self._train(request, plan, model, origin, draft, watch)

    def _train(
        self,
        request: TuneRequest,
        plan: TuningPlan,
        model: TrainedModel,
        origin: BaseModel,
        draft: WorkspaceDraft,
        watch: TrainingWatch,
    ) -> TuneResult:
        """Train or resume in a draft, add record and model card, and publish it."""
        settings, data = plan.settings, plan.data
        identity = _identity(settings, data, origin, plan.memory)
        unfinished = self.tuner().unfinished(draft.directory)
        resumed_at = _resumed_at(unfinished, identity, settings, request)
        plan = attrs.evolve(plan, resumed_at=resumed_at)
        watch.planned(plan)
        job = TrainingJob(
            model, plan.memory.form, settings, data.train, data.valid, draft.directory, identity, origin.name
        )
        result = self.tuner().train(job, watch.report, watch.stopped, resume=resumed_at is not None)
        for file in ADAPTER_FILES:
            draft.keep(file)
        name = posixpath.basename(request.data.rstrip("/"))
        used = UsedData(name, data.digest, data.kind.value, len(data.train), len(data.valid), data.divided)
        record = TrainingRecord(origin, used, settings, result)
        draft.write(RECORD, record.as_json())
        draft.write(CARD, record.card(posixpath.basename(request.target.rstrip("/"))))
        handle = draft.publish()
        return TuneResult(model.handle, handle, self.workspaces.read(handle), plan, record)

    def _trainable(self, reference: str, data: TrainingData) -> ModelDetails:
        details = self.describe.details(self.resolve(reference))
        require_whole_model(details.description)
        require_suitable(details.description, data, "tuned")
        return details

    def _origin(self, base: ModelHandle, place: str) -> BaseModel:
        """Return the adapter's record of its base; a workspace is named by a path relative to the adapter."""
        content_hash, weights = self.files.content_hash(base.directory), fingerprint(self.files, base.directory)
        if base.origin is not Origin.WORKSPACE:
            hub_name = base.name if base.origin is Origin.CACHE else None
            return BaseModel(base.name, base.commit, content_hash, hub_name, weights)
        name = posixpath.relpath(base.directory, place)
        return BaseModel(name, None, content_hash, self.workspaces.read(base).source_repo, weights)


def _provenance(origin: BaseModel, settings: TuningSettings) -> Provenance:
    return Provenance(
        "tune", source_repo=origin.hub_name, source_revision=origin.revision, mode=settings.method.value, draft="tune"
    )


def _identity(settings: TuningSettings, data: TrainingData, origin: BaseModel, memory: MemoryVerdict) -> str:
    """Return a hash of everything that determines the result of a training."""
    facts = [
        settings.as_fields(),
        data.digest,
        len(data.train),
        origin.content_hash,
        origin.revision,
        memory.form.value,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _resumed_at(
    unfinished: UnfinishedTraining | None, identity: str, settings: TuningSettings, request: TuneRequest
) -> int | None:
    """Return the step from which to continue; None to begin anew.

    Raises:
        ValidationError: There is nothing to resume, the unfinished training has other settings, or the request neither
            resumes nor discards it.
    """
    if request.resume:
        if unfinished is None:
            raise ValidationError(
                f"resume: there is no unfinished training for '{request.target}'", options=("resume",)
            )
        if unfinished.identity != identity:
            fields = settings.as_fields()
            changed = sorted(name for name, value in unfinished.fields.items() if fields.get(name) != value)
            what = listed(changed) if changed else "the data, the model, or how it is held in memory"
            raise ValidationError(
                f"resume: the unfinished training was begun with other values of: {what}",
                hint="Say the same again to continue it.",
                options=("resume",),
            )
        return unfinished.step
    if unfinished is not None and not request.restart:
        raise ValidationError(
            f"target: an unfinished training for '{request.target}' has reached step {unfinished.step}",
            hint=Advice(Remedy.RESUME_TRAINING),
        )
    return None
