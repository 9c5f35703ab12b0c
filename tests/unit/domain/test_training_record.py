"""The model card of a trained adapter: what it says of base, data, settings and losses."""

import attrs
import pytest

from mlxk.domain.tuning.base import BaseModel
from mlxk.domain.tuning.examples import ExampleKind
from mlxk.domain.tuning.record import TrainingRecord, UsedData
from mlxk.domain.tuning.training import Method, TrainingPoint, TrainingResult, TuningSettings

DIGEST = f"sha256:{'d' * 64}"
POINTS = (
    TrainingPoint(0, 0.0, None, 4.0),
    TrainingPoint(1, 1.0, 2.0),
    TrainingPoint(2, 2.0, 1.0, 3.0),
)
RECORD = TrainingRecord(
    BaseModel("org/m", "a" * 40, DIGEST, "org/m"),
    UsedData("facts.jsonl", DIGEST, ExampleKind.CHAT.value, 9, 1, True),
    TuningSettings(steps=2, batch_size=4, max_length=64, layers=8, rank=16, scale=20.0, learning_rate=1e-4, seed=7),
    TrainingResult(2, None, False, POINTS, 12_345, 100, 2.0, 1),
)


def lines(record: TrainingRecord) -> list[str]:
    """Return the lines of the card."""
    return record.card("taught").decode().splitlines()


def test_a_card_states_base_data_settings_and_losses() -> None:
    found = lines(RECORD)
    assert found[: found.index("# taught")] == [
        "---",
        "library_name: mlx",
        "tags:",
        "- mlx",
        "- adapter",
        "- lora",
        "base_model: org/m",
        "base_model_relation: adapter",
        "---",
        "",
    ]
    assert [each for each in found if each.startswith("- ")][3:] == [
        f"- Base: org/m, content {DIGEST}",
        f"- Data: 9 examples of messages, 1 for validation, content {DIGEST}",
        "- Trained: the last 8 layers, rank 16, scale 20; 12,345 numbers",
        "- Steps: 2 of 2, batches of 4, learning rate 0.0001, seed 7",
        "- Loss: 2.000 (perplexity 7.389) at the beginning, 1.000 (perplexity 2.718) at the end",
        "- Loss of the validation: 4.000 (perplexity 54.6) before, 3.000 (perplexity 20.09) after",
    ]


def test_a_loss_of_pairs_has_no_perplexity_and_a_missing_one_is_unknown() -> None:
    pairs = attrs.evolve(RECORD, data=attrs.evolve(RECORD.data, kind=ExampleKind.PAIR.value))
    assert "- Loss: 2.000 at the beginning, 1.000 at the end" in lines(pairs)
    assert "- Loss of the validation: 4.000 before, 3.000 after" in lines(pairs)
    for record in (RECORD, pairs):
        without = lines(attrs.evolve(record, result=attrs.evolve(record.result, points=())))
        assert "- Loss: unknown at the beginning, unknown at the end" in without
        assert not any("validation:" in each for each in without)


@pytest.mark.parametrize(
    ("base", "changes", "stopped", "said"),
    [
        (BaseModel("../mine", None, None), {}, False, "- Base: mine, content without a hash"),
        (RECORD.base, {"layers": 1}, False, "- Trained: the last layer, rank 16, scale 20; 12,345 numbers"),
        (RECORD.base, {"method": Method.FULL}, False, "- Trained: the last 8 layers, whole weights; 12,345 numbers"),
        (
            RECORD.base,
            {"steps": 5},
            True,
            "- Steps: 2 of 5 (ended before its time), batches of 4, learning rate 0.0001, seed 7",
        ),
    ],
)
def test_what_is_otherwise_is_said(base: BaseModel, changes: dict[str, object], stopped: bool, said: str) -> None:
    settings = attrs.evolve(RECORD.settings, **changes)
    found = lines(TrainingRecord(base, RECORD.data, settings, attrs.evolve(RECORD.result, stopped=stopped)))
    assert said in found
    assert ("base_model: org/m" in found) is (base is RECORD.base)
