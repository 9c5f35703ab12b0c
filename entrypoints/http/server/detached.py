"""A response that continues after the application has returned, written by the stream dispatcher's thread."""

import threading
from collections.abc import Callable

from waitress.channel import ClientDisconnected
from waitress.task import WSGITask

ENVIRON_DETACH = "mlxk.detach"
"""WSGI environment: ``(on_start) -> DetachedResponse``. The application then returns an empty body."""

ENVIRON_ON_DISCONNECT = "mlxk.on_disconnect"
"""WSGI environment: ``(callback) -> None``. The callback runs once, on the I/O thread, when the client disconnects."""

MAX_UNREAD_BYTES = 256 * 1024
"""Unread bytes after which a slow client is disconnected; far below waitress's mark at which writing blocks."""


class DetachedResponse:
    """The body of a response, open until ``finish``.

    ``write`` and ``finish`` are called from one thread at a time, after ``on_start`` was called; neither blocks.

    Args:
        task: The task that holds the request.
        on_start: Called once the headers are settled and the worker thread is about to be released.
    """

    def __init__(self, task: WSGITask, on_start: Callable[[], None]) -> None:
        self._task = task
        self._on_start = on_start
        self._finished = threading.Lock()

    def start(self) -> None:
        """Call ``on_start``."""
        self._on_start()

    def write(self, data: bytes) -> bool:
        """Send bytes; return False when the client has disconnected, or was disconnected for reading too slowly."""
        channel = self._task.channel
        if not channel.connected or channel.will_close:
            return False
        if channel.total_outbufs_len > MAX_UNREAD_BYTES:
            channel.drop()
            return False
        try:
            self._task.write(data)
        except ClientDisconnected:
            return False
        return True

    def finish(self) -> None:
        """End the body; later calls do nothing."""
        if self._finished.acquire(blocking=False):
            channel = self._task.channel
            channel.server.add_task(channel)
