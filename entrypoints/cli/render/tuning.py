"""JSON, text and charts of ``tune``, ``fuse`` and ``eval``."""

import math
from collections import deque

import attrs

from mlxk.application.use_cases.evaluate_model import Evaluation
from mlxk.application.use_cases.fuse_adapter import FuseResult
from mlxk.application.use_cases.tune_model import TuneResult, TuningPlan
from mlxk.domain.charts import Chart, ChartRow, Series
from mlxk.domain.tuning.data import TrainingData
from mlxk.domain.tuning.examples import ExampleKind
from mlxk.domain.tuning.record import point_fields
from mlxk.domain.tuning.training import TrainingPoint, TrainingResult, perplexity
from mlxk.entrypoints.cli.render.formatting import counted, decimal_size, printable
from mlxk.entrypoints.cli.render.monitoring import bars_of

Json = dict[str, object]

_BARS = 24
_LINES_NAMED = 5


def plan_json(plan: TuningPlan) -> Json:
    """Return a training plan as JSON."""
    return {
        "settings": plan.settings.as_fields(),
        "data": _data_json(plan.data),
        "tokens": {
            "longest": plan.lengths.longest,
            "longest_uncut": plan.lengths.longest_uncut,
            "total": plan.lengths.total,
            "learned": plan.lengths.learned,
            "cut_lines": list(plan.lengths.cut),
        },
        "memory_bytes": plan.memory.needed,
        "resumed_at": plan.resumed_at,
    }


def _data_json(data: TrainingData) -> Json:
    return {
        "kind": data.kind.value,
        "train": len(data.train),
        "valid": len(data.valid),
        "held_out": data.divided,
        "sha256": data.digest,
    }


def plan_lines(plan: TuningPlan) -> list[str]:
    """Return a training plan as text."""
    data, lengths, settings = plan.data, plan.lengths, plan.settings
    valid = f", {len(data.valid)} for validation" if data.valid else ", none for validation"
    held_out = " (held out; --valid-share 0 trains all)" if data.divided else ""
    lines = [
        f"{counted(len(data.train), 'example')}{valid}{held_out}; the longest has {lengths.longest} tokens,"
        f" {lengths.learned} of {lengths.total} are learned"
    ]
    if lengths.cut:
        numbers = ", ".join(map(str, lengths.cut[:_LINES_NAMED])) + (" …" if len(lengths.cut) > _LINES_NAMED else "")
        lines.append(
            f"Cut to {settings.max_length} tokens: {counted(len(lengths.cut), 'example')} (line {numbers}),"
            f" the longest of {lengths.longest_uncut}"
        )
    rate = f"learning rate {settings.learning_rate:g}"
    layers = counted(settings.layers, "layer")
    lines.append(
        f"{settings.method.value}, {layers}, {counted(settings.steps, 'step')} of"
        f" {settings.batch_size * settings.accumulation}, {rate}; up to {decimal_size(plan.memory.needed)} of memory"
    )
    if plan.resumed_at is not None:
        lines.append(f"Continued after step {plan.resumed_at}")
    return lines


@attrs.define
class LatestFigures:
    """The latest figures of a training; holds no more of it than it shows."""

    steps: int
    """Number of steps of the training."""
    _losses: deque[float] = attrs.field(factory=lambda: deque(maxlen=_BARS), init=False)
    _valid_loss: float | None = attrs.field(default=None, init=False)

    def with_point(self, point: TrainingPoint) -> str:
        """Add the figures at a step, and return the latest figures on one line."""
        if point.loss is not None:
            self._losses.append(point.loss)
        if point.valid_loss is not None:
            self._valid_loss = point.valid_loss
        parts = [f"step {point.step} of {self.steps}"]
        parts += [f"loss {self._losses[-1]:.3f}"] if self._losses else []
        parts += [f"validation {self._valid_loss:.3f}"] if self._valid_loss is not None else []
        parts += [f"{point.tokens_per_second:.0f} tokens/s"] if point.tokens_per_second else []
        parts += [f"{_time(point.seconds_left)} left"] if point.seconds_left and point.step < self.steps else []
        return ", ".join(parts) + (f" {bars_of(self._losses)}" if len(self._losses) > 1 else "")


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def tune_json(result: TuneResult, plot: str | None) -> Json:
    """Return the data of ``tune``."""
    record, trained = result.record, result.record.result
    return {
        "model": result.base.name,
        "target": result.handle.directory,
        "base": {
            "name": record.base.name,
            "revision": record.base.revision,
            "content_hash": record.base.content_hash,
        },
        "data": _data_json(result.plan.data),
        "settings": record.settings.as_fields(),
        "steps": trained.steps,
        "stopped_early": trained.stopped,
        "resumed_at": trained.resumed_at,
        "train_loss": trained.loss,
        "valid_loss": trained.valid_loss,
        "losses": [point_fields(each) for each in trained.points],
        "trained_parameters": trained.trained_parameters,
        "tokens": trained.tokens,
        "seconds": round(trained.seconds, 3),
        "peak_memory_bytes": trained.peak_bytes,
        "content_hash": result.workspace.content_hash,
        "plot": plot,
    }


