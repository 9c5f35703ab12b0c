"""Which models are trained and measured on which examples, with which library, and whether memory suffices."""

import attrs

from mlxk.application.policy import require_text_model
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.tuning import TrainedModel
from mlxk.domain.errors import Advice, CapabilityError, InsufficientMemoryError, Remedy
from mlxk.domain.models.footprint import MemoryFit, MemoryVerdict, WeightForm, judge_memory
from mlxk.domain.models.model import Capability, ModelDescription
from mlxk.domain.tuning.data import TrainingData


def require_taken(description: ModelDescription, data: TrainingData, done: str) -> None:
    """Refuse a model that cannot generate text here, hears sound, or is shown images that it cannot read.

    Args:
        description: The model.
        data: Examples for it.
        done: What is done with models, for the message.

    Raises:
        CapabilityError, IncompatibleModelError, UnhealthyModelError: It is refused.
    """
    require_text_model(description)
    name, sees = description.handle.label, description.can(Capability.VISION)
    if description.can(Capability.AUDIO) and not sees:
        raise CapabilityError(
            f"'{name}' reads sound; only models that read text, or text and images, are {done}",
            hint="Choose another model.",
        )
    if data.has_images and not sees:
        raise CapabilityError(f"the data has images, and '{name}' reads text alone", hint="Choose a vision model.")


def trained(description: ModelDescription) -> TrainedModel:
    """Return a model with the library that runs it by preference."""
    return TrainedModel(attrs.evolve(description.handle, adapter=None), description.runtime.backends[0])


def require_training_memory(description: ModelDescription, memory: MemoryProbe, extra: int) -> MemoryVerdict:
    """Return how much memory training takes, and in which form the weights of the model are held.

    A CPU, which emulates numbers of 16 bits, trains in 32 bits where that fits.

    Args:
        description: The model.
        memory: Reads the machine's memory.
        extra: What training takes beside the weights, bytes.

    Raises:
        InsufficientMemoryError: It is beyond the budget.
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
