"""``mlxk monitor``: samples memory, processor and servers, alone or while a command runs, and plots the samples."""

import argparse
import contextlib
import datetime
import json
import os
import shlex
import shutil
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import IO

import attrs

from mlxk.application.ports.measuring import CompletionServer
from mlxk.application.use_cases.watch_machine import Watch, WatchMachine
from mlxk.domain.charts import chart_of
from mlxk.domain.errors import ExecutionError, MlxkError, StorageError, UsageError
from mlxk.domain.monitoring import MachineSample, WatchSummary
from mlxk.entrypoints.api_keys import key_to_send
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.command_line_parser import own_words
from mlxk.entrypoints.cli.output import DONE, FAILED, Output, result_file, success_line
from mlxk.entrypoints.cli.processes import ForegroundRunner, handling
from mlxk.entrypoints.cli.render import monitoring, sample_files
from mlxk.entrypoints.cli.render.benchmark_reports import fault_lines
from mlxk.entrypoints.cli.render.formatting import counted
from mlxk.entrypoints.server_address import client_address
from mlxk.entrypoints.settings import inherited

USUAL_SECONDS = 1.0
PLOT, KINDS = "plot", ("html", "svg", "png")
_NOT_FOUND, _NOT_RUN = 127, 126
"""Exit statuses of a shell for a command that does not exist, and one that cannot be run."""
_LEAST_SECONDS, _MOST_SECONDS = 0.05, 86400.0
_LAST_SAMPLE_SECONDS = 10.0
"""How long the last sample may take after the command has ended."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command to watch, the servers, the interval, and the file of samples or plot."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="plot FILE [REPORT] | -- COMMAND",
        help="plot a file of samples; or the command to watch, without which the watch is until Ctrl-C",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the samples, or the plot, to this file")
    parser.add_argument(
        "-i", "--interval", type=seconds, metavar="S", help=f"seconds between samples ({USUAL_SECONDS:g})"
    )
    parser.add_argument("-s", "--seconds", type=seconds, metavar="S", help="without a command: end after so long")
    add_server_arguments(parser)
    parser.add_argument("--format", choices=KINDS, help="of the plot; else by the name of its file (html)")
    parser.add_argument("--title", metavar="TEXT", help="of the plot; else the name of the file of samples")


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--url`` and ``--api-key-file``."""
    parser.add_argument("--url", metavar="URL", help="ask this server only; else all of yours on this machine")
    parser.add_argument("--api-key-file", metavar="FILE", help="a file whose first key is that of the server")


def named_server(arguments: argparse.Namespace) -> CompletionServer | None:
    """Return the server that ``--url`` names; None without it."""
    if arguments.url is None:
        if arguments.api_key_file is not None:
            raise UsageError("--api-key-file goes with --url")
        return None
    address, _ = client_address(arguments.url, "--url")
    key = None if arguments.api_key_file is None else key_to_send(arguments.api_key_file)
    return CompletionServer(address, api_key=key)


def seconds(text: str) -> float:
    """Return a number of seconds from a twentieth to a day."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not _LEAST_SECONDS <= value <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no number of seconds from {_LEAST_SECONDS:g} to {_MOST_SECONDS:g}"
        )
    return value


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Watch, or plot; the exit status is that of the command where there is one."""
    before_dashes = own_words(arguments.typed)
    command = list(arguments.typed[len(before_dashes) + 1 :])
    words = arguments.words[: len(arguments.words) - len(command)]
    if len(before_dashes) < len(arguments.typed) and not command:
        raise UsageError("no command stands after --")
    if words[:1] == [PLOT] and not command:
        return _plot(words[1:], arguments, context, output)
    if words:
        raise UsageError("the command stands after --", hint=f"Write: mlxk monitor -- {shlex.join([*words, *command])}")
    for name in ("format", "title"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} goes with mlxk monitor plot")
    if command and arguments.seconds is not None:
        raise UsageError("--seconds goes without a command: it ends the watch")
    if command and arguments.output == "-":
        raise UsageError("-o: standard output is that of the command", hint="Name a file.")
    server = named_server(arguments)
    if command and shutil.which(command[0]) is None:
        output.failure("monitor", ExecutionError(f"there is no command '{command[0]}'"))
        return _NOT_FOUND
    watch = Watch(arguments.interval or USUAL_SECONDS, server)
    watch_machine = context.build(context.settings).use_cases.watch_machine()
    file = None if arguments.output in {None, "-"} else _SampleFile.opened(arguments.output)
    recording = _Recording(watch, watch_machine, output, file)
    return recording.around(command) if command else recording.alone(arguments.seconds)


@attrs.define
class _SampleFile:
    """A file of samples, one JSON object a line. After a failed write the watch goes on without the file."""

    path: str
    stream: IO[str]
    fault: str | None = None
    """Why lines are missing."""

    @classmethod
    def opened(cls, path: str) -> "_SampleFile":
        """Create the file, or empty an existing one.

        Raises:
            StorageError: It cannot be written.
        """
        try:
            return cls(path, open(path, "w", encoding="utf-8"))
        except OSError as error:
            raise StorageError(f"'{path}' cannot be written: {error.strerror}") from error

    def write(self, document: object) -> None:
        """Append a line."""
        try:
            if self.fault is None:
                self.stream.write(f"{json.dumps(document, allow_nan=False)}\n")
                self.stream.flush()
        except OSError as error:
            self.fault = f"samples are missing in '{self.path}': {error.strerror}"

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a failed flush is in ``fault`` already
            self.stream.close()


