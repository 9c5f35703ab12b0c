"""Ports for training: the files of training data, and the trainer, which also measures and fuses adapters."""

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
"""File names of an adapter in the format of mlx-lm."""


class TrainingFiles(Protocol):
    """Finds and reads files of training data."""

    @abstractmethod
    def find(self, path: str) -> Mapping[str, str]:
        """Return the files of a data set by split: ``train``, ``valid``, ``test``.

        Args:
            path: A file, which becomes the ``train`` split; or a folder with ``train.jsonl``, ``valid.jsonl`` or
                ``test.jsonl``. Absolute, relative to the working directory, or starting with ``~/``.

        Raises:
            ValidationError: There is no such file, or it is not a text file of lines.
            StorageError: A file cannot be accessed.
        """

    @abstractmethod
    def lines(self, path: str, limit: int) -> Iterator[bytes]:
        """Yield the lines of a file with their line ends; a line over ``limit`` bytes is cut to ``limit + 1`` bytes.

        Raises:
            StorageError: The file cannot be read.
        """

    @abstractmethod
    def image(self, path: str, limit: int) -> bytes:
        """Return the content of an image file, cut to ``limit + 1`` bytes.

        Args:
            path: Absolute.
            limit: Bytes.

        Raises:
            ValidationError: There is no such regular file, or it cannot be read. The message continues a sentence that
                begins with the file's name.
        """


@attrs.frozen
class TrainedModel:
    """A model to train, and the backend that runs it."""

    handle: ModelHandle
    backend: str
    """One of the backends in the model's description."""


@attrs.frozen
class TrainingJob:
    """One run of training."""

    model: TrainedModel
    form: WeightForm
    """How the weights of the model are held in memory."""
    settings: TuningSettings
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    directory: str
    """The existing directory, absolute, for the checkpoints of the run and its adapter."""
    identity: str
    """Fingerprint of everything that determines the result; only a run with an equal one may be resumed."""
    base: str
    """The name of the base model that is written into the adapter."""


@attrs.frozen
class UnfinishedTraining:
    """An interrupted run with a checkpoint."""

    step: int
    """The step of the checkpoint."""
    identity: str
    """See ``TrainingJob``."""
    fields: Mapping[str, object]
    """Its settings by name."""


class ModelTuner(Protocol):
    """Trains adapters, measures losses and fuses adapters, on the calling thread. No model stays loaded after a call.

    Of a vision model only the text layers are trained; image tokens are computed as for inference.

    No code from a model is executed, and the network is not used.
    """

    @abstractmethod
    def lengths(
        self, model: TrainedModel, examples: tuple[Example, ...], max_length: int, *, mask_prompt: bool
    ) -> ExampleLengths:
        """Return the lengths of examples in tokens; only the tokenizer of the model is loaded.

        Args:
            model: The model.
            examples: At least one.
            max_length: Tokens to which an example is truncated.
            mask_prompt: Whether only the tokens of answers count as learned.

        Raises:
            ValidationError: The model's template refuses an example, or an example has no token to learn; the message
                names the line.
            MlxkError: The tokenizer cannot be loaded.
        """

    @abstractmethod
    def unfinished(self, directory: str) -> UnfinishedTraining | None:
        """Return the run whose checkpoint a directory holds; None when it holds none."""

    @abstractmethod
    def train(
        self, job: TrainingJob, report: Callable[[TrainingPoint], None], stopped: Callable[[], bool], *, resume: bool
    ) -> TrainingResult:
        """Train, and write ``ADAPTER_FILES`` into the directory of the job, in mlx-lm's format.

        Checkpoints are written atomically, at the interval of the settings and when ``report`` or ``stopped`` raises.
        A resumed run has the same result as an uninterrupted one.

        Args:
            job: The run.
            report: Callback with the figures, about every second and after each validation.
            stopped: Returns whether to end after the current step; the adapter is then written as of that step.
            resume: Whether to continue from the checkpoint in the job's directory.

        Raises:
            ValidationError: There is no checkpoint to resume, or the model has no layers that can be trained so.
            MlxkError: The model cannot be loaded, training failed, or a file cannot be written.
        """

    @abstractmethod
    def loss(
        self, model: TrainedModel, adapter: str | None, form: WeightForm, examples: tuple[Example, ...], max_length: int
    ) -> float:
        """Return the mean loss over the tokens of all answers, in nats per token.

        Args:
            model: The model.
            adapter: Directory of an adapter, absolute; None measures the model alone.
            form: How its weights are held in memory.
            examples: At least one.
            max_length: Tokens to which an example is truncated.

        Raises:
            MlxkError: The model or the adapter cannot be loaded.
        """

    @abstractmethod
    def fuse(
        self, model: TrainedModel, adapter: str, target: str, progress: Progress, *, dequantize: bool, exact: bool
    ) -> int:
        """Write the weights of a model merged with an adapter, their index and ``config.json``.

        Args:
            model: A complete model.
            adapter: Directory of the adapter, absolute.
            target: An existing directory, absolute.
            progress: Receives the bytes written.
            dequantize: Whether all quantized layers are dequantized; otherwise adapted ones are quantized again.
            exact: Whether adapted layers that are not quantized are written in 32 bits, so that nothing is rounded.

        Returns:
            The number of layers that the adapter changed.

        Raises:
            ValidationError: The adapter does not fit the model.
            MlxkError: The model cannot be loaded, or a file cannot be written.
        """
