"""The line of figures that is shown while a model is trained."""

from typing import Any

from mlxk.domain.tuning.training import TrainingPoint
from mlxk.entrypoints.cli.render.tuning import LatestFigures

BARS = "\u2585\u2588" * 12
"""Twice as high, by turns."""


def test_the_latest_figures_stand_on_one_line() -> None:
    figures = LatestFigures(300)
    assert figures.with_point(TrainingPoint(0, 0.0, valid_loss=2.0)) == "step 0 of 300, validation 2.000"
    shown = figures.with_point(TrainingPoint(1, 1.0, loss=4.0, tokens_per_second=70.4, seconds_left=90.0))
    assert shown == "step 1 of 300, loss 4.000, validation 2.000, 70 tokens/s, 1 min 30 s left"
    for step in range(2, 300):
        shown = figures.with_point(TrainingPoint(step, 1.0, loss=4.0 if step % 2 else 2.0))
    assert shown == f"step 299 of 300, loss 4.000, validation 2.000 {BARS}"
    last = figures.with_point(TrainingPoint(300, 2.0, valid_loss=0.5, seconds_left=1.0))
    assert last == f"step 300 of 300, loss 4.000, validation 0.500 {BARS}"


class CountedPoint(TrainingPoint):
    """A point that counts how often its figures are read."""

    reads = 0

    def __getattribute__(self, name: str) -> Any:
        """Return a figure."""
        CountedPoint.reads += name in {"loss", "valid_loss"}
        return super().__getattribute__(name)


def test_a_step_takes_no_longer_for_the_steps_before_it() -> None:
    figures, reads = LatestFigures(2000), []
    for step in range(2000):
        CountedPoint.reads = 0
        figures.with_point(CountedPoint(step, 1.0, loss=1.0))
        reads.append(CountedPoint.reads)
    assert set(reads[1:]) == {reads[0]}
