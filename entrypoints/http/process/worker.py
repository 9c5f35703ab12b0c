"""The worker: builds the application, serves HTTP on inherited sockets, and preloads models.

The supervisor starts it as ``python -m mlxk.entrypoints.http.process.worker DESCRIPTOR…``.
"""

import contextlib
import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO, cast

import attrs

from mlxk.domain.errors import InsufficientMemoryError, InternalError, MlxkError, RankLostError
from mlxk.entrypoints.container import Container, build
from mlxk.entrypoints.http.api import Services
from mlxk.entrypoints.http.app import Application
from mlxk.entrypoints.http.process.log_stream import LossyStream, route_library_logs
from mlxk.entrypoints.http.process.other_processes import OtherProcesses
from mlxk.entrypoints.http.process.sockets import port_of
from mlxk.entrypoints.http.process.supervisor import WorkerOrders, report_line, stopping_signals, write_all
from mlxk.entrypoints.http.process.warm_up import warm_up
from mlxk.entrypoints.http.server.server import HttpServer, ServerLimits
from mlxk.entrypoints.server_address import ServerAddress
from mlxk.entrypoints.settings import ServerSettings, Settings, read_settings
from mlxk.entrypoints.start_checks import is_loopback
from mlxk.entrypoints.wording import matrices_words

Report = Callable[[MlxkError | None], None]
"""Receives None when the server is ready, or the error that prevents it."""


class Preload(threading.Thread):
    """Loads and warms up the models to preload, while the server already answers probes.

    Args:
        container: The use cases.
        application: Marked as preloaded at the end.
        server: Names the models.
        report: Called with the outcome, unless the server stops meanwhile.
        stop: Stops the server after an error.
        again: Whether this worker replaces one that lost a rank; a rank lost again is then not reported as an error.
    """

    def __init__(
        self,
        container: Container,
        application: Application,
        server: ServerSettings,
        report: Report,
        stop: Callable[[], None],
        again: bool = False,
    ) -> None:
        super().__init__(name="mlxk-preload", daemon=True)
        self.error: MlxkError | None = None
        self._container = container
        self._lifecycle = application.lifecycle
        self._server = server
        self._report = report
        self._stop_server = stop
        self._again = again

    @property
    def lost(self) -> bool:
        """Whether preloading failed because a rank was lost again, so that the next worker has to try."""
        return self._again and isinstance(self.error, RankLostError)

    def run(self) -> None:
        """Load the models, then report."""
        try:
            for name in filter(None, (self._server.model, *self._server.ready)):
                warm_up(self._container, name, for_vectors=self._server.embed_model is not None)
        except MlxkError as error:
            self._fail(error)
            return
        except Exception:
            self._fail(InternalError("A model cannot be loaded for an unexpected reason; the server's log says more."))
            raise  # the hook of threads logs it
        if not self._lifecycle.draining:
            self._lifecycle.preloaded = True
            self._report(None)

    def _fail(self, error: MlxkError) -> None:
        if not self._lifecycle.draining:
            self.error = error
            if not self.lost:
                self._report(error)
            self._stop_server()


SPARE_THREADS = 8
"""Threads for probes, lists and the ends of responses, besides those that may wait for a model to load."""
SPARE_DESCRIPTORS = 128
"""Descriptors for the engine and model files, besides those of connections; at most half of all."""

THREADS_LEFT = 70
"""Exit status when a worker thread did not end; the process exits without waiting for it."""

RANK_LOST = 71
"""Exit status when another rank, a process that computes the same model, has gone; all ranks are then restarted."""

ERRORS_SECONDS = 1.5
"""Time for clients to receive the errors of their requests, before the rest is aborted."""

END_SECONDS = 1.5
"""Time for the process to end after that; the engine may hang, waiting for the lost rank."""

Build = Callable[[Settings, ServerSettings | None], Container]


def serve_in_process(
    sockets: Sequence[socket.socket],
    settings: Settings,
    orders: WorkerOrders,
    report: Report,
    build_container: Build = build,
) -> int:
    """Serve in this process, from its main thread, until a signal ends it; return the exit status.

    Args:
        sockets: Listening sockets.
        settings: The environment's settings.
        orders: The operator's settings, and facts from the supervisor.
        report: Called with None when the server is ready, or with the error that prevents it.
        build_container: Builds the container.
    """
    server = orders.settings
    with lossy_standard_error() as stream:
        container = build_container(
            attrs.evolve(settings, log_level=server.log_level, log_json=server.log_json), server
        )
        log = container.adapters.event_log()
        stream.on_loss = lambda lines: log.warning("lines of the log were lost", logger="server", lines=lines)
        return _serve(sockets, container, orders, report)


