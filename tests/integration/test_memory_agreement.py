"""``show``, ``run`` and ``serve`` agree on whether a model fits into memory, to the byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles.memory_probe import InMemoryMemoryProbe
from serving.running import RunningServer
from serving.whole_program import PATH, QUESTION, WholeProgram

from mlxk.domain.models.footprint import MemoryReading
from mlxk.entrypoints import container
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
Command = Callable[..., dict[str, Any]]


def least_total(needed: int) -> int:
    """Return the smallest memory of a machine whose budget holds so much."""
    total = needed
    while MemoryReading(total, total).budget < needed:
        total += max(1, needed - MemoryReading(total, total).budget)
    while MemoryReading(total - 1, total).budget >= needed:
        total -= 1
    return total


@pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, False)])
def test_show_run_and_serve_agree_at_the_edge(
    missing: int, fits: bool, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = least_total(command("show", "demo")["data"]["memory"]["needed_bytes"]) - missing
    monkeypatch.setattr(container, "system_memory_probe", lambda _: InMemoryMemoryProbe(MemoryReading(total, total)))

    shown = command("show", "demo")["data"]["memory"]
    run = command("run", "demo", "hi", "--max-tokens", "2", "--strict-memory")
    program: Any = WholeProgram(tmp_path / "home", ServerSettings(strict_memory=True))
    with RunningServer(program) as served:
        status, _, answer = served.post(PATH, {**QUESTION, "max_tokens": 2})

    assert shown["fit"] == ("fits" if fits else "exceeds")
    assert (run["status"] == "success", status == 200) == (fits, fits)
    if not fits:
        numbers = {name: shown[name] for name in ("needed_bytes", "budget_bytes")}
        assert run["error"]["detail"] == numbers
        assert (status, answer["error"]["detail"]) == (507, numbers)
