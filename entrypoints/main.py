"""The entry points ``mlxk`` and ``mlx-run``: give the command line the container and the HTTP server.

Command line and server do not import each other; only this module imports both: the command line while Ctrl-C is
deferred, the server when it is started.
"""

import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from mlxk.entrypoints.cli.command import Announcement
    from mlxk.entrypoints.container import Container
    from mlxk.entrypoints.settings import ServerSettings, Settings

_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run the ``mlxk`` command and return its exit status.

    Args:
        argv: The arguments; None takes those of the process.
    """
    _open_streams()
    arguments = sys.argv[1:] if argv is None else argv
    with _DeferredInterrupt() as interrupt:
        from mlxk.domain.errors import InterruptedRunError, MlxkError
        from mlxk.entrypoints.cli.command import CommandContext
        from mlxk.entrypoints.cli.program import internal_error, refuse, run
        from mlxk.entrypoints.settings import read_settings

        try:
            settings = read_settings()
        except MlxkError as error:
            return refuse(arguments, error)
        except Exception as error:  # noqa: BLE001 - no traceback reaches a user
            return refuse(arguments, internal_error(error))
    if interrupt.received:
        return refuse(arguments, InterruptedRunError("interrupted"))

    status = run(arguments, CommandContext(settings, build=_build, serve=_serve))
    if status == _INTERRUPTED and argv is None:
        _exit_at_once(status)
    return status


def run_main() -> int:
    """Run the ``mlx-run`` command, which is ``mlxk run``."""
    sys.argv.insert(1, "run")
    return main()


def _exit_at_once(status: int) -> None:
    """End the process without the interpreter's shutdown, where a second Ctrl-C would crash threads of MLX."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return  # The interpreter reports it.
    os._exit(status)


class _DeferredInterrupt:
    """Context manager that defers Ctrl-C while modules are imported; a second one ends the process.

    An interrupted import prints a traceback and leaves the module half initialised; some C extensions crash then.
    """

    def __init__(self) -> None:
        self.received = False
        self._installed = False

    def __enter__(self) -> Self:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            try:
                signal.signal(signal.SIGINT, self._defer)
                self._installed = True
            except ValueError:
                pass  # Only the main thread may set handlers.
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _defer(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(_INTERRUPTED)
        self.received = True


def _open_streams() -> None:
    """Open the null device for each standard stream that is closed, such as by ``>&-``.

    ``os.open`` returns the lowest free descriptor, so in this order each stream gets its own number. Left closed, 0, 1
    or 2 would go to the next file that is opened, and libraries would write their messages into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            # Like the interpreter's own streams, the descriptor stays open until the process ends.
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _build(settings: "Settings") -> "Container":
    with _DeferredInterrupt() as interrupt:
        from mlxk.entrypoints.container import build

    if interrupt.received:
        raise KeyboardInterrupt
    return build(settings)


def _serve(settings: "Settings", server: "ServerSettings", announcement: "Announcement") -> int:
    from mlxk.entrypoints.http.process.serve import serve

    return serve(settings, server, announcement)
