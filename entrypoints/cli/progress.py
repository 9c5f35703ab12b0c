"""Progress on standard error: a spinner, bars over bytes and seconds, and the port for long operations.

Nothing is shown beside JSON; off a terminal only plain lines. Writing the result is the work of ``output``.
"""

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.status import Status

from mlxk.application.ports.progress import Progress
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.render.formatting import decimal_size, printable

SPINNER_DELAY_SECONDS = 0.3
"""What is faster needs no announcement."""


class Spinner:
    """A context manager that announces a wait on standard error; ``stop`` ends it early.

    Args:
        output: Says whether standard error is a terminal.
        text: What is being waited for.
    """

    def __init__(self, output: Output, text: str) -> None:
        self._text = text
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._stopped = not output.talkative
        self._timer = threading.Timer(SPINNER_DELAY_SECONDS, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if not self._stopped:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the announcement away; may be called twice."""
        with self._lock:
            self._stopped = True
            status, self._status = self._status, None
        self._timer.cancel()
        if status:
            status.stop()

    def _show(self) -> None:
        with self._lock:
            if not self._stopped:
                self._status = Console(stderr=True).status(self._text)
                self._status.start()


class ByteProgress:
    """A context manager that shows one bar for each thing that is being read.

    Args:
        output: Says whether standard error is a terminal.
    """

    def __init__(self, output: Output) -> None:
        self._shown = output.talkative
        self._progress: Bars | None = None
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


BAR_DELAY_SECONDS = 0.5
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
        self._progress: Bars | None = None
        self._task: TaskID | None = None

    def __call__(self, done: float, total: float) -> None:
        """Report that so many seconds of so many are heard."""
        if self._progress is None and self._shown and time.monotonic() - self._began > BAR_DELAY_SECONDS:
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


def _bar() -> Bars:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
        TimeRemainingColumn(),
    )
    return Bars(*columns, console=Console(stderr=True), transient=True)


SECONDS_BETWEEN_LINES = 10.0
NAMED_AT_MOST = 20
"""Items beyond which small ones are not named one by one."""
NAMED_FROM = 1_000_000
"""Bytes from which an item is named in any case."""


def transfer_progress(output: Output, *, quiet: bool = False) -> Progress:
    """Choose how progress is shown."""
    if output.as_json or quiet:
        return SilentProgress()
    return BarProgress(output) if output.talkative else LineProgress(output)


class SilentProgress(Progress):
    """Shows nothing."""

    def begin(self, activity: str, sizes: Mapping[str, int]) -> None:
        """Show nothing."""

    def advance(self, done: Mapping[str, int]) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""

    def note(self, message: str) -> None:
        """Show nothing."""


class LineProgress(Progress):
    """Writes a line when work begins, when a file is done, and now and then between."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._sizes: dict[str, int] = {}
        self._finished: set[str] = set()
        self._began = self._told = 0.0
        self._before = 0

    def begin(self, activity: str, sizes: Mapping[str, int]) -> None:
        """Say what is to be done."""
        self._sizes, self._finished = dict(sizes), set()
        self._began = self._told = time.monotonic()
        self._before = -1
        self._output.note(f"{activity} {_files(len(sizes))}, {decimal_size(sum(sizes.values()))}")

    def advance(self, done: Mapping[str, int]) -> None:
        """Name the files that are done; say how far the rest is every ten seconds."""
        for name in sorted(done):
            if done[name] >= self._sizes.get(name, 0) and name not in self._finished:
                self._finished.add(name)
                if len(self._sizes) > NAMED_AT_MOST and self._sizes.get(name, 0) < NAMED_FROM:
                    continue
                self._output.note(f"  {name} ({decimal_size(self._sizes.get(name, 0))})")
        total, now = sum(done.values()), time.monotonic()
        if self._before < 0:
            self._before = total
        if now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            size = sum(self._sizes.values())
            rate = max(0, total - self._before) / (now - self._began)
            left = f", {(size - total) / rate:.0f} s left" if rate else ""
            self._output.note(f"  {decimal_size(total)} of {decimal_size(size)}, {decimal_size(int(rate))}/s{left}")

    def end(self) -> None:
        """Say nothing more."""

    def note(self, message: str) -> None:
        """Write a line."""
        self._output.note(message)


class BarProgress(Progress):
    """Draws one bar over everything, and one for each item at work."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bars: Bars | None = None
        self._sizes: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._total: TaskID | None = None

    def begin(self, activity: str, sizes: Mapping[str, int]) -> None:
        """Draw the bar over everything."""
        self.end()
        self._sizes, self._tasks = dict(sizes), {}
        self._bars = bars()
        self._total = self._bars.add_task(printable(activity), total=sum(sizes.values()))
        self._bars.start()

    def advance(self, done: Mapping[str, int]) -> None:
        """Move the bars; an item that is done loses its own."""
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
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = None

    def note(self, message: str) -> None:
        """Write a line above the bars."""
        if self._bars is not None:
            self._bars.console.print(printable(message), markup=False, highlight=False)
        else:
            self._output.note(message)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def bars() -> Bars:
    """Return bars over bytes on standard error, which go when they end."""
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Bars(*columns, console=Console(stderr=True), transient=True)