def _serve(sockets: Sequence[socket.socket], container: Container, orders: WorkerOrders, report: Report) -> int:
    server = orders.settings
    limits = ServerLimits()
    descriptors = raise_descriptor_limit(limits.connections + SPARE_DESCRIPTORS)
    connections = descriptors - min(SPARE_DESCRIPTORS, descriptors // 2)
    log = container.adapters.event_log()
    if orders.died is not None:
        log.error("the worker died and is restarted", logger="supervisor", status=orders.died)
    elif not server.api_keys and server.api_key_file is None:
        if not is_loopback(server.host):
            log.warning("the server accepts requests from other machines without an API key", logger="server")
        if "*" in server.cors_origins:
            log.warning("the server accepts requests from every web page without an API key", logger="server")
    route_library_logs(log, server.log_level)
    try:
        application = Application(services_of(container), server)
        catalogue = container.use_cases.serve_catalogue()
        for name, reason in catalogue.unusable():
            log.warning("a name of the settings file has no model", logger="server", name=name, reason=reason)
        preloaded = catalogue.offer_all(server.model, server.aliases, server.default_model, server.ready)
    except MlxkError as error:
        report(error)
        return 1
    limits = attrs.evolve(
        limits,
        threads=server.max_streams + server.max_queue + SPARE_THREADS,
        connections=connections,
        max_body_bytes=application.max_body_bytes,
        drain_seconds=server.drain_seconds,
    )
    http = HttpServer(
        application.wsgi, sockets, limits, application.refusal, on_drain=application.drain, on_abort=application.abort
    )
    lost = threading.Event()
    container.adapters.on_rank_loss = lambda: end_without_rank(lost, application.drain, http.stop)
    for number in stopping_signals():
        signal.signal(number, http.stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping_signals())
    preload = Preload(container, application, server, report, http.stop, orders.died == RANK_LOST)
    address = ServerAddress(host=server.host, port=port_of(sockets))
    others = OtherProcesses(container, application.admit, application.metrics, address.url, orders.owner)
    others.start()  # before readiness is reported, which includes the Unix socket for other processes
    preload.start()
    matrices = container.adapters.memory_probe().matrices()
    by_cpu = {"matrices": matrices_words(matrices)} if matrices.on_cpu else {}
    log.info("serving", logger="server", pid=os.getpid(), model=preloaded, **by_cpu)
    clean = http.run()
    others.stop(lambda: http.drained_by)
    application.close()
    container.adapters.text_generator().close()
    log.info("stopped", logger="server", pid=os.getpid())
    if lost.is_set() or preload.lost:
        return RANK_LOST
    return (0 if clean else THREADS_LEFT) if preload.error is None else 1


def end_without_rank(lost: threading.Event, drain: Callable[[], None], stop: Callable[[], None]) -> None:
    """End this process and fail its requests, because another rank has gone.

    Args:
        lost: Set at once.
        drain: Refuses new work.
        stop: Stops the server once its requests have ended; the second call aborts them.
    """
    lost.set()
    drain()

    def end() -> None:
        stop()
        time.sleep(ERRORS_SECONDS)
        stop()
        time.sleep(END_SECONDS)
        os._exit(RANK_LOST)

    threading.Thread(target=end, name="mlxk-rank-lost", daemon=True).start()


@contextlib.contextmanager
def lossy_standard_error() -> Iterator[LossyStream]:
    """Replace ``sys.stderr`` by a stream that loses lines instead of blocking or failing."""
    former = sys.stderr
    stream = LossyStream(former.fileno())
    sys.stderr = cast("TextIO", stream)
    try:
        yield stream
    finally:
        sys.stderr = former
        stream.close()


def services_of(container: Container) -> Services:
    """Return the use cases and ports of the application."""
    return Services(
        catalogue=container.use_cases.serve_catalogue(),
        generate=container.use_cases.generate_text(),
        load=container.use_cases.load_model(),
        audio_decoder=container.adapters.audio_decoder(),
        named_media=container.adapters.named_media(),
        transcribe=container.use_cases.transcribe_audio(),
        speak=container.use_cases.speak_text(),
        sound_encoder=container.adapters.sound_encoder(),
        embed=container.use_cases.embed_text(),
        rerank=container.use_cases.rerank_documents(),
        tokenize=container.use_cases.tokenize_text(),
        pull=container.use_cases.pull_model,
        remove=container.use_cases.remove_model,
        generator=container.adapters.text_generator(),
        clock=container.adapters.clock(),
        log=container.adapters.event_log(),
        telemetry=container.adapters.telemetry(),
    )


def raise_descriptor_limit(wanted: int) -> int:
    """Raise the limit of open files of this process, as far as allowed; return it, at most ``wanted``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < ceiling:
        with contextlib.suppress(OSError, ValueError):  # macOS may allow less than the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
        return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], ceiling)
    return ceiling


def run_supervised(descriptors: Sequence[str], build_container: Build = build) -> int:
    """Serve for a supervisor, and stop when it exits; return the exit status.

    Args:
        descriptors: Numbers of the inherited listening sockets.
        build_container: Builds the container.
    """
    faulthandler.enable()
    orders_in, reports_out = _take_standard_streams()
    with open(orders_in, "rb", closefd=False) as stream:
        line = stream.readline()
    if not line:
        return 1  # The supervisor has exited.
    orders = WorkerOrders.of_line(line)
    threading.Thread(target=stop_at_end_of, args=(orders_in,), name="mlxk-supervisor-watch", daemon=True).start()

    def report(error: MlxkError | None) -> None:
        with contextlib.suppress(OSError):  # The supervisor has exited.
            write_all(reports_out, report_line(error))

    sockets = [socket.socket(fileno=int(each)) for each in descriptors]
    # Libraries that print must not fail when their output has no reader.
    sys.stdout = cast("TextIO", LossyStream(sys.stdout.fileno()))
    try:
        return serve_in_process(
            sockets, read_settings(handed_down=orders.settings.file_variables), orders, report, build_container
        )
    except (MemoryError, SystemError):  # imports raise either without memory
        text = "This process may not have as much memory, or as many threads, as the server takes."
        report(InsufficientMemoryError(text, hint="See its limits: ulimit -a"))
        return 1


def _take_standard_streams() -> tuple[int, int]:
    """Return duplicates of standard input and output; libraries get empty input, and standard error as output."""
    orders_in, reports_out = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return orders_in, reports_out


def stop_at_end_of(descriptor: int) -> None:
    """Wait until the writer of a pipe exits, then abort the requests and stop this process."""
    while os.read(descriptor, 4096):
        pass
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


def main(build_container: Build = build) -> None:
    """Run the worker process, and exit without waiting for threads."""
    status = run_supervised(sys.argv[1:], build_container)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
