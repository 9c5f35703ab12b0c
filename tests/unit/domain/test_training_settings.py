"""The settings of a training: defaults by the data and the model, ranges, the course of the learning rate, memory."""

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.domain.tuning.training import Method, NetworkShape, TuningChoices, TuningSettings, perplexity, training_bytes

TINY: dict[str, int] = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384, "vocab_size": 1536}
LARGE: dict[str, int] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "vocab_size": 128_000,
}


@pytest.mark.parametrize(("examples", "steps"), [(3, 60), (20, 200), (400, 300), (4000, 3000)])
def test_few_examples_are_repeated_more_often(examples: int, steps: int) -> None:
    assert TuningChoices().settings(TINY, examples, 2048).steps == steps


def test_narrow_models_take_larger_steps_and_whole_weights_smaller_ones() -> None:
    rates = [
        TuningChoices(method=method).settings(config, 20, None).learning_rate
        for config in (TINY, LARGE)
        for method in Method
    ]
    assert rates == [0.003, 0.003, 0.0001, 0.0002, 0.0002, 1e-05]


def test_what_is_said_counts() -> None:
    choices = TuningChoices(epochs=2.5, batch_size=4, accumulation=2, layers=99, max_length=5000, mask_prompt=False)
    made = choices.settings(TINY, 40, 2048)
    assert (made.steps, made.layers, made.max_length, made.mask_prompt) == (13, 4, 2048, False)
    assert TuningChoices().settings(TINY, 2, None).batch_size == 2


@pytest.mark.parametrize(
    ("choices", "field"),
    [
        (TuningChoices(steps=0), "steps"),
        (TuningChoices(epochs=0.0), "epochs"),
        (TuningChoices(steps=1, epochs=1.0), "iters"),
        (TuningChoices(batch_size=21), "batch_size"),
        (TuningChoices(dropout=1.0), "dropout"),
        (TuningChoices(scale=0.0), "scale"),
        (TuningChoices(learning_rate=-1.0), "learning_rate"),
        (TuningChoices(max_length=4), "max_length"),
        (TuningChoices(accumulation=0), "accumulation"),
    ],
)
def test_a_value_out_of_range_is_named(choices: TuningChoices, field: str) -> None:
    with pytest.raises(ValidationError, match=f"^{field}"):
        choices.settings(TINY, 20, None)


BOUNDS: list[tuple[str, list[float], list[float]]] = [
    ("steps", [1, 10**7], [0, 10**7 + 1]),
    ("batch_size", [1, 4096], [-1, 0, 4097]),
    ("rank", [1, 4096], [0, 4097]),
    ("max_length", [8, 10**7], [0, 7]),
    ("seed", [0, 2**32 - 1], [-1, 2**32]),
    ("save_every", [1, 10**7], [0, 10**7 + 1]),
    ("validate_every", [1, 10**7], [0, 10**7 + 1]),
    ("accumulation", [1, 4096], [0, 4097]),
    ("scale", [1e-9, 10_000.0], [0.0, 10_000.1]),
    ("dropout", [0.0, 0.99], [-0.01, 0.991]),
    ("learning_rate", [1e-9, 10.0], [0.0, 10.1]),
    ("beta", [1e-9, 100.0], [0.0, 100.1]),
    ("epochs", [1e-9, 10_000.0], [0.0, -1.0, 10_000.1]),
]


@pytest.mark.parametrize(("field", "taken", "refused"), BOUNDS, ids=[bounds[0] for bounds in BOUNDS])
def test_the_least_and_the_most_are_taken_and_what_is_beyond_is_refused_by_name(
    field: str, taken: list[float], refused: list[float]
) -> None:
    examples = 5000 if field == "batch_size" else 20
    for value in taken:
        TuningChoices(**{field: value}).settings(TINY, examples, None)  # type: ignore[arg-type]
    for value in refused:
        with pytest.raises(ValidationError, match=f"^{field}: must be "):
            TuningChoices(**{field: value}).settings(TINY, examples, None)  # type: ignore[arg-type]


def test_the_learning_rate_rises_and_falls_to_a_tenth() -> None:
    settings = TuningSettings(steps=200, batch_size=1, layers=1, max_length=64, learning_rate=1.0)
    rates = [settings.learning_rate_at(step) for step in range(1, 201)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    one = TuningSettings(steps=1, batch_size=1, layers=1, max_length=64, learning_rate=1.0)
    assert one.learning_rate_at(1) == 1.0


def test_memory_grows_with_what_is_trained_and_shrinks_with_what_is_recomputed() -> None:
    shape = NetworkShape.of(LARGE)

    def needed(length: int = 512, **choices: object) -> int:
        made = TuningChoices(**choices).settings(LARGE, 20, None)  # type: ignore[arg-type]
        return training_bytes(shape, made, length, 16 * 10**9)

    usual = needed()
    assert needed(length=1024) > 2 * usual * 0.9
    assert needed(batch_size=8) > usual > needed(batch_size=1)
    assert needed(layers=4) < usual / 3
    assert needed(recompute=True) < usual / 3
    assert needed(method=Method.FULL) > usual + 40 * 10**9


def test_a_loss_beyond_all_numbers_has_no_finite_perplexity() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == float("inf")
