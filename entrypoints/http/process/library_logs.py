"""Routes the logs, warnings and uncaught exceptions of libraries into the event log, so that they are redacted, too."""

import logging
import sys
import threading
import warnings
from types import TracebackType

from mlxk.application.ports.event_log import EventLog
from mlxk.entrypoints.http.errors import raised_at

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

QUOTING = ("waitress", "falcon", "urllib3", "httpx", "httpcore")
"""Libraries whose messages quote requests: their texts are not logged."""


class LibraryLogHandler(logging.Handler):
    """Logs records of the standard library's logging as events."""

    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record, without its traceback, which may show values."""
        package = record.name.partition(".")[0]
        message = "a library reports an event" if package in QUOTING else record.getMessage()
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
    # Below warnings, libraries log for their own developers.
    root.setLevel(_LEVELS[level] if level == "debug" else max(_LEVELS[level], logging.WARNING))
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)
    warnings.simplefilter("default" if level == "debug" else "ignore")

    def on_thread_failure(arguments: threading.ExceptHookArgs) -> None:
        name = arguments.thread.name if arguments.thread else "unknown"
        place = raised_at(arguments.exc_traceback)
        log.error("a thread ended unexpectedly", thread=name, error=arguments.exc_type.__name__, where=place)

    def on_failure(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        log.error("the process ended unexpectedly", error=kind.__name__, where=raised_at(trace))

    threading.excepthook = on_thread_failure
    sys.excepthook = on_failure
