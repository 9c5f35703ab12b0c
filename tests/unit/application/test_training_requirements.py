"""What a model must be, and how much memory it takes, before it is trained."""

import datetime
import json

import attrs
import pytest
from doubles.memory_probe import InMemoryMemoryProbe

from mlxk.application.training_policy import require_suitable, require_training_memory
from mlxk.domain.errors import Advice, CapabilityError, InsufficientMemoryError, Remedy
from mlxk.domain.models.footprint import RESERVE_BYTES, Matrices, MemoryReading, WeightForm
from mlxk.domain.models.model import Capability, Framework, ModelDescription, ModelHandle, ModelType, Origin, Runtime
from mlxk.domain.models.model import healthy as whole
from mlxk.domain.tuning.data import FileCheck, TrainingData

GIB = 1024**3
TEXT, VISION, AUDIO = Capability.TEXT_GENERATION, Capability.VISION, Capability.AUDIO
MODEL = ModelDescription(
    handle=ModelHandle("org/m", "/cache/org/m", Origin.CACHE, "a" * 40),
    size_bytes=2 * GIB,
    weight_bytes=GIB,
    half_bytes=GIB,
    modified=datetime.datetime.fromtimestamp(0, datetime.UTC),
    framework=Framework.MLX,
    model_type=ModelType.CHAT,
    capabilities=(TEXT,),
    context_length=None,
    health=whole(),
    runtime=Runtime(True, backends=("mlx-lm",)),
)


def data(**more: object) -> TrainingData:
    """Return one example."""
    line = json.dumps({"prompt": "Who?", "completion": "Ann.", **more}).encode()
    return TrainingData(tuple(FileCheck("f").read([line]).examples))


TEXTS, IMAGES = data(), data(image="a.png")


@pytest.mark.parametrize(
    ("capabilities", "examples", "fault"),
    [
        ((TEXT,), TEXTS, None),
        ((TEXT, VISION), IMAGES, None),
        ((TEXT, VISION, AUDIO), IMAGES, None),
        ((TEXT,), IMAGES, "the data has images, and 'org/m' reads text alone"),
        (
            (TEXT, AUDIO),
            TEXTS,
            "'org/m' reads sound; only models that read text, or text and images, are measured",
        ),
    ],
)
def test_a_model_must_read_what_the_examples_are(
    capabilities: tuple[Capability, ...], examples: TrainingData, fault: str | None
) -> None:
    model = attrs.evolve(MODEL, capabilities=capabilities)
    if fault is None:
        require_suitable(model, examples, "measured")
        return
    with pytest.raises(CapabilityError) as refusal:
        require_suitable(model, examples, "measured")
    assert refusal.value.message == fault
    assert str(refusal.value.hint).startswith("Choose a")


def test_a_training_beyond_the_memory_budget_is_refused_with_the_numbers() -> None:
    reading = MemoryReading(4 * GIB, 4 * GIB)
    with pytest.raises(InsufficientMemoryError) as refusal:
        require_training_memory(MODEL, InMemoryMemoryProbe(reading), 8 * GIB)
    assert refusal.value.message == "training 'org/m' does not fit into this machine's memory budget"
    assert refusal.value.hint == Advice(Remedy.TRAIN_LESS_AT_ONCE)
    assert refusal.value.detail == {"needed_bytes": 9 * GIB + RESERVE_BYTES, "budget_bytes": reading.budget}


@pytest.mark.parametrize(
    ("total", "on_cpu", "form"),
    [
        (64, True, WeightForm.WIDE),
        (64, False, WeightForm.STORED),
        (None, True, WeightForm.WIDE),
        (8, True, WeightForm.STORED),
    ],
)
def test_a_cpu_trains_in_32_bits_where_that_fits(total: int | None, on_cpu: bool, form: WeightForm) -> None:
    memory = InMemoryMemoryProbe(None if total is None else MemoryReading(total * GIB, total * GIB))
    memory.multiplied_by = Matrices(on_cpu=on_cpu)
    budget = GIB * 8 if memory.reading is None else memory.reading.budget
    extra = GIB if total != 8 else budget - RESERVE_BYTES - GIB
    verdict = require_training_memory(MODEL, memory, extra)
    wide = form is WeightForm.WIDE
    assert (verdict.form, verdict.widening_bytes, verdict.matrices) == (form, GIB * wide, memory.multiplied_by)
    assert verdict.needed == GIB * (1 + wide) + extra + RESERVE_BYTES
