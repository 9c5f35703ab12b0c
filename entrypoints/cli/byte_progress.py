"""A progress bar over bytes, on standard error and on a terminal only."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.printable import printable
from mlxk.entrypoints.cli.transfer_progress import bars

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ByteProgress:
    """A context manager that shows one bar for each thing that is being read.

    Args:
        output: Says whether standard error is a terminal.
    """

    def __init__(self, output: Output) -> None:
        self._shown = output.talkative
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` bytes of something are read."""
        if self._progress is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(printable(name), total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def __enter__(self) -> Self:
        if self._shown:
            self._progress = bars()
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
