"""Ports of training: the files of examples, and what trains, measures and fuses."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import attrs

from mlxk.application.ports.system import Progress
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.tuning.examples import Example
from mlxk.domain.tuning.training import ExampleLengths, TrainingPoint, TrainingResult, TuningSettings

ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")
"""An adapter, in the format of mlx-lm."""


class TrainingFiles(Protocol):
    """Finds and reads files of training data."""

    @abstractmethod
    def find(self, path: str) -> Mapping[str, str]:
        """Return the files of a data set by their split: ``train``, ``valid``, ``test``.

        Args:
            path: A file, which is for training; or a folder with ``train.jsonl``, and perhaps ``valid.jsonl`` and
                ``test.jsonl``. Absolute, relative to the working directory, or starting with ``~/``.

        Raises:
            ValidationError: There is no such file, or it is none of lines of text.
        """

    @abstractmethod
    def lines(self, path: str, limit: int) -> Iterator[bytes]:
        """Yield the lines of a file with their ends; of one that is longer, the first ``limit`` bytes plus one.

        Raises:
            StorageError: It cannot be read.
        """

    @abstractmethod
    def image(self, path: str, limit: int) -> bytes:
        """Return the content of a file, at most ``limit`` bytes plus one.

        Args:
            path: Absolute.
            limit: Bytes.

        Raises:
            ValidationError: There is no such regular file, or it cannot be read; the message follows its name.
        """


@attrs.frozen
class TrainedModel:
    """A model that is trained, and the library that runs it."""

    handle: ModelHandle
    backend: str
    """One of those of its description."""


@attrs.frozen
class TrainingJob:
    """One run of training."""

    model: TrainedModel
    form: WeightForm
    """How the weights of the model are held."""
    settings: TuningSettings
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    directory: str
    """Where the state of the run is kept, and its adapter is written; absolute, and exists."""
    identity: str
    """Equal only for runs that have the same result."""
    base: str
    """The model as the adapter names it."""


@attrs.frozen
class UnfinishedTraining:
    """A run that was broken off."""

    step: int
    """The last one that is kept."""
    identity: str
    fields: Mapping[str, object]
    """Its settings by name."""


class ModelTuner(Protocol):
    """Trains models, and measures their loss, on the calling thread. Nothing stays loaded.

    Of models that read images the layers for text are trained, on the tokens that a server computes for images.

    Nothing is executed that came with a model, and the network is not used.
    """

    @abstractmethod
    def lengths(
        self, model: TrainedModel, examples: tuple[Example, ...], max_length: int, *, mask_prompt: bool
    ) -> ExampleLengths:
        """Return the lengths of examples; only the tokenizer of the model is loaded.

        Raises:
            ValidationError: The template of the model refuses an example, or nothing of one would be learned; names
                the line.
            MlxkError: The tokenizer cannot be loaded.
        """

    @abstractmethod
    def unfinished(self, directory: str) -> UnfinishedTraining | None:
        """Return the run whose state a directory holds; None where it holds none."""

    @abstractmethod
    def train(
        self, job: TrainingJob, report: Callable[[TrainingPoint], None], stopped: Callable[[], bool], *, resume: bool
    ) -> TrainingResult:
        """Train, and write ``ADAPTER_FILES`` into the directory of the job, in mlx-lm's format.

        The state is written as often as the settings say, each time whole or not at all, and when training is broken
        off by an exception of ``report`` or ``stopped``. A run that is resumed has the same result as one that never
        was.

        Args:
            job: The run.
            report: Gets the figures, about every second and whenever the validation was measured.
            stopped: Whether to end after the current step; the adapter is then as it was after it.
            resume: Whether to continue the run whose state the directory holds.

        Raises:
            MlxkError: The model cannot be loaded or trained, or the disk refuses.
        """

    @abstractmethod
    def loss(
        self, model: TrainedModel, adapter: str | None, form: WeightForm, examples: tuple[Example, ...], max_length: int
    ) -> float:
        """Return the mean loss over the tokens of all answers, in nats.

        Raises:
            MlxkError: The model or the adapter cannot be loaded.
        """

    @abstractmethod
    def fuse(
        self, model: TrainedModel, adapter: str, target: str, progress: Progress, *, dequantize: bool, exact: bool
    ) -> int:
        """Write the weights of a model with its adapter built in, their index and ``config.json``.

        Args:
            model: A complete model.
            adapter: Directory of the adapter, absolute.
            target: An existing directory, absolute.
            progress: Receives the bytes written.
            dequantize: Whether quantized layers become plain ones; else what was adapted is quantized again.
            exact: Whether plain layers that were adapted are written in 32 bits, so that nothing is rounded.

        Returns:
            How many layers the adapter changed.

        Raises:
            ValidationError: The adapter does not fit the model.
            MlxkError: The model cannot be loaded, or the disk refuses.
        """
