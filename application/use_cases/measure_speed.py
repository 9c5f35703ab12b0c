"""Measure the speed of a model on this machine, and of a server under load."""

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import attrs

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.policy import require_text_model
from mlxk.application.ports.benchmarking import CompletionClient, CompletionServer, MachineMeter, RemoteRequest
from mlxk.application.ports.installation import InstallationProbe
from mlxk.application.ports.system import Clock, MemoryProbe
from mlxk.application.use_cases.generate_text import STATE_SECONDS, GenerateText
from mlxk.application.use_cases.model_tasks import LoadModel, TokenizeText
from mlxk.domain.benchmark import (
    BUSY_LOAD,
    CACHED_SHARE,
    Level,
    Load,
    Machine,
    RemoteCompletion,
    Row,
    Shape,
    Span,
    StreamTimes,
)
from mlxk.domain.errors import ContextLengthError, ExecutionError, NetworkError
from mlxk.domain.generation.request import Finished, TokenIds
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelDescription, ModelDetails

Report = Callable[[str, int, int], None]
"""Receives what is being measured, the steps done, and all steps."""

_WORDS = (
    "time person year way day thing man world life hand part child eye woman place work week case point number group "
    "problem fact home water room mother area money story month lot right study book word business issue side kind "
    "head house service friend father power hour game line end member law car city name team minute idea body back "
    "parent face level office door health art war party result change morning reason research girl guy moment air"
)
"""Frequent words, most of which are one token of most models."""

_ORDER = " Go on with this list of words, one a line, and do not stop."
_COMPUTING = ("mlx", "mlx-audio", "mlx-lm", "mlx-metal", "mlx-cpu", "mlx-vlm", "transformers")
_REFUSED_FIELDS = (400, 422)
"""Statuses of servers that refuse a field they do not know."""


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
class ServerSpeed:
    """The result for a server."""

    model: str
    machine: Machine
    """The one that asked."""
    levels: tuple[Level, ...]
    notes: tuple[str, ...]
    """As for a model."""
    load_seconds: float | None = None
    """To have the model in memory for the first request, as the server states it; None when it does not."""


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
        notes = (*_busy(machine), *_noisy(rows))
        meter, peak = self.machine.meter, self.generate.generator.state(STATE_SECONDS).peak_bytes
        return ModelSpeed(
            details.description, machine, load_seconds, tuple(rows), peak, meter.peak_process_bytes(), notes
        )

    def _tokens(self, details: ModelDetails, shapes: Sequence[Shape]) -> list[int]:
        """Return tokens of plain words to make prompts of; no control token is among them."""
        handle = details.description.handle
        text = self.tokenize.encode(handle, _WORDS, add_special=False, parse_special=False)
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


def _busy(machine: Machine) -> Iterator[str]:
    if machine.load_before is not None and machine.load_before > BUSY_LOAD:
        share = round(100 * machine.load_before)
        yield f"Other programs loaded the cores to {share} % in the minute before: the figures may be too low."


def _noisy(rows: Sequence[Row]) -> Iterator[str]:
    names = list(dict.fromkeys(row.shape.name for row in rows if row.noisy))
    if names:
        yield f"The repeats of {', '.join(names)} lie far apart: repeat the measurement on an idle machine."


