"""The program: hands the doors to the command line, and answers ``--version`` before anything is imported.

The command line, the pipe and the server do not know each other; this module is the one place that knows all three.
"""

import gc
import os
import sys

from mlxk import __version__

TYPE_CHECKING = False
"""Type checkers take it for true; the one of ``typing`` costs ``--version`` a tenth of its time."""

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType
    from typing import Self

    from mlxk.entrypoints.cli.command import Announcement, Serve
    from mlxk.entrypoints.container import Container
    from mlxk.entrypoints.http.serve import Build
    from mlxk.entrypoints.server_settings import ServerSettings
    from mlxk.entrypoints.settings import Settings


_INTERRUPTED = 130

_COLLECT_EVERY = 50_000
"""New objects between two searches for cyclic garbage; at Python's own 700 a listing spends a tenth of its time so."""


def main(argv: list[str] | None = None) -> int:
    """Run the ``mlxk`` command.

    Args:
        argv: The arguments; None takes those of the process, which then ends here whenever it can end at once.

    Returns:
        The exit status.
    """
    _open_streams()
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        try:
            os.write(sys.stdout.fileno(), f"mlxk {__version__}\n".encode())
        except OSError:
            pass  # The long way says why, as for any command.
        else:
            return 0
    gc.set_threshold(_COLLECT_EVERY)
    with _HeldInterrupt() as interrupt:
        from mlxk.domain.errors import InterruptedRunError, ValidationError
        from mlxk.entrypoints.cli.command import CommandContext
        from mlxk.entrypoints.cli.program import refuse, run
        from mlxk.entrypoints.settings import read_settings

        try:
            settings = read_settings()
        except ValidationError as error:
            return refuse(arguments, error)
    if interrupt.came:
        return refuse(arguments, InterruptedRunError("interrupted"))
    context = CommandContext(settings=settings, build=_container, read_pipe=_read_pipe, serve=_serving(arguments))
    status = run(arguments, context)
    if argv is None:
        _leave(status)
    return status


def run_main() -> int:
    """Run the ``mlx-run`` command, which is ``mlxk run``."""
    sys.argv.insert(1, "run")
    return main()


class _HeldInterrupt:
    """Holds Ctrl-C back while modules are imported, and knows whether it came; a second one ends the process.

    Thrown out of an import it shows the user where the program was, and leaves behind half of a module, which crashes
    some that are written in C.
    """

    def __init__(self) -> None:
        self.came = False
        self._held = False

    def __enter__(self) -> "Self":
        import signal

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            try:
                signal.signal(signal.SIGINT, self._hold)
                self._held = True
            except ValueError:
                pass  # Signals belong to the main thread, and this is another.
        return self

    def __exit__(self, *_: object) -> None:
        import signal

        if self._held:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _hold(self, number: int, frame: "FrameType | None") -> None:
        if self.came:
            os._exit(_INTERRUPTED)
        self.came = True


def _open_streams() -> None:
    """Put something in the place of standard streams that were closed for us, such as by ``>&-``.

    A file gets the lowest free descriptor, so each takes its stream's own when they are opened in this order. Left
    free, it would go to the next file, which libraries then take for the stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            # As with the interpreter's own, the descriptor lives as long as the process.
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _leave(status: int) -> None:
    """End the process without taking the interpreter apart, when nothing but Python's own memory is to be given back.

    Taking it apart costs a light command more than a twentieth of its time. What MLX or another thread holds is theirs
    to put down, unless they were interrupted doing so: then the whole process goes.
    """
    threading = sys.modules.get("threading")
    shared = "mlx.core" in sys.modules or (threading is not None and threading.active_count() > 1)
    if shared and status != _INTERRUPTED:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return  # The interpreter says the usual.
    os._exit(status)


def _container(settings: "Settings") -> "Container":
    return _wiring()(settings, None)


def _wiring() -> "Build":
    with _HeldInterrupt() as interrupt:
        # Nearly every command comes to this one; it imports orjson, which crashes when it is torn out of its import.
        import mlxk.domain.models.safetensors  # noqa: F401
        from mlxk.entrypoints.container import build

    if interrupt.came:
        raise KeyboardInterrupt
    return build


def _read_pipe(words: str, note: "Callable[[str], None]") -> str:
    from mlxk.entrypoints.pipe.prompt import read_prompt

    return read_prompt(sys.stdin.buffer, words, note)


def _serving(arguments: "Sequence[str]") -> "Serve":
    """Return the server's door for a command line, which it answers to when it ends as another program."""

    def serve(settings: "Settings", server: "ServerSettings", announcement: "Announcement") -> int:
        from mlxk.entrypoints.http.serve import serve as serve_http
        from mlxk.entrypoints.server_end import command_line

        return serve_http(settings, server, announcement, _wiring(), command_line(arguments))

    return serve
