"""Ports to the backends: which of them run which models, and the conversion of weights.

Backends are known by opaque names; users see these too.
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
    """The model that it was trained on, as it says; a name or a path."""
    version: str
    """Identifies exactly this adapter, equally on every machine."""


class BackendRegistry(Protocol):
    """Knows the installed backends from their files; asking never imports one."""

    @abstractmethod
    def dedicated_to(self, architecture: str) -> Capability | None:
        """Return the one operation for which the installed backends know an architecture.

        Returns:
            None when they know it for text generation as well, or not at all.
        """

    @abstractmethod
    def judge(self, snapshot: ModelSnapshot, facts: Facts) -> Runtime:
        """Return which backends can run a model whose files are complete, or the first reason why none can.

        Args:
            snapshot: The model's files.
            facts: What was detected from them.
        """

    @abstractmethod
    def converters(self, media: bool) -> tuple[str, ...]:
        """Return the backends that convert weights, the preferred one first, installed or not.

        Args:
            media: Whether the model also takes images or audio; the first backend then keeps those parts.
        """

    @abstractmethod
    def supports(self, backend: str, architecture: str) -> bool:
        """Whether a backend is installed and implements an architecture, named as in ``config.json``."""

    @abstractmethod
    def require_quantized_activations(self) -> None:
        """Refuse to quantize activations where no device multiplies quantized numbers with quantized ones.

        Raises:
            CapabilityError: Says which device would.
        """

    @abstractmethod
    def base_of(self, directory: str) -> str | None:
        """Return the model that an adapter was trained on, as its files name it; None where there is no adapter alone.

        A name that begins with ``./`` or ``../`` is a path as seen from the directory.

        Args:
            directory: Absolute.

        Raises:
            ValidationError: The adapter does not say which model it was trained on.
        """

    @abstractmethod
    def adapter(self, directory: str) -> Adapter:
        """Return the adapter in a directory; reads its files only.

        Args:
            directory: Absolute.

        Raises:
            ValidationError: There is none that could be applied; names the file and the field.
        """


@attrs.frozen
class ConvertedWeights:
    """Result of a conversion."""

    changed: int
    """Layers in the new format."""
    unchanged: tuple[str, ...]
    """Layers that cannot be quantized with this group size, sorted."""
    size_bytes: int
    """Size of all weights written."""


class WeightConverter(Protocol):
    """Converts the weights of models. Executes no code of a model, and writes to the target only."""

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
            UntrustedModelCodeError: The model requires code of its own.
            BackendNotInstalledError: The library is not installed.
            ConversionFailedError: The library cannot load the model, or no layer fits the group size.
            StorageError: The disk refuses.
        """

    @abstractmethod
    def dequantize(self, source: ModelHandle, target: str, backend: str, progress: Progress) -> ConvertedWeights:
        """Write the dequantized weights of a model, their index and ``config.json``.

        Raises:
            The same errors as ``quantize``.
        """

    @abstractmethod
    def missing_tensors(self, model: ModelHandle, backend: str) -> tuple[str, ...]:
        """Return the tensors that the architecture needs and the model lacks, sorted; reads headers only.

        Raises:
            UntrustedModelCodeError, BackendNotInstalledError: As above.
            ConversionFailedError: The library cannot load the model.
        """
