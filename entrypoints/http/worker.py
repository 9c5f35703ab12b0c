"""The worker: builds the application, has the model loaded, serves until told to stop.

Runs in a process of its own under the supervisor (``python -m mlxk.entrypoints.http.worker``), or in the program's.
"""

import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.domain.errors import MlxkError
from mlxk.entrypoints.http import control
from mlxk.entrypoints.http.app import Application, Ports
from mlxk.entrypoints.http.body_guard import LARGEST_UPLOAD_BYTES
from mlxk.entrypoints.http.descriptors import raise_descriptor_limit
from mlxk.entrypoints.http.foreign_logs import lead_logs_into
from mlxk.entrypoints.http.server.server import HttpServer, ServerLimits
from mlxk.entrypoints.http.warm_up import warm_up
from mlxk.entrypoints.server_settings import MIB, ServerSettings
from mlxk.entrypoints.settings import Settings, read_settings

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

SPARE_THREADS = 8
"""Threads beside those that may wait for a model to be loaded: for probes, lists and the ends of responses."""

DESCRIPTORS_FOR_OTHERS = 128
"""Files that the engine and the rest of the process may need."""

LEFT_BEHIND = 70
"""Exit status when a thread did not end; the process then leaves without waiting for it."""

Report = Callable[[Mapping[str, object]], None]
Build = Callable[[Settings, ServerSettings | None], "Container"]


def serve_here(
    sockets: Sequence[socket.socket], settings: Settings, server: ServerSettings, report: Report, build: Build
) -> int:
    """Serve in this process, in its main thread, until a signal ends it; return the exit status.

    Args:
        sockets: Listening.
        settings: The environment.
        server: The operator's decisions.
        report: Hears once that the server is ready, or why it cannot be.
        build: Wires the program.
    """
    connections = raise_descriptor_limit(ServerLimits().connections + DESCRIPTORS_FOR_OTHERS) - DESCRIPTORS_FOR_OTHERS
    logged = attrs.evolve(settings, log_level=server.log_level, log_json=server.log_json)
    container = build(logged, server)
    log = container.adapters.event_log()
    lead_logs_into(log, server.log_level)
    application = Application(_ports(container), server)
    generator = container.adapters.text_generator()
    preloaded = None
    try:
        if server.model is not None:
            preloaded = container.use_cases.serve_catalogue().offer(server.model).id
    except MlxkError as error:
        report(control.failure_message(error))
        return 1
    limits = ServerLimits(
        threads=server.max_streams + server.max_queue + SPARE_THREADS,
        connections=connections,
        max_body_bytes=max(server.max_body_mib * MIB, LARGEST_UPLOAD_BYTES),
        drain_seconds=server.drain_seconds,
    )
    web = HttpServer(application.wsgi, sockets, limits, application.drain, application.abort)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, web.stop)
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
        except MlxkError as error:
            if self._application.life.draining:
                return
            self.failure = error
            self._report(control.failure_message(error))
            self._give_up()
            return
        if not self._application.life.draining:
            self._application.life.preloaded = True
            self._report({"ready": True})


def _ports(container: "Container") -> Ports:
    return Ports(
        catalogue=container.use_cases.serve_catalogue(),
        serve_text=container.use_cases.serve_text(),
        serve_images=container.use_cases.serve_images(),
        sounds=container.adapters.sound_decoder(),
        transcribe=container.use_cases.transcribe_audio(),
        embed=container.use_cases.embed_text(),
        resident=container.adapters.resident_models(),
        clock=container.adapters.clock(),
        log=container.adapters.event_log(),
    )


def run_supervised(control_descriptor: int, listening: Sequence[int], build: Build) -> int:
    """Serve under a supervisor: settings come from it, and its end is ours."""
    faulthandler.enable()
    supervisor = socket.socket(fileno=control_descriptor)
    message = control.receive(supervisor)
    if message is None:
        return 1
    sockets = [socket.socket(fileno=descriptor) for descriptor in listening]
    threading.Thread(target=_end_with, args=(supervisor,), name="mlxk-supervisor-watch", daemon=True).start()
    return serve_here(
        sockets,
        read_settings(),
        control.settings_of(message),
        lambda report: control.send(supervisor, report),
        build,
    )


def _end_with(supervisor: socket.socket) -> None:
    """Wait for the supervisor's end, then stop in a hurry."""
    control.receive(supervisor)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the worker process, and leave without unwinding what other threads may still use."""
    from mlxk.entrypoints.container import build  # noqa: PLC0415 - the engine's wiring, wanted in this process only

    status = run_supervised(int(sys.argv[1]), [int(each) for each in sys.argv[2:]], build)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
