"""The WSGI server: one I/O thread, a pool of worker threads started as needed, the listening socket, orderly stop."""

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

from mlxk.entrypoints.http.server.channel import Channel


class Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]  # waitress has no types
    """Runs tasks on threads, of which there are never more than were busy at once.

    Every thread keeps memory of its own: a stack, and what the C library sets aside for it.

    Args:
        most: Threads there may be.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._adding = threading.Lock()

    def add_task(self, task: Task) -> None:
        """Have a task run as soon as a thread is free, a new one if need be. Callable from any thread."""
        with self._adding:
            with self.lock:
                threads = len(self.threads) - self.stop_count
                wanted = self.active_count + len(self.queue) + 1
            if wanted > threads and threads < self._most:
                self.set_thread_count(threads + 1)
            super().add_task(task)

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """End the threads; no new ones are started."""
        with self._adding:
            self._most = 0
        ended: bool = super().shutdown(cancel_pending, timeout)
        return ended


CONNECTIONS_IN_RESERVE = 16
"""Below the limit of connections by this many, idle ones are closed for new ones."""


class ListeningSocket(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
    """Accepts connections on one socket."""

    channel_class = Channel
    header_seconds = 20.0
    """From a request's first byte to the end of its headers."""
    request_seconds = 300.0
    """From a request's first byte to its last."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._trigger_lock = threading.RLock()  # a signal handler may pull while its thread does
        self._silent = False
        super().__init__(*args, **kwargs)

    def handle_accept(self) -> None:
        """Accept a connection, closing the idlest ones first when there are nearly too many."""
        surplus = len(self._map) - (self.adj.connection_limit - CONNECTIONS_IN_RESERVE)
        if surplus > 0:
            idle = [channel for channel in self.channels() if not channel.busy]
            for channel in sorted(idle, key=lambda each: each.last_activity)[:surplus]:
                channel.handle_close()
        super().handle_accept()

    def maintenance(self, now: float) -> None:
        """Close connections without activity, and expire requests that do not arrive completely."""
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
        """Wake the I/O thread; after ``silence`` do nothing, since its pipe may be somebody else's file by then."""
        with self._trigger_lock:
            if not self._silent:
                super().pull_trigger()

    def silence(self) -> None:
        """Wake nobody any more: the I/O thread has ended."""
        with self._trigger_lock:
            self._silent = True

    def channels(self) -> list[Any]:
        """Return the open connections."""
        return list(self.active_channels.values())


ARRIVAL_SECONDS = 1.0
"""How long a new connection, and a request that has begun, may take to arrive while the server drains."""

ABORT_SECONDS = 2.0
"""How long requests that were told to end may take to do so."""

EXIT_AT_ONCE = 130


@attrs.frozen
class ServerLimits:
    """What the server grants its clients."""

    threads: int = 16
    """Requests that may be worked on at once; detached responses need none."""
    connections: int = 1024
    max_body_bytes: int = 16 * 2**20
    max_header_bytes: int = 64 * 2**10
    idle_seconds: int = 120
    """A connection without a request is closed after this long."""
    header_seconds: float = 20.0
    """From a request's first byte to the end of its headers."""
    request_seconds: float = 300.0
    """From a request's first byte to its last."""
    drain_seconds: float = 30.0
    """How long requests in progress may take when the server is to stop."""


class HttpServer:
    """Serves a WSGI application on sockets that already listen.

    Args:
        application: The WSGI application.
        sockets: Bound and listening.
        limits: What clients may use.
        on_drain: Called once when draining begins; the application refuses new work from then on.
        on_abort: Called once when waiting has ended; the application gives up what still runs.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        sockets: Sequence[socket.socket],
        limits: ServerLimits,
        on_drain: Callable[[], None] = lambda: None,
        on_abort: Callable[[], None] = lambda: None,
    ) -> None:
        self._limits = limits
        self._on_drain = on_drain
        self._on_abort = on_abort
        self._map: dict[int, Any] = {}
        self._dispatcher = Dispatcher(limits.threads)
        adjustments = _adjustments(limits)
        self._listeners = [self._listen(application, each, adjustments) for each in sockets]
        self._stops = 0
        self._deadline: float | None = None
        self._turn_away_at = 0.0

    def stop(self, *_: object) -> None:
        """Begin to drain; the second call stops waiting, the third leaves. Callable from a signal handler."""
        self._stops += 1
        if self._stops > 2:
            os._exit(EXIT_AT_ONCE)
        self._listeners[0].pull_trigger()

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
        """Move the end forward; return whether it is reached."""
        if self._stops == 0:
            return False
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._limits.drain_seconds
            self._turn_away_at = now + ARRIVAL_SECONDS
            self._on_drain()
        self._empty_channels(turn_away=self._stops > 1 or now > self._turn_away_at)
        if not self._channels():
            return True
        if self._stops > 1:
            self._deadline = min(self._deadline, now)
        if now < self._deadline:
            return False
        self._abort(now + ABORT_SECONDS)
        return True

    def _empty_channels(self, *, turn_away: bool) -> None:
        """Close the connections that nothing is expected on; what is arriving is waited for, or turned away."""
        for channel in self._channels():
            if channel.busy or channel.discard_until is not None:
                continue
            if channel.arriving:
                if turn_away:
                    channel.turn_away()
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
        self, application: Callable[..., Any], sock: socket.socket, adjustments: Adjustments
    ) -> ListeningSocket:
        place = (sock.family, sock.type, sock.proto, sock.getsockname())
        listener = ListeningSocket(
            application,
            self._map,
            True,
            sock,
            dispatcher=self._dispatcher,
            adj=adjustments,
            bind_socket=False,
            sockinfo=place,
        )
        listener.header_seconds, listener.request_seconds = self._limits.header_seconds, self._limits.request_seconds
        return listener


def _adjustments(limits: ServerLimits) -> Adjustments:
    return Adjustments(
        threads=limits.threads,
        connection_limit=limits.connections,
        max_request_body_size=limits.max_body_bytes,
        max_request_header_size=limits.max_header_bytes,
        channel_timeout=limits.idle_seconds,
        cleanup_interval=1,
        asyncore_use_poll=True,  # select() ends the process at the 1024th descriptor
        channel_request_lookahead=1,  # with none, a disconnect is not noticed before the response is written
        recv_bytes=65536,
        ident=None,
        log_socket_errors=False,  # clients go; that is no error
        server_name="mlxk",
    )
