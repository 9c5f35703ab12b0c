"""What is said of other programs beside a measurement."""

import attrs
import pytest

from mlxk.application.use_cases.measure_speed import busy_notes
from mlxk.domain.benchmark import Machine, Processor

IDLE = Machine("Linux 6", "x86_64", Processor("any", 8), 2**34, True, None, None, ())


@pytest.mark.parametrize(
    ("load", "said"), [(None, None), (0.0, None), (0.25, None), (0.251, "25 %"), (0.5, "50 %"), (1.996, "200 %")]
)
def test_a_load_above_a_quarter_of_the_cores_is_said(load: float | None, said: str | None) -> None:
    notes = tuple(busy_notes(attrs.evolve(IDLE, load_before=load)))
    begin = f"Other programs loaded the cores to {said} in the minute before: "
    assert [note.startswith(begin) for note in notes] == ([] if said is None else [True])
