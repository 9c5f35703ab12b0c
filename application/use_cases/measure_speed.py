"""Measure the speed of a model on this machine."""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence

import attrs

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.policy import require_text_model
from mlxk.application.ports.benchmarking import MachineMeter
from mlxk.application.ports.installation import InstallationProbe
from mlxk.application.ports.system import Clock, MemoryProbe
from mlxk.application.use_cases.generate_text import STATE_SECONDS, GenerateText
from mlxk.application.use_cases.model_tasks import LoadModel, TokenizeText
from mlxk.domain.benchmark import (
    BUSY_LOAD,
    Machine,
    Row,
    Shape,
    Span,
    StreamTimes,
)
from mlxk.domain.errors import ContextLengthError, ExecutionError
from mlxk.domain.generation.request import Finished, TokenIds
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelDescription, ModelDetails

Report = Callable[[str, int, int], None]
"""Receives what is being measured, the steps done, and all steps."""

WORDS = (
    "time person year way day thing man world life hand part child eye woman place work week case point number group "
    "problem fact home water room mother area money story month lot right study book word business issue side kind "
    "head house service friend father power hour game line end member law car city name team minute idea body back "
    "parent face level office door health art war party result change morning reason research girl guy moment air"
)
"""Frequent words, most of which are one token of most models."""

_COMPUTING = ("mlx", "mlx-audio", "mlx-lm", "mlx-metal", "mlx-cpu", "mlx-vlm", "transformers")


@attrs.frozen
class ModelSpeed:
    """The result for a model of this machine."""

    model: ModelDescription
    machine: Machine
    load_seconds: float
    """From the request to the model in memory; libraries are imported before."""
    rows: tuple[Row, ...]
    peak_array_bytes: int
    """Most memory of all arrays."""
    peak_process_bytes: int | None
    """Most resident memory of the process; None when unknown."""
    notes: tuple[str, ...]
    """What limits the meaning of the figures, a sentence each."""


@attrs.frozen
class MachineReader:
    """Reads what the machine that measures is like."""

    probe: InstallationProbe
    memory: MemoryProbe
    meter: MachineMeter

    def read(self) -> Machine:
        """Return it, as it is before the measurement."""
        platform, matrices, reading = self.probe.platform(), self.memory.matrices(), self.memory.read()
        packages = ((each.name, each.version) for each in self.probe.packages() if each.name in _COMPUTING)
        versions = [(name, version) for name, version in packages if version is not None]
        return Machine(
            platform.release,
            platform.machine,
            self.meter.processor(),
            reading.total if reading else None,
            matrices.on_cpu,
            matrices.library,
            self.meter.load(),
            (("python", ".".join(map(str, platform.python))), *versions),
        )


@attrs.frozen
class MeasureModel:
    """Measures a model in this process, with the engine that answers requests."""

    machine: MachineReader
    generate: GenerateText
    load: LoadModel
    tokenize: TokenizeText
    clock: Clock

    def __call__(self, model: str, shapes: Sequence[Shape], repeats: int, report: Report) -> ModelSpeed:
        """Measure every shape: one run that does not count, then so many repeats.

        Every prompt is another sequence of tokens, chosen at random, and nothing is kept of any. The likeliest token is
        taken always, and the end of an answer ignored.

        Args:
            model: A reference, as the user typed it.
            shapes: What to measure, in this order.
            repeats: At least one.
            report: Called before each run.

        Raises:
            ContextLengthError: A shape does not fit into the model's context window.
            MlxkError: See ``GenerateText``.
        """
        machine = self.machine.read()
        details = self.generate.describe.details(self.generate.resolve(model))
        require_text_model(details.description)
        steps = 1 + len(shapes) * (repeats + 1)
        report("load", 0, steps)
        pool = self._tokens(details, shapes)
        began = self.clock.monotonic()
        self.load(details.description)
        load_seconds = self.clock.monotonic() - began
        source, rows, done = random.Random(0), [], 1
        for shape in shapes:
            runs, since = [], self.clock.now()
            for index in range(repeats + 1):
                report(f"{shape.name}, {shape.streams} at once" if shape.streams > 1 else shape.name, done, steps)
                prompts = [tuple(source.choices(pool, k=shape.prompt_tokens)) for _ in range(shape.streams)]
                run = self._run(details, prompts, shape.generated_tokens)
                done += 1
                if index:  # the first one may compile what the others use
                    runs.append(run)
            rows.append(Row.of(shape, runs, Span(since, self.clock.now())))
        notes = (*busy_notes(machine), *_noisy(rows))
        meter, peak = self.machine.meter, self.generate.generator.state(STATE_SECONDS).peak_bytes
        return ModelSpeed(
            details.description, machine, load_seconds, tuple(rows), peak, meter.peak_process_bytes(), notes
        )

    def _tokens(self, details: ModelDetails, shapes: Sequence[Shape]) -> list[int]:
        """Return tokens of plain words to make prompts of; no control token is among them."""
        handle = details.description.handle
        text = self.tokenize.encode(handle, WORDS, add_special=False, parse_special=False)
        for shape in shapes:
            needed, most = shape.prompt_tokens + shape.generated_tokens, text.context_length
            if most is not None and needed > most:
                raise ContextLengthError(
                    f"{shape.name} takes {needed} tokens; the context window of '{handle.label}' has {most}",
                    hint="Measure fewer tokens.",
                    detail={"needed_tokens": needed, "context_length": most},
                )
        if not text.tokens:
            raise ExecutionError(f"the tokenizer of '{handle.label}' makes no tokens of words")
        return sorted(set(text.tokens))

    def _run(self, details: ModelDetails, prompts: Sequence[TokenIds], generated: int) -> list[StreamTimes]:
        """Compute completions at the same time."""
        options = GenerationOptions(GenerationSettings(max_tokens=generated, temperature=0.0, ignore_eos=True))
        self.generate.generator.forget_prompts()
        with contextlib.ExitStack() as running:
            started = []
            for prompt in prompts:
                began = self.clock.monotonic()
                (stream,) = self.generate(details, [prompt], options)
                started.append((began, running.enter_context(stream)))
            return [_times(began, end) for began, stream in started for end in stream if isinstance(end, Finished)]


def _times(began: float, end: Finished) -> StreamTimes:
    timings, usage = end.timings, end.usage
    first = began + timings.load_seconds + timings.queue_seconds + timings.prompt_seconds
    computed = usage.prompt_tokens - usage.cached_tokens
    return StreamTimes(began, first, first + timings.generation_seconds, computed, usage.completion_tokens)


def busy_notes(machine: Machine) -> Iterator[str]:
    """Yield what other programs did before a measurement, if it matters."""
    if machine.load_before is not None and machine.load_before > BUSY_LOAD:
        share = round(100 * machine.load_before)
        yield f"Other programs loaded the cores to {share} % in the minute before: the figures may be too low."


def _noisy(rows: Sequence[Row]) -> Iterator[str]:
    names = list(dict.fromkeys(row.shape.name for row in rows if row.noisy))
    if names:
        yield f"The repeats of {', '.join(names)} lie far apart: repeat the measurement on an idle machine."
