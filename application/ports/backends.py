"""Ports to the backends (model libraries): which models each of them can run, and the conversion of weights.

Backends have opaque names, which users see too.
"""

from abc import abstractmethod
from typing import Protocol

import attrs

from mlxk.application.ports.system import Progress
from mlxk.domain.models.detection import Facts
from mlxk.domain.models.model import Capability, ModelHandle, Quantization, Runtime
from mlxk.domain.models.snapshot import ModelSnapshot


@attrs.frozen
class Adapter:
    """A LoRA adapter on disk that can be applied to a model."""

    trained_on: str | None
    """The base model that its files name: a model name or a path; None when they name none."""
    version: str
    """A digest of the adapter, the same on every machine."""


class BackendRegistry(Protocol):
    """Reads from the files of the installed backends what they support; never imports a backend."""

    @abstractmethod
    def dedicated_to(self, architecture: str) -> Capability | None:
        """Return the only operation that the installed backends implement for an architecture.

        Returns:
            None when they also generate text with it, or do not implement it at all.
        """

    @abstractmethod
    def judge(self, snapshot: ModelSnapshot, facts: Facts) -> Runtime:
        """Return the backends that can run a model, or the first reason why none can.

        Args:
            snapshot: The model's files, which must be complete.
            facts: The properties detected in these files.
        """

    @abstractmethod
    def converters(self, media: bool) -> tuple[str, ...]:
        """Return the backends that convert weights, the preferred one first, installed or not.

        Args:
            media: Whether the model also takes images or audio; the first backend then converts those parts too.
        """

    @abstractmethod
    def supports(self, backend: str, architecture: str) -> bool:
        """Whether a backend is installed and implements an architecture.

        Args:
            backend: The name of the backend.
            architecture: The architecture, as ``model_type`` in ``config.json`` names it.
        """

    @abstractmethod
    def require_quantized_activations(self) -> None:
        """Check that this machine can multiply quantized activations with quantized weights.

        Raises:
            CapabilityError: It cannot; the message names the kind of device that can.
        """

    @abstractmethod
    def base_of(self, directory: str) -> str | None:
        """Return the base model that the adapter in a directory names.

        Args:
            directory: Absolute.

        Returns:
            A model name or a path; one that begins with ``./`` or ``../`` is relative to ``directory``. None when the
            directory holds no adapter, or a whole model beside it.

        Raises:
            ValidationError: The adapter names no base model, or its config cannot be read.
        """

    @abstractmethod
    def adapter(self, directory: str) -> Adapter:
        """Return the adapter in a directory; reads its files only.

        Args:
            directory: Absolute.

        Raises:
            ValidationError: There is no adapter, or it cannot be applied; the message names the file and the field.
        """


@attrs.frozen
class ConvertedWeights:
    """Result of a conversion."""

    changed: int
    """Number of layers that were quantized or dequantized."""
    unchanged: tuple[str, ...]
    """Names of the layers that cannot be quantized with this group size, sorted."""
    size_bytes: int
    """Size of all weights written."""


class WeightConverter(Protocol):
    """Converts the weights of models. Executes no code from a model, and writes to the target directory only."""

    @abstractmethod
    def quantize(
        self, source: ModelHandle, target: str, backend: str, scheme: Quantization, progress: Progress
    ) -> ConvertedWeights:
        """Write the quantized weights of a model, their index and ``config.json``.

        Args:
            source: A complete model.
            target: An existing directory, absolute.
            backend: The backend that converts it, by its name in the registry.
            scheme: Bits, group size and mode. A quantized source is dequantized first.
            progress: Receives the bytes written.

        Raises:
            UntrustedModelCodeError: The model needs Python code from its own files.
            BackendNotInstalledError: The backend is not installed.
            ConversionFailedError: The backend cannot load the model, or no layer fits the group size.
            StorageError: A file cannot be written.
        """

    @abstractmethod
    def dequantize(self, source: ModelHandle, target: str, backend: str, progress: Progress) -> ConvertedWeights:
        """Write the dequantized weights of a model, their index and ``config.json``.

        Args:
            source: A complete, quantized model.
            target: An existing directory, absolute.
            backend: The backend that converts it, by its name in the registry.
            progress: Receives the bytes written.

        Raises:
            UntrustedModelCodeError, BackendNotInstalledError, StorageError: As for ``quantize``.
            ConversionFailedError: The backend cannot load the model.
        """

    @abstractmethod
    def missing_tensors(self, model: ModelHandle, backend: str) -> tuple[str, ...]:
        """Return the names of the tensors that the architecture needs and the model lacks, sorted.

        Reads the headers of the weight files only.

        Raises:
            UntrustedModelCodeError, BackendNotInstalledError: As for ``quantize``.
            ConversionFailedError: The backend cannot load the model.
        """