def tune_text(result: TuneResult, typed: str, plot: str | None) -> str:
    """Return the text of ``tune``."""
    trained = result.record.result
    early = f" of {result.plan.settings.steps}, ended early" if trained.stopped else ""
    pairs = result.plan.data.kind is ExampleKind.PAIR
    lines = [f"tune: {result.base.label} → {typed}: {counted(trained.steps, 'step')}{early}, {_time(trained.seconds)}"]
    for name, first, last in (
        ("loss", trained.first_loss, trained.loss),
        ("validation", trained.first_valid_loss, trained.valid_loss),
    ):
        if first is not None and last is not None:
            shown_perplexity = "" if pairs else f" (perplexity {perplexity(last):.4g})"
            lines.append(f"  {name}: {first:.3f} → {last:.3f}{shown_perplexity}")
    lines.append(f"  {trained.trained_parameters:,} numbers trained, {decimal_size(trained.peak_bytes)} of memory used")
    lines += [f"  drawn: {plot}"] if plot else []
    lines.append(f'Ask it: mlxk run {typed} "…"')
    return "".join(f"{printable(line)}\n" for line in lines)


def chart(result: TrainingResult, title: str) -> Chart:
    """Return a chart of loss and speed over the steps."""
    points = [each for each in result.points if each.step > 0] or list(result.points)
    losses = [Series("training", tuple(each.loss for each in points))]
    if any(each.valid_loss is not None for each in points):
        losses.append(Series("validation", tuple(each.valid_loss for each in points)))
    speed = Series("speed", tuple(each.tokens_per_second for each in points))
    rows = (ChartRow("Loss", "nats a token", tuple(losses)), ChartRow("Speed", "tokens/s", (speed,)))
    return Chart(title, tuple(each.step for each in points), rows, ())


def fuse_json(result: FuseResult) -> Json:
    """Return the data of ``fuse``."""
    return {
        "model": result.base.name,
        "adapter": result.adapter,
        "target": result.handle.directory,
        "changed_layers": result.changed,
        "quantized": result.quantized,
        "questions": result.asked,
        "same_answers": result.same,
        "content_hash": result.workspace.content_hash,
    }


def fuse_text(result: FuseResult, typed: str) -> str:
    """Return the text of ``fuse``."""
    layers = counted(result.changed, "layer")
    same = f"{result.same} of {result.asked} answers are those of model and adapter"
    return "".join(
        f"{printable(line)}\n" for line in (f"fuse: {result.base.label} → {typed}: {layers} changed", f"  {same}")
    )


def eval_json(evaluation: Evaluation, adapter: str | None, *, checked: bool) -> Json:
    """Return the data of ``eval``; ``checked`` says whether answers were validated against a schema."""
    return {
        "model": evaluation.model.name,
        "adapter": adapter or evaluation.model.adapter,
        "split": evaluation.split,
        "sha256": evaluation.digest,
        "examples": evaluation.examples,
        "loss": evaluation.loss,
        "perplexity": evaluation.perplexity if math.isfinite(evaluation.perplexity) else None,
        "exact_match": evaluation.share(lambda each: each.exact),
        "valid_json": evaluation.share(lambda each: each.is_json),
        "schema_match": evaluation.share(lambda each: each.fits) if checked else None,
        "not_exact_lines": [each.line for each in evaluation.answers if not each.exact],
    }


def eval_text(evaluation: Evaluation, *, checked: bool) -> str:
    """Return the text of ``eval``."""
    exact = sum(each.exact for each in evaluation.answers)
    valid_json = sum(each.is_json for each in evaluation.answers)
    lines = [
        f"eval: {evaluation.model.label}, {counted(evaluation.examples, 'example')} ({evaluation.split})",
        f"  loss {evaluation.loss:.4f}, perplexity {evaluation.perplexity:.4g}",
    ]
    if evaluation.answers:
        fitting = f", {sum(each.fits for each in evaluation.answers)} by the schema" if checked else ""
        lines.append(f"  {exact} of {len(evaluation.answers)} answers exact, {valid_json} JSON{fitting}")
    return "".join(f"{printable(line)}\n" for line in lines)
