"""Progress on standard error, drawn by rich: a spinner, bars of bytes and seconds, adapters of the ``Progress`` port.

rich is imported when there is something to draw. With JSON output nothing is shown; where standard error is not a
terminal, only ``LineProgress`` writes.
"""

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mlxk.application.ports.system import Confirmation, Progress
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.render.formatting import counted, decimal_size, printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID
    from rich.status import Status

SPINNER_DELAY_SECONDS = 0.3
"""A spinner appears after a wait of this time."""


class Spinner:
    """Context manager that shows a spinner while the user waits; ``stop`` removes it early, ``start`` restarts it.

    Args:
        output: Knows whether standard error is a terminal.
        text: The name of the activity.
    """

    def __init__(self, output: Output, text: str) -> None:
        self._text = text
        self._wanted = output.shows_progress
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Show the spinner after a delay, unless ``stop`` is called before."""
        self.stop()
        if self._wanted:
            self._timer = timer = threading.Timer(SPINNER_DELAY_SECONDS, lambda: self._show(timer))
            timer.daemon = True
            timer.start()

    def show(self, text: str) -> None:
        """Change the name of the activity, and start the spinner where it was stopped."""
        with self._lock:
            self._text, status, starting = text, self._status, self._timer is not None
        if status:
            status.update(text)
        elif not starting:
            self.start()

    def stop(self) -> None:
        """Remove the spinner; may be called twice."""
        with self._lock:
            timer, self._timer = self._timer, None
            status, self._status = self._status, None
        if timer:
            timer.cancel()
        if status:
            status.stop()

    def _show(self, timer: threading.Timer) -> None:
        with self._lock:
            if self._timer is timer:
                from rich.console import Console  # noqa: PLC0415

                self._status = Console(stderr=True).status(self._text)
                self._status.start()


class PausedWhileAsking(Confirmation):
    """Confirmation that stops a spinner while it asks.

    Args:
        confirmation: Asks the user.
        spinner: Is restarted after the answer.
    """

    def __init__(self, confirmation: Confirmation, spinner: "Spinner | SpinnerBetweenBars") -> None:
        self._confirmation, self._spinner = confirmation, spinner

    def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
        self._spinner.stop()
        answer = self._confirmation.ask(facts, question, default=default)
        self._spinner.start()
        return answer


class ByteProgress:
    """Context manager and callback that shows a bar of bytes for each item that is read.

    Args:
        output: Knows whether standard error is a terminal.
    """

    def __init__(self, output: Output) -> None:
        self._shown = output.shows_progress
        self._progress: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` bytes of an item are read."""
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


BAR_DELAY_SECONDS = 0.5
"""The bar of a transcription appears after this time."""


class TranscriptionBar:
    """Context manager and callback that shows a bar of a transcription's progress, in seconds of the recording.

    Args:
        output: Knows whether standard error is a terminal.
        wanted: Whether to show a bar; a transcript that is printed as it arrives needs none.
    """

    def __init__(self, output: Output, *, wanted: bool) -> None:
        self._wanted = wanted and output.shows_progress
        self._began = time.monotonic()
        self._progress: Bars | None = None
        self._task: TaskID | None = None

    def __call__(self, done: float, total: float) -> None:
        """Report that ``done`` of ``total`` seconds are transcribed."""
        if self._progress is None and self._wanted and time.monotonic() - self._began > BAR_DELAY_SECONDS:
            self._progress = _bar_of_seconds()
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


def _bar_of_seconds() -> "Bars":
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.progress import Progress as Bars  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
        TimeRemainingColumn(),
    )
    return Bars(*columns, console=Console(stderr=True), transient=True)


SECONDS_BETWEEN_LINES = 10.0
NAMED_AT_MOST = 20
"""With more items than this, ``LineProgress`` leaves out small ones."""
NAMED_FROM = 1_000_000
"""Size in bytes from which an item is not a small one."""


def transfer_progress(output: Output, *, quiet: bool = False) -> Progress:
    """Return the ``Progress`` for an output: bars on a terminal, else lines; nothing for JSON or with ``quiet``."""
    if output.as_json or quiet:
        return SilentProgress()
    return BarProgress(output) if output.shows_progress else LineProgress(output)


