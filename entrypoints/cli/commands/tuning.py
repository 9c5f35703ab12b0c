"""``tune``, ``fuse`` and ``eval``: train a model, merge an adapter into its base, and measure a model."""

import argparse
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import attrs

from mlxk.application.use_cases.evaluate_model import MAX_LENGTH, EvaluateRequest
from mlxk.application.use_cases.fuse_adapter import FuseRequest
from mlxk.application.use_cases.tune_model import TrainingWatch, TuneRequest, TuningPlan
from mlxk.domain.errors import InterruptedRunError, UsageError, ValidationError
from mlxk.domain.tuning.data import SPLITS
from mlxk.domain.tuning.record import point_fields
from mlxk.domain.tuning.training import Method, TrainingPoint, TuningChoices
from mlxk.entrypoints.cli.command import (
    CommandContext,
    add_cpu_argument,
    add_model_argument,
    complete_models,
    computing_settings,
    model_reference,
    whole_number,
)
from mlxk.entrypoints.cli.output import DONE, Output, require_writable, result_file
from mlxk.entrypoints.cli.processes import handling
from mlxk.entrypoints.cli.progress import SECONDS_BETWEEN_LINES, Spinner, SpinnerBetweenBars
from mlxk.entrypoints.cli.render import tuning
from mlxk.entrypoints.cli.text_files import read_json
from mlxk.entrypoints.settings import Settings

_LARGEST = 10**9


def number(text: str) -> float:
    """Parse a finite number; the use case checks its range."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -_LARGEST <= value <= _LARGEST:
        raise argparse.ArgumentTypeError(f"'{text}' is no number")
    return value


class TuneCommand:
    """``mlxk tune MODEL DATA --into NAME``: train an adapter, or whole layers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare model, data, target and hyperparameters."""
        add_model_argument(parser)
        parser.add_argument("data", metavar="DATA", help="a file of JSON lines, or a folder with train.jsonl")
        parser.add_argument(
            "--into", metavar="NAME", required=True, help="the workspace to make: a directory, or a name in the home"
        )
        many = whole_number(1, _LARGEST)
        what = parser.add_argument_group("what is trained")
        what.add_argument(
            "--method",
            choices=[each.value for each in Method],
            default="lora",
            help="lora, dora, or full weights (lora)",
        )
        what.add_argument("--layers", metavar="N", type=many, help="train the last N layers (all)")
        what.add_argument("--rank", metavar="N", type=many, help="of the matrices of an adapter (8)")
        what.add_argument("--scale", metavar="X", type=number, help="of an adapter's product (2)")
        what.add_argument("--dropout", metavar="X", type=number, help="share of its inputs that is left out (0)")
        what.add_argument(
            "--mask-prompt", action=argparse.BooleanOptionalAction, help="learn answers only (yes), or prompts as well"
        )
        how = parser.add_argument_group("how long and how fast")
        how.add_argument(
            "--iters", metavar="N", type=many, help="updates of the weights (3 epochs; more of few examples)"
        )
        how.add_argument("--epochs", metavar="X", type=number, help="passes over the examples, in place of --iters")
        how.add_argument("--batch-size", metavar="N", type=many, help="examples computed at a time (4)")
        how.add_argument("--grad-accumulation", metavar="N", type=many, help="batches that make one update (1)")
        how.add_argument("--learning-rate", metavar="X", type=number, help="the highest (by the width of the model)")
        how.add_argument(
            "--max-length", metavar="N", type=many, help="tokens of an example; longer ones are cut (2048)"
        )
        how.add_argument("--beta", metavar="X", type=number, help="of pairs: how much moving away costs (0.1)")
        how.add_argument("--grad-checkpoint", action="store_true", help="less memory, more time")
        how.add_argument(
            "--seed", metavar="N", type=whole_number(0, 2**32 - 1), default=0, help="same seed, same result"
        )
        kept = parser.add_argument_group("what is measured and kept")
        kept.add_argument(
            "--valid-share", metavar="X", type=number, help="hold so much of the examples out (0.1 of many)"
        )
        kept.add_argument(
            "--validate-every", metavar="N", type=many, help="measure the validation every N updates (50)"
        )
        kept.add_argument("--save-every", metavar="N", type=many, help="write the state every N updates (50)")
        kept.add_argument("--resume", action="store_true", help="continue a training that was broken off")
        kept.add_argument("--restart", action="store_true", help="begin anew, without what was broken off")
        kept.add_argument("--plot", metavar="FILE", help="draw the losses: FILE ends in .svg or .png")
        add_cpu_argument(parser)

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Train, showing the figures meanwhile; print where the result is."""
        request = _request(arguments)
        kind = _plot_kind(arguments.plot)
        container = context.build(computing_settings(arguments, context.settings))
        chart_writer = None if kind is None else container.adapters.chart_writer()
        output.one_line = output.as_json
        display = _TrainingDisplay(output, arguments.data)
        try:
            with SpinnerBetweenBars(output, "Reading the examples") as progress, display.interruptible() as stopped:
                display.preparation = progress
                watch = TrainingWatch(display.plan, display.point, stopped)
                result = container.use_cases.tune_model()(request, watch, progress)
        except KeyboardInterrupt:
            raise InterruptedRunError("interrupted", hint=display.hint) from None
        if chart_writer is not None and kind is not None:
            title = os.path.basename(arguments.into.rstrip("/"))
            picture = chart_writer.draw(tuning.chart(result.record.result, title), kind)
            with result_file(arguments.plot) as file:
                file.write(picture)
        if output.as_json:
            output.document("tune", tuning.tune_json(result, arguments.plot))
        else:
            here = context.settings.workspace_home is None and os.sep not in arguments.into
            output.text(tuning.tune_text(result, f"./{arguments.into}" if here else arguments.into, arguments.plot))
        return DONE


