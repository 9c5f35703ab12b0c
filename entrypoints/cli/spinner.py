"""Shows that the program is at work, on a terminal and only when it takes longer than a blink."""

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mlxk.entrypoints.cli.output import Output

if TYPE_CHECKING:
    from rich.status import Status

DELAY_SECONDS = 0.3
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
        self._timer = threading.Timer(DELAY_SECONDS, self._show)
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
        from rich.console import Console

        with self._lock:
            if not self._stopped:
                self._status = Console(stderr=True).status(self._text)
                self._status.start()