class SpinnerBetweenBars(Progress):
    """Context manager that shows a spinner while a transfer draws no bars: before, between and after them.

    Args:
        output: Knows whether standard error is a terminal.
        text: The name of the activity.
        quiet: Whether to show nothing.
    """

    def __init__(self, output: Output, text: str, *, quiet: bool = False) -> None:
        self._progress = transfer_progress(output, quiet=quiet)
        self._spinner = None if quiet else Spinner(output, text)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Show the spinner after a delay, unless bars begin before."""
        if self._spinner:
            self._spinner.start()

    def stop(self) -> None:
        """Remove the spinner."""
        if self._spinner:
            self._spinner.stop()

    def begin(self, activity: str, sizes: Mapping[str, int]) -> None:
        self.stop()
        self._progress.begin(activity, sizes)

    def advance(self, done: Mapping[str, int]) -> None:
        self._progress.advance(done)

    def end(self) -> None:
        self._progress.end()
        self.start()

    def note(self, message: str) -> None:
        self.stop()
        self._progress.note(message)


class SilentProgress(Progress):
    """Shows nothing."""

    def begin(self, activity: str, sizes: Mapping[str, int]) -> None: ...

    def advance(self, done: Mapping[str, int]) -> None: ...

    def end(self) -> None: ...

    def note(self, message: str) -> None: ...


class LineProgress(Progress):
    """Writes a line when the operation begins, when an item is complete, and every ten seconds."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._sizes: dict[str, int] = {}
        self._finished: set[str] = set()
        self._began = self._reported = 0.0
        self._resumed = -1
        """Bytes that were already there at the first report; -1 before it."""

    def begin(self, activity: str, sizes: Mapping[str, int]) -> None:
        self._sizes, self._finished = dict(sizes), set()
        self._began = self._reported = time.monotonic()
        self._resumed = -1
        self._output.note(f"{activity} {counted(len(sizes), 'file')}, {decimal_size(sum(sizes.values()))}")

    def advance(self, done: Mapping[str, int]) -> None:
        for name in sorted(done):
            if done[name] >= self._sizes.get(name, 0) and name not in self._finished:
                self._finished.add(name)
                if len(self._sizes) > NAMED_AT_MOST and self._sizes.get(name, 0) < NAMED_FROM:
                    continue
                self._output.note(f"  {name} ({decimal_size(self._sizes.get(name, 0))})")
        total, now = sum(done.values()), time.monotonic()
        if self._resumed < 0:
            self._resumed = total
        if now - self._reported >= SECONDS_BETWEEN_LINES:
            self._reported = now
            size = sum(self._sizes.values())
            rate = max(0, total - self._resumed) / (now - self._began)
            left = f", {(size - total) / rate:.0f} s left" if rate else ""
            self._output.note(f"  {decimal_size(total)} of {decimal_size(size)}, {decimal_size(int(rate))}/s{left}")

    def end(self) -> None: ...

    def note(self, message: str) -> None:
        self._output.note(message)


class BarProgress(Progress):
    """Draws a bar of the total, and one for each item in progress."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bars: Bars | None = None
        self._sizes: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._total: TaskID | None = None

    def begin(self, activity: str, sizes: Mapping[str, int]) -> None:
        self.end()
        self._sizes, self._tasks = dict(sizes), {}
        self._bars = bars()
        self._total = self._bars.add_task(printable(activity), total=sum(sizes.values()))
        self._bars.start()

    def advance(self, done: Mapping[str, int]) -> None:
        if self._bars is None or self._total is None:
            return
        for name, count in done.items():
            size = self._sizes.get(name, 0)
            if name not in self._tasks and 0 < count < size:
                self._tasks[name] = self._bars.add_task(f"  {printable(name)}", total=size)
            if name in self._tasks:
                self._bars.update(self._tasks[name], completed=count, visible=count < size)
        self._bars.update(self._total, completed=sum(done.values()))

    def end(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = None

    def note(self, message: str) -> None:
        if self._bars is not None:
            self._bars.console.print(printable(message), markup=False, highlight=False)
        else:
            self._output.note(message)


def bars() -> "Bars":
    """Return bars of bytes on standard error, which are erased when they stop."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars  # noqa: PLC0415

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Bars(*columns, console=Console(stderr=True), transient=True)