def _request(arguments: argparse.Namespace) -> TuneRequest:
    if arguments.resume and arguments.restart:
        raise UsageError("--resume and --restart exclude each other")
    share = arguments.valid_share
    if share is not None and not 0 <= share < 1:
        raise UsageError(f"--valid-share: '{share:g}' is no number from 0 to below 1")
    choices = TuningChoices(
        method=Method(arguments.method),
        steps=arguments.iters,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        layers=arguments.layers,
        rank=arguments.rank,
        scale=arguments.scale,
        dropout=arguments.dropout,
        learning_rate=arguments.learning_rate,
        max_length=arguments.max_length,
        mask_prompt=arguments.mask_prompt,
        seed=arguments.seed,
        save_every=arguments.save_every,
        validate_every=arguments.validate_every,
        accumulation=arguments.grad_accumulation,
        recompute=arguments.grad_checkpoint,
        beta=arguments.beta,
    )
    return TuneRequest(
        arguments.model, arguments.data, arguments.into, choices, share, arguments.resume, arguments.restart
    )


def _plot_kind(path: str | None) -> str | None:
    if path is None:
        return None
    kind = os.path.splitext(path)[1].removeprefix(".").lower()
    if kind not in {"svg", "png"}:
        raise UsageError(f"--plot: '{path}' ends in neither .svg nor .png")
    require_writable(path, "--plot")  # fail before hours of training
    return kind


@attrs.define
class _TrainingDisplay:
    """Prints the progress of training, and lets Ctrl-C end it."""

    output: Output
    data: str
    preparation: "SpinnerBetweenBars | None" = None
    _figures: tuning.LatestFigures | None = None
    _spinner: Spinner | None = None
    _written: float = 0.0
    _signals: list[int] = attrs.field(factory=list)

    @property
    def hint(self) -> str:
        """How to go on after training was interrupted."""
        return (
            "Run the same command again." if self._figures is None else "Continue it: the same command, with --resume."
        )

    def plan(self, plan: TuningPlan) -> None:
        """Print the plan of the training."""
        if self.preparation is not None:
            self.preparation.stop()
        self._figures = tuning.LatestFigures(plan.settings.steps)
        if self.output.as_json:
            self._print_json({"event": "plan", **tuning.plan_json(plan)})
        else:
            for line in tuning.plan_lines(plan):
                self.output.note(line)
        if self.output.shows_progress:
            self._spinner = Spinner(self.output, "Training")
            self._spinner.show("Training")

    def point(self, point: TrainingPoint) -> None:
        """Print the figures of a step, or show them beside the spinner."""
        assert self._figures is not None
        steps, text = self._figures.steps, self._figures.with_point(point)
        if self.output.as_json:
            self._print_json({"event": "step", "steps": steps, **point_fields(point)})
        elif self._spinner is not None:
            self._spinner.show(text)
        elif point.step in (0, steps) or time.monotonic() - self._written >= SECONDS_BETWEEN_LINES:
            self._written = time.monotonic()
            self.output.note(text)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[Callable[[], bool]]:
        """Yield a check whether to stop after this step, as for Ctrl-C; a second one, or SIGTERM, interrupts."""

        def received(number: int, frame: FrameType | None) -> None:
            first = not self._signals
            self._signals.append(number)
            if self._figures is None or number != signal.SIGINT or not first:
                raise KeyboardInterrupt
            self.output.note("[ends after this step, and keeps what was learned; Ctrl-C again breaks it off]")

        try:
            with handling((signal.SIGINT, signal.SIGTERM), received):
                yield lambda: bool(self._signals)
        finally:
            if self._spinner is not None:
                self._spinner.stop()

    def _print_json(self, data: dict[str, object]) -> None:
        self.output.line(json.dumps(data, allow_nan=False))