@attrs.define
class _Recording:
    """Writes samples to a file or standard output, and sums them up."""

    watch: Watch
    watch_machine: WatchMachine
    output: Output
    file: _SampleFile | None
    summary: WatchSummary = attrs.field(factory=WatchSummary)
    prints: bool = False
    faults: list[str] = attrs.field(factory=list)

    def alone(self, seconds: float | None) -> int:
        """Watch for ``seconds``, or until Ctrl-C or another signal; return the exit status."""
        received: list[int] = []

        def end(number: int, frame: FrameType | None) -> None:
            received.append(number)
            self.watch.ended.set()

        self.prints = self.file is None and not self.output.as_json
        timer = threading.Timer(seconds or 0, self.watch.ended.set)
        timer.daemon = True
        with handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), end):
            if seconds is not None:
                timer.start()
            self.watch_machine(self.watch, self._record)
        timer.cancel()
        document = self._finish()
        if self.output.as_json:
            self.output.document("monitor", document)
        else:
            self.output.note(monitoring.summary_text(self.summary, self.watch.interval_seconds, None))
        others = [number for number in received if number != signal.SIGINT]
        return 128 + others[0] if others else FAILED if self.faults else DONE

    def around(self, command: Sequence[str]) -> int:
        """Watch while a command runs; return its exit status. Standard output is the command's alone."""
        thread = threading.Thread(target=self._watch_in_thread, name="monitor", daemon=True)
        thread.start()
        try:
            status = ForegroundRunner(None, self._started).run(command, inherited({}))
        except ExecutionError as error:
            self._end(thread)
            self.output.failure("monitor", error)
            return _NOT_RUN
        self.watch.command = None
        self._end(thread)
        document = self._finish(exit_code=status, command=shlex.join(command))
        if self.output.as_json:
            self.output.note(success_line("monitor", document))
        else:
            self.output.note(monitoring.summary_text(self.summary, self.watch.interval_seconds, status))
        return status

    def _started(self, process: int) -> None:
        self.watch.command = process

    def _watch_in_thread(self) -> None:
        try:
            self.watch_machine(self.watch, self._record)
        except Exception as error:  # noqa: BLE001 - the command goes on, and the summary says what is missing
            message = error.message if isinstance(error, MlxkError) else f"{type(error).__name__}: {error}"
            self.faults.append(f"the samples end early: {message}")

    def _end(self, thread: threading.Thread) -> None:
        self.watch.ended.set()
        thread.join(_LAST_SAMPLE_SECONDS)

    def _record(self, sample: MachineSample) -> None:
        self.summary.add(sample)
        if self.file is not None:
            self.file.write(monitoring.sample_json(sample))
        elif self.prints:
            self.output.line(json.dumps(monitoring.sample_json(sample), allow_nan=False))
        self.faults += [fault for fault in sample.faults if fault not in self.faults]

    def _finish(self, **facts: object) -> dict[str, object]:
        """Append the summary to the file, print the faults, and return the JSON document."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        summary = monitoring.summary_json(self.summary, self.watch.interval_seconds, timestamp=now, **facts)
        if self.file is not None:
            self.file.write({"summary": summary})
            self.file.close()
            self.faults += [] if self.file.fault is None else [self.file.fault]
        for fault in self.faults:
            self.output.note(f"[{fault}]")
        path = None if self.file is None else self.file.path
        return {"file": path, "summary": summary, "regions": monitoring.regions_json(self.summary.models)}


def _plot(names: Sequence[str], arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Plot a file of samples, with a region for each model in memory and each measurement of a report."""
    if not 1 <= len(names) <= 2:
        raise UsageError("a plot takes a file of samples, and a report or none", hint="mlxk monitor plot FILE [REPORT]")
    for name in ("interval", "seconds", "url", "api_key_file"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} has no meaning for a plot")
    path, kind = _plot_target(names[0], arguments)
    samples, faults = sample_files.read_samples(names[0])
    summary = WatchSummary.of(samples)
    regions = list(summary.models)
    if len(names) > 1:
        measured, unread = sample_files.report_regions(names[1], samples[0].time - samples[0].elapsed)
        within = [region for region in measured if region.end >= 0 and region.start <= summary.seconds]
        if not within:
            output.note(f"[nothing in '{names[1]}' was measured while '{names[0]}' was sampled]")
        faults, regions = [*faults, *unread], [*regions, *within]
    for line in fault_lines(faults):
        output.note(f"[{line}]")
    title = arguments.title or os.path.basename(names[0])
    chart = chart_of(samples, regions, title)
    picture = context.build(context.settings).adapters.chart_writer().draw(chart, "svg" if kind == "html" else kind)
    if kind == "html":
        picture = monitoring.page(title, picture.decode(), summary, chart.regions).encode()
    with result_file(path) as file:
        file.write(picture)
    facts = {"summary": monitoring.summary_json(summary, None), "regions": monitoring.regions_json(chart.regions)}
    if output.as_json:
        output.document("monitor", {"file": path, **facts})
    else:
        output.line(f"{counted(len(samples), 'sample')} drawn: {path}")
    return DONE


def _plot_target(samples: str, arguments: argparse.Namespace) -> tuple[str, str]:
    """Return the path of the plot, and its format."""
    stem, suffix = os.path.splitext(arguments.output or samples)
    kind: str = arguments.format or (suffix.removeprefix(".").lower() if arguments.output else "html")
    if kind not in KINDS:
        raise UsageError(
            f"-o: '{arguments.output}' ends in none of {', '.join(KINDS)}", hint="Or name it with --format."
        )
    path: str = arguments.output or f"{stem}.{kind}"
    if os.path.exists(path) and os.path.exists(samples) and os.path.samefile(path, samples):
        raise UsageError(f"'{path}' has the samples, and is not overwritten", hint="Name another file with -o.")
    return path, kind
