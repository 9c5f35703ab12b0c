"""The worker: builds the application, has the model loaded, serves until told to stop.

Runs in a process of its own under the supervisor (``python -m mlxk.entrypoints.http.worker``), or in the program's.
"""

import contextlib
import faulthandler
import linecache
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.domain.errors import MlxkError
from mlxk.entrypoints.http import control
from mlxk.entrypoints.http.app import Application, Ports
from mlxk.entrypoints.http.descriptors import raise_descriptor_limit
from mlxk.entrypoints.http.foreign_logs import lead_logs_into
from mlxk.entrypoints.http.guards import LARGEST_UPLOAD_BYTES
from mlxk.entrypoints.http.handover import Orders, orders_of, read_settings_file, release_signals
from mlxk.entrypoints.http.server.server import HttpServer, ServerLimits
from mlxk.entrypoints.http.supervisor import READY, stopping_signals
from mlxk.entrypoints.http.warm_up import warm_up
from mlxk.entrypoints.settings import MIB, ServerSettings, Settings, read_settings

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

SPARE_THREADS = 8
"""Threads beside those that may wait for a model to be loaded: for probes, lists and the ends of responses."""

DESCRIPTORS_FOR_OTHERS = 128
"""Files that the engine and the rest of the process may need."""

LEFT_BEHIND = 70
"""Exit status when a thread did not end; the process then leaves without waiting for it."""

Report = Callable[[MlxkError | None], None]
"""Hears that the server is ready, or why it cannot be; may raise a MlxkError, which ends it."""

Build = Callable[[Settings, ServerSettings | None], "Container"]


def serve_here(
    sockets: Sequence[socket.socket],
    settings: Settings,
    server: ServerSettings,
    report: Report,
    build: Build,
    died: int | None = None,
) -> int:
    """Serve in this process, in its main thread, until a signal ends it; return the exit status.

    Args:
        sockets: Listening.
        settings: The environment.
        server: The operator's decisions.
        report: Hears that the server is ready, and why it cannot be or go on.
        build: Wires the program.
        died: The exit status of the worker before this one, if it died.
    """
    connections = raise_descriptor_limit(ServerLimits().connections + DESCRIPTORS_FOR_OTHERS) - DESCRIPTORS_FOR_OTHERS
    logged = attrs.evolve(settings, log_level=server.log_level, log_json=server.log_json)
    container = build(logged, server)
    log = container.adapters.event_log()
    if died is not None:
        log.error("the worker died and is restarted", logger="supervisor", status=died)
    lead_logs_into(log, server.log_level)
    application = Application(_ports(container), server)
    generator = container.adapters.text_generator()
    preloaded = None
    try:
        if server.model is not None:
            preloaded = container.use_cases.serve_catalogue().offer(server.model).id
    except MlxkError as error:
        report(error)
        return 1
    limits = ServerLimits(
        threads=server.max_streams + server.max_queue + SPARE_THREADS,
        connections=connections,
        max_body_bytes=max(server.max_body_mib * MIB, LARGEST_UPLOAD_BYTES),
        drain_seconds=server.drain_seconds,
    )
    web = HttpServer(application.wsgi, sockets, limits, application.drain, application.abort)
    for number in stopping_signals():
        signal.signal(number, web.stop)
    release_signals()
    linecache.clearcache()  # attrs leaves the source of what it generates there; the engine can use the memory.
    preload = _Preload(container, application, server, report, web.stop)
    preload.start()
    log.info("serving", logger="server", pid=os.getpid(), model=preloaded)
    clean = web.run()
    application.close()
    generator.close()
    log.info("stopped", logger="server", pid=os.getpid())
    return (0 if clean else LEFT_BEHIND) if preload.failure is None else 1


class _Preload(threading.Thread):
    """Has the model loaded and used once, while probes are answered already."""

    def __init__(
        self,
        container: "Container",
        application: Application,
        server: ServerSettings,
        report: Report,
        give_up: Callable[[], None],
    ) -> None:
        super().__init__(name="mlxk-preload", daemon=True)
        self.failure: MlxkError | None = None
        self._container = container
        self._application = application
        self._server = server
        self._report = report
        self._give_up = give_up

    def run(self) -> None:
        """Load, then say so; or say why not, and end the server. One that was told to end meanwhile says nothing."""
        try:
            if self._server.model is not None:
                warm_up(self._container, self._server.model, for_vectors=self._server.embed_model is not None)
            if not self._application.life.draining:
                self._application.life.preloaded = True
                self._report(None)
        except MlxkError as error:
            if not self._application.life.draining:
                self.failure = error
                self._report(error)
                self._give_up()


def _ports(container: "Container") -> Ports:
    return Ports(
        catalogue=container.use_cases.serve_catalogue(),
        serve_text=container.use_cases.serve_text(),
        serve_images=container.use_cases.serve_images,
        sounds=container.adapters.audio_decoder,
        transcribe=container.use_cases.transcribe_audio,
        embed=container.use_cases.embed_text,
        resident=container.adapters.text_generator(),
        clock=container.adapters.clock(),
        log=container.adapters.event_log(),
    )


def run_supervised(orders: Orders, build: Build) -> int:
    """Serve under a supervisor: settings come from it, and its end is ours."""
    faulthandler.enable()
    threading.Thread(target=_end_with, args=(orders.life,), name="mlxk-supervisor-watch", daemon=True).start()

    def report(failure: MlxkError | None) -> None:
        with contextlib.suppress(OSError):  # A supervisor that has gone needs no report.
            os.write(orders.report, READY if failure is None else control.failure_line(failure))

    sockets = [socket.socket(fileno=descriptor) for descriptor in orders.sockets]
    server = read_settings_file(orders.settings)
    return serve_here(sockets, read_settings(), server, report, build, died=orders.died)


def _end_with(life: int) -> None:
    """Wait for the supervisor's end, then stop in a hurry."""
    os.read(life, 1)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the worker process, and leave without unwinding what other threads may still use."""
    from mlxk.entrypoints.container import build  # noqa: PLC0415 - the engine's wiring, wanted in this process only

    status = run_supervised(orders_of(sys.argv[1:]), build)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
