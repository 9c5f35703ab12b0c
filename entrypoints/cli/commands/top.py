"""``mlxk top``: what servers do now, on a full screen, or line by line where there is no terminal."""

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

import attrs
from prompt_toolkit.application import Application
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import FormattedTextControl, Layout, Window
from prompt_toolkit.output import ColorDepth

from mlxk.application.use_cases.watch_machine import Watch, WatchMachine
from mlxk.domain.monitoring import MachineSample, ServerHistory
from mlxk.entrypoints.cli.command import CommandContext, whole_number
from mlxk.entrypoints.cli.commands.monitor import USUAL_SECONDS, add_server_arguments, named_server, seconds
from mlxk.entrypoints.cli.output import DONE, Output, success_line
from mlxk.entrypoints.cli.processes import handling
from mlxk.entrypoints.cli.render import monitoring
from mlxk.entrypoints.cli.render.monitoring import Moment

_MOST_READINGS = 10**9
_END_SECONDS = 2.0
"""How long the last reading may take when the screen is gone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the servers, the interval and the number of readings."""
    add_server_arguments(parser)
    usual = f"seconds between readings ({USUAL_SECONDS:g})"
    parser.add_argument("-i", "--interval", type=seconds, metavar="S", help=usual)
    enough = "end after so many readings; else with q or Ctrl-C"
    parser.add_argument("-n", "--readings", type=whole_number(1, _MOST_READINGS), metavar="N", help=enough)


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Show servers until q, Ctrl-C or the last reading; the exit status is 0, or 128 and the number of a signal."""
    watch = Watch(arguments.interval or USUAL_SECONDS, named_server(arguments))
    watch_machine = context.build(context.settings).use_cases.watch_machine()
    shows = output.interactive and not output.as_json and not context.settings.dumb_terminal
    readings = _Readings(watch, arguments.readings)
    if shows:
        return _on_screen(readings, watch_machine, color=context.settings.color)
    return _in_lines(readings, watch_machine, output)


@attrs.define
class _Readings:
    """Counts readings, keeps the servers' history, and ends the watch after the last reading or by a signal."""

    watch: Watch
    most: int | None
    history: ServerHistory = attrs.field(factory=ServerHistory)
    count: int = 0
    received: list[int] = attrs.field(factory=list)
    """Signals that ended the watch, Ctrl-C excepted."""

    def moment(self, sample: MachineSample) -> Moment | None:
        """Return a sample with the servers' history; None after the last reading."""
        if self.most is not None and self.count >= self.most:
            return None
        self.count += 1
        if self.count == self.most:
            self.watch.ended.set()
        servers = self.history.add(sample)
        return Moment(sample, servers, self.history.gone)

    def end(self, number: int, frame: FrameType | None) -> None:
        """End the watch by a signal."""
        if number != signal.SIGINT:
            self.received.append(number)
        self.watch.ended.set()

    @property
    def status(self) -> int:
        """The exit status."""
        return 128 + self.received[0] if self.received else DONE


def _in_lines(readings: _Readings, watch_machine: WatchMachine, output: Output) -> int:
    def take(sample: MachineSample) -> None:
        # The sample at the end of a watch comes too early to have rates.
        moment = None if readings.watch.ended.is_set() else readings.moment(sample)
        if moment is not None and output.as_json:
            output.line(success_line("top", monitoring.moment_json(moment)))
        elif moment is not None:
            for line in monitoring.lines(moment):
                output.line(line)

    with handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), readings.end):
        watch_machine(readings.watch, take)
    return readings.status


def _on_screen(readings: _Readings, watch_machine: WatchMachine, *, color: bool) -> int:
    """Draw readings on the terminal's alternate screen, which leaves its content as it was."""
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    screen = _Screen(plain, color)
    faults: list[Exception] = []

    def watch() -> None:
        try:
            watch_machine(readings.watch, lambda sample: screen.show(readings.moment(sample)))
        except Exception as fault:  # noqa: BLE001 - raised again once the terminal is restored
            faults.append(fault)
        screen.end()

    def on_signal(number: int, frame: FrameType | None) -> None:
        readings.end(number, frame)
        screen.end()

    thread = threading.Thread(target=watch, name="top", daemon=True)
    with handling((signal.SIGTERM, signal.SIGHUP), on_signal):
        screen.run(thread.start)
    readings.watch.ended.set()
    thread.join(_END_SECONDS)
    if faults:
        raise faults[0]
    return readings.status


class _Screen:
    """A full screen of text, redrawn for each reading and each change of the terminal's size.

    Args:
        plain: Show ASCII only.
        color: Show headings in bold.
    """

    def __init__(self, plain: bool, color: bool) -> None:
        self._plain = plain
        self._heading = "bold" if color else ""
        self._moment: Moment | None = None
        self._application = self._build()

    def show(self, moment: Moment | None) -> None:
        """Draw a reading. Thread-safe."""
        if moment is not None:
            self._moment = moment
            with contextlib.suppress(RuntimeError):  # the screen was left meanwhile, and its loop is closed
                self._application.invalidate()

    def end(self) -> None:
        """Leave the screen. Callable from any thread and from a signal handler."""
        loop = self._application.loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # as above
                loop.call_soon_threadsafe(self._leave)

    def run(self, started: Callable[[], None]) -> None:
        """Show the screen until it is left.

        Args:
            started: Called once, when ``show`` and ``end`` take effect.
        """
        self._application.run(pre_run=started)

    def _leave(self) -> None:
        if self._application.is_running and not self._application.is_done:
            self._application.exit()

    def _text(self) -> StyleAndTextTuples:
        size = self._application.output.get_size()
        if self._moment is None:
            return [("", "Asking the servers …")]
        lines = monitoring.screen(self._moment, size.columns, size.rows, plain=self._plain)
        return [(self._heading if heading else "", f"{text}\n") for text, heading in lines]

    def _build(self) -> Application[None]:
        keys = KeyBindings()

        @keys.add("q")
        @keys.add("Q")
        @keys.add("c-c")
        @keys.add("c-d")
        @keys.add("<sigint>")
        def _end(event: KeyPressEvent) -> None:
            self._leave()

        @keys.add("c-z")
        def _stop(event: KeyPressEvent) -> None:
            event.app.suspend_to_background()

        window = Window(FormattedTextControl(self._text), wrap_lines=False, always_hide_cursor=True)
        depth = ColorDepth.DEPTH_1_BIT if not self._heading else None
        source = create_input(always_prefer_tty=True)
        return Application(Layout(window), key_bindings=keys, full_screen=True, color_depth=depth, input=source)
