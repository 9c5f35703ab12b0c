"""Sentences of errors: one for each remedy, entrypoint and option."""

import pytest

from mlxk.domain.errors import Advice, MlxkError, ModelNotFoundError, Remedy, UnhealthyModelError, ValidationError
from mlxk.domain.models.footprint import Matrices
from mlxk.domain.models.model import unhealthy
from mlxk.entrypoints.wording import COMMAND_LINE, HTTP, command_line_error, health_reason, http_error, matrices_words

NAMES = {"path": "./n", "name": "org/m", "reference": "m", "close": "org/n", "capability": "vision"}


@pytest.mark.parametrize("remedy", Remedy)
def test_each_entrypoint_has_a_sentence_for_every_remedy(remedy: Remedy) -> None:
    assert COMMAND_LINE[remedy].format(**NAMES)
    assert HTTP[remedy].format(**NAMES)


@pytest.mark.parametrize(
    ("message", "options", "expected"),
    [
        ("quantize must be 2, 3 or 4 (got 5)", ("quantize",), "--quantize must be 2, 3 or 4 (got 5)"),
        ("q-group-size belongs to quantize", ("q-group-size", "quantize"), "--q-group-size belongs to --quantize"),
        ("dequantize: './quantize' is not quantized", ("dequantize",), "--dequantize: './quantize' is not quantized"),
        ("branch: 'org/branch' has no branches", ("branch",), "--branch: 'org/branch' has no branches"),
        ("say it, with private or public", ("private", "public"), "say it, with --private or --public"),
    ],
)
def test_options_are_spelled_as_flags_on_the_command_line_and_as_names_over_http(
    message: str, options: tuple[str, ...], expected: str
) -> None:
    error = ValidationError(message, options=options)
    assert command_line_error(error)[0] == expected
    assert http_error(error)[0] == message


def test_a_remedy_is_phrased_for_the_user_of_the_entrypoint() -> None:
    error = MlxkError("'m' has no chat template", hint=Advice(Remedy.USE_COMPLETIONS))
    assert http_error(error)[1] == "Send the text to /v1/completions instead."
    assert "/v1" not in str(command_line_error(error)[1])


def test_names_of_models_are_part_of_the_sentence() -> None:
    error = ModelNotFoundError("no model", hint=Advice(Remedy.FETCH_OR_USE_CLOSE_NAME, NAMES))
    assert command_line_error(error)[1] == "Did you mean org/n? Otherwise fetch it: mlxk pull org/m"


def test_an_index_of_other_files_is_reported_with_the_command_that_repairs_it() -> None:
    report = unhealthy("Index/shard mismatch. Index references 3 shards but found 2.", fix=Remedy.REPAIR_INDEX)
    expected = (
        "Index/shard mismatch (mlx-vlm #624). Index references 3 shards but found 2. "
        "Fix: mlxk convert <model> <output> --repair-index"
    )
    assert health_reason(report) == expected
    error = UnhealthyModelError(f"'m' is damaged or incomplete: {report.reason}", fix=report.fix)
    assert command_line_error(error)[0] == f"'m' is damaged or incomplete: {expected}"


@pytest.mark.parametrize(
    ("matrices", "words"),
    [
        (Matrices(on_cpu=True, library="OpenBLAS 0.3.26"), "multiplied by OpenBLAS 0.3.26"),
        (
            Matrices(on_cpu=True),
            "multiplied slowly; OpenBLAS is many times faster (Debian, Ubuntu: apt install libopenblas0)",
        ),
        (Matrices(on_cpu=True, wanted=False), "multiplied slowly, since no library for it may be used"),
    ],
)
def test_how_matrices_are_multiplied_is_said(matrices: Matrices, words: str) -> None:
    assert matrices_words(matrices) == words


@pytest.mark.parametrize("hint", [None, "Write the whole name."])
def test_a_hint_that_suits_every_user_stays_as_it_is(hint: str | None) -> None:
    error = MlxkError("two fit", hint=hint)
    assert command_line_error(error) == http_error(error) == ("two fit", hint)
