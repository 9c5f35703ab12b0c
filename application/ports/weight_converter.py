"""Port: changing the format of weights."""

from abc import abstractmethod
from typing import Protocol

import attrs

from mlxk.application.ports.progress import Progress
from mlxk.domain.models.model import ModelHandle, Quantization


@attrs.frozen
class ConvertedWeights:
    """What a conversion of weights did."""

    changed: int
    """Layers in the new format."""
    unchanged: tuple[str, ...]
    """Layers that could have been changed but do not fit the group size, sorted."""
    size_bytes: int
    """Of all weights written."""


class WeightConverter(Protocol):
    """Converts the weights of whole models. Executes no code that came with a model, and writes to the target only."""

    @abstractmethod
    def quantize(
        self, source: ModelHandle, target: str, backend: str, scheme: Quantization, progress: Progress
    ) -> ConvertedWeights:
        """Write the weights, their index and ``config.json`` of a model in fewer bits.

        Args:
            source: A whole model.
            target: An existing directory, absolute.
            backend: The backend that converts it, by its name in the registry.
            scheme: Bits, group size and mode. A source that is quantized already is brought to full precision first.
            progress: Told the bytes written.

        Raises:
            UntrustedModelCodeError: The model wants its own code executed.
            BackendNotInstalledError: The library is not installed.
            ConversionFailedError: The library cannot load the model, or no layer fits the group size.
            StorageError: The disk refuses.
        """

    @abstractmethod
    def dequantize(self, source: ModelHandle, target: str, backend: str, progress: Progress) -> ConvertedWeights:
        """Write the weights, their index and ``config.json`` of a quantized model in full precision.

        Raises:
            The same errors as ``quantize``.
        """

    @abstractmethod
    def missing_tensors(self, model: ModelHandle, backend: str) -> tuple[str, ...]:
        """Return the tensors that a model needs and does not hold, sorted; reads headers only.

        Raises:
            UntrustedModelCodeError, BackendNotInstalledError: As above.
            ConversionFailedError: The library cannot make sense of the model.
        """
