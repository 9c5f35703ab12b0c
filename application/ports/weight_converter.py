"""Port: quantization and dequantization of weights."""

from abc import abstractmethod
from typing import Protocol

import attrs

from mlxk.application.ports.progress import Progress
from mlxk.domain.models.model import ModelHandle, Quantization


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
