"""The log of the server's process: routes messages of libraries into it, and keeps writers to standard error unblocked.

A log cannot be written when its pipe has no reader or a slow one, the terminal is on hold, or the disk is full.
Requests must not wait for it: lines are queued, one thread writes them, and lines beyond the queue's limit are lost.
"""

import io
import logging
import os
import select
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from types import TracebackType

from mlxk.application.ports.system import EventLog
from mlxk.entrypoints.http.errors import raised_at

MAX_QUEUED_BYTES = 2**20
"""Bytes of lines that may wait for a slow reader; later lines are lost."""

MAX_PARTIAL = 8192
"""Characters of an unfinished line, such as a progress bar, after which it is queued all the same."""

CLOSE_SECONDS = 1.0
"""How long ``close`` waits for the queued lines to be written."""

POLL_MS = 1000
RETRY_SECONDS = 0.1


class LossyStream(io.TextIOBase):
    """Writes text to a descriptor from a thread of its own. Thread-safe; never blocks or raises.

    Args:
        descriptor: Where to write; never closed here.
        on_loss: Called with the number of lost lines, from the stream's thread, once lines can be written again.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int, on_loss: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.on_loss = on_loss
        self._descriptor = descriptor
        self._partial = ""
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._lost = 0
        self._broken_line = False
        self._ending = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="mlxk-log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue the complete lines of the text, and keep the rest for the next call."""
        with self._changed:
            self._partial += text
            end = self._partial.rfind("\n") + 1
            if not end and len(self._partial) > MAX_PARTIAL:
                end = len(self._partial)
            if end:
                self._enqueue(self._partial[:end])
                self._partial = self._partial[end:]
        return len(text)

    def flush(self) -> None:
        """Queue the unfinished line."""
        with self._changed:
            if self._partial:
                self._enqueue(self._partial)
                self._partial = ""

    def close(self) -> None:
        """Take no more lines, and wait up to ``CLOSE_SECONDS`` until the queue is written; keep the descriptor open."""
        self.flush()
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def _enqueue(self, text: str) -> None:
        data = text.encode(self.encoding, self.errors)
        if self._ending or self._queued + len(data) > MAX_QUEUED_BYTES:
            self._lost += max(1, data.count(b"\n"))
            return
        self._queue.append(data)
        self._queued += len(data)
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._ending:
                    self._changed.wait()
                if not self._queue:
                    return
                data = self._queue.popleft()
            written = self._deliver(data)
            with self._changed:
                self._queued -= len(data)
                lost = self._lost if written else 0
                self._lost = 0 if written else self._lost + max(1, data.count(b"\n"))
            if lost and self.on_loss is not None:
                self.on_loss(lost)

    def _deliver(self, data: bytes) -> bool:
        """Write some lines; return whether all of them were written."""
        rest = b"\n" + data if self._broken_line else data
        poller = select.poll()
        poller.register(self._descriptor, select.POLLOUT)
        deadline: float | None = None
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another program made the pipe or terminal non-blocking
                if any(events & select.POLLNVAL for _, events in poller.poll(POLL_MS)):
                    time.sleep(RETRY_SECONDS)  # macOS cannot poll terminals
                if self._ending:
                    deadline = deadline or time.monotonic() + CLOSE_SECONDS
                    if time.monotonic() > deadline:
                        return False
            except OSError:
                self._broken_line = self._broken_line or 0 < len(rest) < len(data)
                return False
        self._broken_line = False
        return True


_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_QUOTING = ("waitress", "falcon", "urllib3", "httpx2", "httpcore2")
"""Libraries whose messages may quote requests; the text of these messages is not logged."""


class LibraryLogHandler(logging.Handler):
    """Logs records of the standard library's logging as events."""

    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record. Its traceback may show values, and is left out."""
        package = record.name.partition(".")[0]
        message = "a library reports an event" if package in _QUOTING else record.getMessage()
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info and record.exc_info[0] is not None:
            fields |= {"error": record.exc_info[0].__name__, "where": raised_at(record.exc_info[2])}
        write = self._log.debug
        if record.levelno >= logging.ERROR:
            write = self._log.error
        elif record.levelno >= logging.WARNING:
            write = self._log.warning
        write(message, **fields)


def route_library_logs(log: EventLog, level: str) -> None:
    """Route the logs, warnings and uncaught exceptions of this process into the event log."""
    root = logging.getLogger()
    root.handlers[:] = [LibraryLogHandler(log)]
    # Below warning, libraries log for their own developers.
    root.setLevel(_LEVELS[level] if level == "debug" else max(_LEVELS[level], logging.WARNING))
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)
    warnings.simplefilter("default" if level == "debug" else "ignore")

    def on_thread_failure(arguments: threading.ExceptHookArgs) -> None:
        name = arguments.thread.name if arguments.thread else "unknown"
        location = raised_at(arguments.exc_traceback)
        log.error("a thread ended unexpectedly", thread=name, error=arguments.exc_type.__name__, where=location)

    def on_failure(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        log.error("the process ended unexpectedly", error=kind.__name__, where=raised_at(trace))

    threading.excepthook = on_thread_failure
    sys.excepthook = on_failure
