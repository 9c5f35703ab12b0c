"""The contract of progress, held by the double and by everything the command line shows."""

import io

import pytest
from doubles.progress import InMemoryProgress

from mlxk.application.ports.system import Progress
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import BarProgress, LineProgress, SilentProgress


@pytest.fixture(params=["in_memory", "silent", "lines", "bars"])
def progress(request: pytest.FixtureRequest) -> Progress:
    output = Output(as_json=False, color=False, stdout=io.StringIO(), stderr=io.StringIO())
    kinds: dict[str, Progress] = {
        "in_memory": InMemoryProgress(),
        "silent": SilentProgress(),
        "lines": LineProgress(output),
        "bars": BarProgress(output),
    }
    return kinds[request.param]


def test_it_can_be_told_of_several_parts_of_the_work(progress: Progress) -> None:
    for activity in ("Downloading", "Cloning"):
        progress.begin(activity, {"a": 10, "b": 0, "[bold]": 5})
        progress.advance({"a": 3})
        progress.advance({"a": 10, "b": 0, "[bold]": 5})
        progress.end()


def test_a_number_may_fall_and_an_end_may_come_twice(progress: Progress) -> None:
    progress.begin("Downloading", {"a": 10})
    progress.advance({"a": 9})
    progress.advance({"a": 0})
    progress.note("The file arrived damaged and is fetched again.")
    progress.end()
    progress.end()


def test_a_note_may_come_at_any_time(progress: Progress) -> None:
    progress.note("Waiting for process 1, which is pulling it.")
