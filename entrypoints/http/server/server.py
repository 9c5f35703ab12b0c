"""The WSGI server: one I/O thread, a pool of worker threads that grows on demand, listening sockets, graceful stop."""

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer
from waitress.task import Task, ThreadedTaskDispatcher

from mlxk.entrypoints.http.errors import Refusal
from mlxk.entrypoints.http.server.channel import ClientChannel


class Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]  # waitress has no types
    """Runs tasks on a thread pool that grows only when every thread is busy, since each stack costs memory.

    Args:
        most: Maximum number of threads.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._adding = threading.Lock()

    def add_task(self, task: Task) -> None:
        """Queue a task, and start a thread for it if none is idle. Callable from any thread."""
        with self._adding:
            with self.lock:
                threads = len(self.threads) - self.stop_count
                wanted = self.active_count + len(self.queue) + 1
            if wanted > threads and threads < self._most:
                self.set_thread_count(threads + 1)
            super().add_task(task)

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """End the threads, and start no more."""
        with self._adding:
            self._most = 0
        ended: bool = super().shutdown(cancel_pending, timeout)
        return ended


CONNECTIONS_IN_RESERVE = 16
"""When fewer connections than this are free below the limit, idle ones are closed."""


class ListeningSocket(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
    """Accepts connections on one socket."""

    channel_class = ClientChannel
    refusal: Refusal
    header_seconds = 20.0
    """Most time from a request's first byte to the end of its headers."""
    request_seconds = 300.0
    """Most time from a request's first byte to its last."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._trigger_lock = threading.RLock()  # a signal handler may pull the trigger while its thread does
        self._silent = False
        self._wall_offset = _wall_offset()
        super().__init__(*args, **kwargs)

    def readable(self) -> bool:
        """Whether to accept connections; waitress also calls ``maintenance`` here when it is due."""
        self._follow_wall_clock()
        return bool(super().readable())

    def _follow_wall_clock(self) -> None:
        """Shift waitress's timestamps, which are of the wall clock, when that clock is set.

        Otherwise, after it is set forward, every connection would look idle, even one whose request is arriving; after
        it is set back, maintenance would not be due.
        """
        moved = _wall_offset() - self._wall_offset
        if abs(moved) < CLOCK_SET_SECONDS:
            return
        self._wall_offset += moved
        self.next_channel_cleanup += moved
        now = time.time()
        for channel in self.channels():
            channel.last_activity = min(channel.last_activity + max(moved, 0.0), now)
            channel.creation_time = min(channel.creation_time + max(moved, 0.0), now)

    def handle_accept(self) -> None:
        """Accept a connection; near the limit, first close those that have been idle longest."""
        surplus = len(self._map) - (self.adj.connection_limit - CONNECTIONS_IN_RESERVE)
        if surplus > 0:
            idle = [channel for channel in self.channels() if not channel.busy]
            for channel in sorted(idle, key=lambda each: each.last_activity)[:surplus]:
                channel.handle_close()
        super().handle_accept()

    def maintenance(self, now: float) -> None:
        """Close idle connections, and expire requests that do not arrive completely."""
        super().maintenance(now)
        clock = time.monotonic()
        for channel in self.channels():
            if channel.discard_until is not None and clock > channel.discard_until:
                channel.handle_close()
            request, began = channel.request, channel.began
            if request is None or began is None:
                continue
            if clock - began > (self.request_seconds if request.headers_finished else self.header_seconds):
                channel.expire()

    def pull_trigger(self) -> None:
        """Wake the I/O thread; does nothing after ``silence``, since its pipe's descriptor may be reused by then."""
        with self._trigger_lock:
            if not self._silent:
                super().pull_trigger()

    def silence(self) -> None:
        """Disable ``pull_trigger``: the I/O thread has ended."""
        with self._trigger_lock:
            self._silent = True

    def channels(self) -> list[Any]:
        """Return the open connections."""
        return list(self.active_channels.values())


def _wall_offset() -> float:
    """Return the difference of wall clock and monotonic clock in seconds."""
    return time.time() - time.monotonic()


CLOCK_SET_SECONDS = 1.0
"""A shift of the wall clock against the monotonic clock from which on it counts as set."""

ARRIVAL_SECONDS = 1.0
"""While the server drains, how long a new connection may take to send a request, and a request to arrive."""

ABORT_SECONDS = 2.0
"""How long aborted requests may take to end."""

EXIT_AT_ONCE = 130
"""Exit status after the third stop."""


@attrs.frozen
class ServerLimits:
    """Limits for clients."""

    threads: int = 16
    """Maximum number of worker threads; detached responses need none."""
    connections: int = 1024
    max_body_bytes: int = 16 * 2**20
    max_header_bytes: int = 64 * 2**10
    idle_seconds: int = 120
    """A connection without a request is closed after this time."""
    header_seconds: float = 20.0
    """Most time from a request's first byte to the end of its headers."""
    request_seconds: float = 300.0
    """Most time from a request's first byte to its last."""
    drain_seconds: float = 30.0
    """How long requests in progress may take after a stop."""


