"""The listening socket: makes room for new connections and ends those that take too long."""

import threading
import time
from typing import Any

from waitress.server import TcpWSGIServer

from mlxk.entrypoints.http.server.channel import Channel

CONNECTIONS_IN_RESERVE = 16
"""Below the limit of connections by this many, idle ones are closed for new ones."""


class Listener(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
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