@attrs.frozen
class MeasureServer:
    """Measures a server: so many clients ask at the same time, each the next question when it has an answer."""

    machine: MachineReader
    client: CompletionClient
    clock: Clock

    def __call__(
        self, server: CompletionServer, model: str | None, loads: Sequence[Load], repeats: int, report: Report
    ) -> ServerSpeed:
        """Measure every load: one request a stream that does not count, then so many a stream.

        Every prompt begins with other words, drawn anew for each measurement, so that no cache helps.

        Args:
            server: The server.
            model: A name that it knows; None for the only one that it lists.
            loads: What to ask, in this order.
            repeats: Requests a stream, at least one.
            report: Called before each load.

        Raises:
            NetworkError: The server does not answer, or no request of those that do not count succeeded.
            AccessDeniedError: The server wants another key.
            ExecutionError: It lists several models, or none, and no name was given.
        """
        machine = self.machine.read()
        server = self.client.identify(server)
        if model is None:
            model = self._only_model(server)
        steps, done = sum(load.streams * (repeats + 1) for load in loads), 0
        ignore_eos, notes = True, list(_busy(machine))
        levels: list[Level] = []
        load_seconds = None
        for load in loads:
            since = self.clock.now()
            report(f"{load.streams} at once", done, steps)
            warm = self._ask(server, model, load, load.streams, ignore_eos=ignore_eos)
            if ignore_eos and all(each.status in _REFUSED_FIELDS for each in warm):
                warm = self._ask(server, model, load, load.streams, ignore_eos=False)
                if any(each.failure is None for each in warm):
                    ignore_eos = False
                    notes.append("The server does not take ignore_eos: its answers may end early.")
            if not levels and all(each.failure is not None for each in warm):
                raise NetworkError(
                    f"the server answers no request: {warm[0].failure}",
                    hint="Check its address, its key and the name of the model.",
                )
            if not levels:
                loads_stated = [each.stated.load for each in warm if each.stated and each.stated.load is not None]
                load_seconds = max(loads_stated, default=None)
            done += load.streams
            report(f"{load.streams} at once", done, steps)
            asked = self._ask(server, model, load, load.streams * repeats, ignore_eos=ignore_eos)
            levels.append(Level.of(load, asked, Span(since, self.clock.now())))
            done += load.streams * repeats
        return ServerSpeed(model, machine, tuple(levels), (*notes, *_uncounted(levels)), load_seconds)

    def _only_model(self, server: CompletionServer) -> str:
        names = self.client.models(server)
        if len(names) != 1:
            raise ExecutionError(
                "the server lists several models: name one" if names else "the server lists no model: name one",
                matches=tuple(sorted(names)),
            )
        return names[0]

    def _ask(
        self, server: CompletionServer, model: str, load: Load, count: int, *, ignore_eos: bool
    ) -> list[RemoteCompletion]:
        source = random.SystemRandom()
        prompts = [" ".join(source.choices(_WORDS.split(), k=load.prompt_words)) + _ORDER for _ in range(count)]
        waiting = deque(RemoteRequest(model, each, load.max_tokens, ignore_eos) for each in prompts)
        answered: list[RemoteCompletion] = []
        faults: list[Exception] = []

        def ask() -> None:
            try:
                while not faults:
                    answered.append(self.client.complete(server, waiting.popleft()))
            except IndexError:
                return  # nothing is left to ask
            except Exception as fault:  # noqa: BLE001 - raised by the thread that waits
                faults.append(fault)

        # An interruption does not wait for them: a server may be silent for minutes.
        clients = [threading.Thread(target=ask, daemon=True) for _ in range(load.streams)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        if faults:
            raise faults[0]
        return answered


def _uncounted(levels: Sequence[Level]) -> Iterator[str]:
    whole = [each for each in levels if each.failed < each.requests]
    if any(each.completion_tokens is None for each in whole):
        yield "The server does not say how many tokens it generated: there are no figures by the token."
    if early := [each for each in whole if each.ends_early]:
        mean = round(sum(each.completion_tokens or 0 for each in early) / sum(each.succeeded for each in early))
        yield f"Answers ended before the limit of {early[0].load.max_tokens} tokens, after {mean} on average."
    if any(each.cuts_prompts for each in whole):
        yield "The server counts fewer tokens than the prompts have words: it has cut them."
    # The first tokens of a chat template are the same in every prompt.
    if any((each.cached_tokens or 0) > CACHED_SHARE * (each.prompt_tokens or 0) for each in whole):
        yield "The server took a part of the prompts from a cache: times to the first token are shorter by it."