class FuseCommand:
    """``mlxk fuse ADAPTER --into NAME``: a whole model of a base and an adapter."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare adapter, base, target and form."""
        adapter = parser.add_argument(
            "adapter", metavar="ADAPTER", type=model_reference, help="a workspace with an adapter, or one of the cache"
        )
        complete_models(adapter)
        parser.add_argument("--into", metavar="NAME", required=True, help="the workspace to make")
        base = parser.add_argument(
            "--model", metavar="MODEL", type=model_reference, help="its base; else the model that the adapter names"
        )
        complete_models(base)
        parser.add_argument("--dequantize", action="store_true", help="make plain layers of quantized ones")
        parser.add_argument(
            "--accept-changes", action="store_true", help="keep a result that does not answer as model and adapter do"
        )
        add_cpu_argument(parser)

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Fuse, have both answer, and print where the result is."""
        settings = _local_settings(arguments, context)
        if arguments.cpu_dtype is None:  # computing in 16 bits rounds more than fusing does
            settings = attrs.evolve(settings, cpu_dtype="float32")
        container = context.build(settings)
        request = FuseRequest(
            arguments.adapter, arguments.into, arguments.model, arguments.dequantize, arguments.accept_changes
        )
        try:
            with SpinnerBetweenBars(output, "Reading the adapter") as progress:
                result = container.use_cases.fuse_adapter()(request, progress)
        except KeyboardInterrupt:
            raise InterruptedRunError("interrupted; nothing was made", hint="Run the same command again.") from None
        finally:
            container.adapters.text_generator().close()
        if output.as_json:
            output.document("fuse", tuning.fuse_json(result))
        else:
            output.text(tuning.fuse_text(result, arguments.into))
        return DONE


class EvalCommand:
    """``mlxk eval MODEL DATA``: the loss and the exact answers of a model."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare model, data and what is measured."""
        add_model_argument(parser)
        parser.add_argument("data", metavar="DATA", help="as for mlxk tune: a file of JSON lines, or a folder")
        parser.add_argument("--adapter", metavar="DIR", help="measure the model with this adapter")
        parser.add_argument("--split", choices=SPLITS, help="of a folder; else test, valid, train, the first there is")
        parser.add_argument("--schema", metavar="FILE", help="count the answers that keep to this JSON Schema")
        many = whole_number(1, _LARGEST)
        parser.add_argument("--limit", metavar="N", type=many, help="measure the first N examples (all)")
        parser.add_argument("--max-tokens", metavar="N", type=many, default=256, help="of an answer (256)")
        parser.add_argument("--max-length", metavar="N", type=many, help=f"tokens of an example ({MAX_LENGTH})")
        add_cpu_argument(parser)

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """Measure, and print the figures."""
        if arguments.adapter is not None and not arguments.adapter.strip():
            raise UsageError("--adapter: the path is empty")
        adapter = None if arguments.adapter is None else os.path.abspath(os.path.expanduser(arguments.adapter))
        container = context.build(_local_settings(arguments, context))
        schema = None if arguments.schema is None else _schema(arguments.schema)
        request = EvaluateRequest(
            arguments.model,
            arguments.data,
            arguments.split,
            adapter,
            arguments.limit,
            arguments.max_tokens,
            arguments.max_length or MAX_LENGTH,
            None if schema is None else container.adapters.schema_check(schema),
        )
        try:
            with SpinnerBetweenBars(output, "Reading the examples") as progress:
                evaluation = container.use_cases.evaluate_model()(request, progress)
        finally:
            container.adapters.text_generator().close()
        if output.as_json:
            output.document("eval", tuning.eval_json(evaluation, adapter, checked=schema is not None))
        else:
            output.text(tuning.eval_text(evaluation, checked=schema is not None))
        return DONE


def _schema(path: str) -> dict[str, object]:
    """Return the JSON Schema in a file.

    Raises:
        StorageError: The file cannot be read.
        ValidationError: It holds no JSON object.
    """
    document = read_json(path, "--schema")
    if not isinstance(document, dict):
        raise ValidationError(f"--schema: '{path}' holds no JSON object")
    return document


def _local_settings(arguments: argparse.Namespace, context: CommandContext) -> Settings:
    """Return settings without a running server, so that all results compared are computed alike."""
    return attrs.evolve(computing_settings(arguments, context.settings), use_server=False)
