"""How far a recording has been heard, on standard error, on a terminal and only when it takes longer than a blink."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mlxk.entrypoints.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DELAY_SECONDS = 0.5
"""What is faster needs no bar."""


class ListeningProgress:
    """A context manager that shows one bar, in seconds of the recording.

    Args:
        output: Says whether standard error is a terminal.
        shown: Whether a bar is welcome: not where the text itself appears as it is heard.
    """

    def __init__(self, output: Output, *, shown: bool) -> None:
        self._shown = shown and output.talkative
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, done: float, total: float) -> None:
        """Report that so many seconds of so many are heard."""
        if self._progress is None and self._shown and time.monotonic() - self._began > DELAY_SECONDS:
            self._progress = _bar()
            self._progress.start()
        if self._progress is not None:
            if self._task is None:
                self._task = self._progress.add_task("Listening", total=total)
            self._progress.update(self._task, completed=done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
