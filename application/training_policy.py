"""The policy of training: which models suit which examples, the backend that trains, and whether memory suffices."""

import attrs

from mlxk.application.policy import require_text_model
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.tuning import TrainedModel
from mlxk.domain.errors import Advice, CapabilityError, InsufficientMemoryError, Remedy
from mlxk.domain.models.footprint import MemoryFit, MemoryVerdict, WeightForm, judge_memory
from mlxk.domain.models.model import Capability, ModelDescription
from mlxk.domain.tuning.data import TrainingData


def require_suitable(description: ModelDescription, data: TrainingData, participle: str) -> None:
    """Refuse a model that cannot generate text here, an audio model, or a text model for examples with images.

    Args:
        description: The model.
        data: The examples.
        participle: The operation, for the message, such as ``tuned``.

    Raises:
        UnhealthyModelError, IncompatibleModelError: The model cannot be loaded here.
        CapabilityError: It does not suit the examples.
    """
    require_text_model(description)
    name, has_vision = description.handle.label, description.can(Capability.VISION)
    if description.can(Capability.AUDIO) and not has_vision:
        raise CapabilityError(
            f"'{name}' reads sound; only models that read text, or text and images, are {participle}",
            hint="Choose another model.",
        )
    if data.has_images and not has_vision:
        raise CapabilityError(f"the data has images, and '{name}' reads text alone", hint="Choose a vision model.")


def trained_model(description: ModelDescription) -> TrainedModel:
    """Return a model, without an adapter, and its preferred backend."""
    return TrainedModel(attrs.evolve(description.handle, adapter=None), description.runtime.backends[0])


def require_training_memory(description: ModelDescription, memory: MemoryProbe, extra: int) -> MemoryVerdict:
    """Return the memory that training needs, and the form in which the weights are held.

    A CPU emulates 16-bit arithmetic, so it trains in 32 bits where that fits.

    Args:
        description: The model.
        memory: Reads the machine's memory.
        extra: Bytes that training needs in addition to the weights.

    Raises:
        InsufficientMemoryError: Training exceeds the memory budget.
    """
    reading, matrices = memory.read(), memory.matrices()
    verdict = judge_memory(reading, description.weight_bytes + extra)
    if matrices.on_cpu:
        wide = judge_memory(reading, description.weight_bytes + description.half_bytes + extra)
        if wide.fit in {MemoryFit.FITS, MemoryFit.UNKNOWN}:
            verdict = attrs.evolve(wide, form=WeightForm.WIDE, widening_bytes=description.half_bytes)
    if verdict.fit is MemoryFit.EXCEEDS:
        raise InsufficientMemoryError(
            f"training '{description.handle.label}' does not fit into this machine's memory budget",
            hint=Advice(Remedy.TRAIN_LESS_AT_ONCE),
            detail={"needed_bytes": verdict.needed, "budget_bytes": verdict.budget},
        )
    return attrs.evolve(verdict, matrices=matrices)