class HttpServer:
    """Serves a WSGI application on bound sockets.

    Args:
        application: The WSGI application.
        sockets: Bound, listening sockets.
        limits: Limits for clients.
        refusal: Renders the errors of requests that the application never sees.
        on_drain: Called once when draining begins; the application then refuses new work.
        on_abort: Called once when the time to drain is over; the application then cancels its work.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        sockets: Sequence[socket.socket],
        limits: ServerLimits,
        refusal: Refusal,
        on_drain: Callable[[], None] = lambda: None,
        on_abort: Callable[[], None] = lambda: None,
    ) -> None:
        self._limits = limits
        self._on_drain = on_drain
        self._on_abort = on_abort
        self._map: dict[int, Any] = {}
        self._dispatcher = Dispatcher(limits.threads)
        adjustments = _adjustments(limits)
        self._listeners = [self._listen(application, each, adjustments, refusal) for each in sockets]
        self._stops = 0
        self._deadline: float | None = None
        self._refuse_unfinished_at = 0.0

    def stop(self, *_: object) -> None:
        """Drain; the second call aborts, the third exits the process at once. Callable from a signal handler."""
        self._stops += 1
        if self._stops > 2:
            os._exit(EXIT_AT_ONCE)
        self._listeners[0].pull_trigger()

    @property
    def drained_by(self) -> float:
        """The deadline for requests, on the monotonic clock: after a stop that of draining, after a second stop now."""
        now = time.monotonic()
        return now if self._deadline is None else self._deadline if self._stops == 1 else now

    def run(self) -> bool:
        """Serve until drained; return whether every worker thread has ended."""
        while not self._drained():
            wasyncore.loop(timeout=1.0 if self._deadline is None else 0.05, use_poll=True, map=self._map, count=1)
        self._dispatcher.shutdown(timeout=ABORT_SECONDS)
        for channel in self._channels():
            channel.handle_close()
        for listener in self._listeners:
            listener.silence()
        wasyncore.close_all(self._map)
        return not self._dispatcher.threads

    def _drained(self) -> bool:
        """Advance the shutdown; return whether it is complete."""
        if self._stops == 0:
            return False
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._limits.drain_seconds
            self._refuse_unfinished_at = now + ARRIVAL_SECONDS
            self._on_drain()
        self._empty_channels(refuse_unfinished=self._stops > 1 or now > self._refuse_unfinished_at)
        if not self._channels():
            return True
        if self._stops > 1:
            self._deadline = min(self._deadline, now)
        if now < self._deadline:
            return False
        self._abort(now + ABORT_SECONDS)
        return True

    def _empty_channels(self, *, refuse_unfinished: bool) -> None:
        """Close idle connections; wait for requests that are still arriving, or refuse them."""
        for channel in self._channels():
            if channel.busy or channel.discard_until is not None:
                continue
            if channel.arriving:
                if refuse_unfinished:
                    channel.refuse_unfinished()
            elif channel.used or time.time() - channel.creation_time > ARRIVAL_SECONDS:
                channel.handle_close()

    def _abort(self, end: float) -> None:
        self._on_abort()
        while time.monotonic() < end and any(channel.busy for channel in self._channels()):
            wasyncore.loop(timeout=0.05, use_poll=True, map=self._map, count=1)
        for channel in self._channels():
            channel.handle_close()

    def _channels(self) -> list[Any]:
        return [channel for listener in self._listeners for channel in listener.channels()]

    def _listen(
        self, application: Callable[..., Any], sock: socket.socket, adjustments: Adjustments, refusal: Refusal
    ) -> ListeningSocket:
        socket_info = (sock.family, sock.type, sock.proto, sock.getsockname())
        listener = ListeningSocket(
            application,
            self._map,
            True,
            sock,
            dispatcher=self._dispatcher,
            adj=adjustments,
            bind_socket=False,
            sockinfo=socket_info,
        )
        listener.refusal = refusal
        listener.header_seconds, listener.request_seconds = self._limits.header_seconds, self._limits.request_seconds
        return listener


def _adjustments(limits: ServerLimits) -> Adjustments:
    return Adjustments(
        threads=limits.threads,
        connection_limit=limits.connections,
        max_request_body_size=limits.max_body_bytes + 1,  # waitress refuses a body of exactly this size
        outbuf_overflow=2**40,  # keeps responses in memory: a full temporary folder must not lose them
        max_request_header_size=limits.max_header_bytes,
        channel_timeout=limits.idle_seconds,
        cleanup_interval=1,
        asyncore_use_poll=True,  # select() ends the process at the 1024th descriptor
        channel_request_lookahead=1,  # with 0, a disconnect is noticed only when the response is written
        recv_bytes=65536,
        ident=None,
        log_socket_errors=False,  # a disconnect is no error
        server_name="mlxk",
    )
