"""In-memory double of the tuner: the loss halves with each step, and the adapter records base, step and seed.

tuner = InMemoryModelTuner(files)
tuner.train(job, report, stopped, resume=False).steps       # the steps of the settings
tuner.broken_at = 3                                         # training fails after step 3, with a checkpoint
"""

from collections.abc import Callable

from doubles.model_files import InMemoryModelFiles
from mlxk.application.ports.system import Progress
from mlxk.application.ports.tuning import ADAPTER_FILES, ModelTuner, TrainedModel, TrainingJob, UnfinishedTraining
from mlxk.domain.errors import ExecutionError, ValidationError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.tuning.examples import Example
from mlxk.domain.tuning.training import ExampleLengths, TrainingPoint, TrainingResult

_STATE = "training-state"


class InMemoryModelTuner(ModelTuner):
    """Computes nothing; a word is a token.

    Args:
        files: Gets the checkpoints and adapters.
    """

    def __init__(self, files: InMemoryModelFiles) -> None:
        self._files = files
        self._states: dict[str, UnfinishedTraining] = {}
        self.broken_at: int | None = None
        self.jobs: list[TrainingJob] = []

    def lengths(
        self, model: TrainedModel, examples: tuple[Example, ...], max_length: int, *, mask_prompt: bool
    ) -> ExampleLengths:
        counts = [_words(each) for each in examples]
        return ExampleLengths(
            longest=min(max(counts), max_length),
            total=sum(min(count, max_length) for count in counts),
            learned=sum(min(count, max_length) for count in counts),
            cut=tuple(each.line for each, count in zip(examples, counts, strict=True) if count > max_length),
            longest_uncut=max(counts),
        )

    def unfinished(self, directory: str) -> UnfinishedTraining | None:
        return self._states.get(directory) if _STATE in self._files.directories.get(directory, {}) else None

    def train(
        self, job: TrainingJob, report: Callable[[TrainingPoint], None], stopped: Callable[[], bool], *, resume: bool
    ) -> TrainingResult:
        self.jobs.append(job)
        before = self.unfinished(job.directory)
        if resume and before is None:
            raise ValidationError("there is no state of a training to continue")
        step = before.step if resume and before is not None else 0
        resumed_at, points = (step if resume else None), []
        while step < job.settings.steps:
            step += 1
            points.append(TrainingPoint(step, float(step), 1 / 2**step))
            report(points[-1])
            if step == self.broken_at:
                self._files.directories[job.directory][_STATE] = b""
                self._states[job.directory] = UnfinishedTraining(step, job.identity, job.settings.as_fields())
                raise ExecutionError("broken off")
            if stopped():
                break
        self._files.directories[job.directory].pop(_STATE, None)
        for name in ADAPTER_FILES:
            self._files.directories[job.directory][name] = f"{job.base} {step} {job.settings.seed}".encode()
        return TrainingResult(step, resumed_at, step < job.settings.steps, tuple(points), 1, step, float(step), 1)

    def loss(
        self, model: TrainedModel, adapter: str | None, form: WeightForm, examples: tuple[Example, ...], max_length: int
    ) -> float:
        return 1.0 if adapter is None else 0.5

    def fuse(
        self, model: TrainedModel, adapter: str, target: str, progress: Progress, *, dequantize: bool, exact: bool
    ) -> int:
        files = self._files.directories
        if ADAPTER_FILES[1] not in files.get(adapter, {}):
            raise ValidationError("adapter: there is none")
        files[target] |= {"config.json": b"{}", "model.safetensors": files[adapter][ADAPTER_FILES[1]]}
        return 1


def _words(example: Example) -> int:
    texts = [example.text, *(message.content for message in example.conversation.messages)]
    return sum(len(text.split()) for text in texts)
