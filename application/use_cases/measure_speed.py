"""Measure the speed of a model on this machine: text generation, images, transcription or embeddings."""

import contextlib
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import attrs

from mlxk.application.generation_input import GenerationOptions, IncomingConversation, Recording
from mlxk.application.policy import require_embedding_model, require_text_model
from mlxk.application.ports.installation import InstallationProbe
from mlxk.application.ports.measuring import MachineMeter
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.model_tasks import ModelTokenizer, TokenizedText
from mlxk.application.ports.system import Clock
from mlxk.application.ports.text_generator import STATE_SECONDS, TextGenerator
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.model_tasks import EmbedText, LoadModel, TokenizeText, TranscribeAudio
from mlxk.domain.benchmark import (
    BUSY_LOAD,
    Machine,
    Row,
    Shape,
    Span,
    Spread,
    StreamTimes,
)
from mlxk.domain.embedding import EmbeddingSettings
from mlxk.domain.errors import ContextLengthError, ExecutionError
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.media import DEFAULT_IMAGE_PROMPT, EncodedImage
from mlxk.domain.generation.request import Finished, TokenIds
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelDescription, ModelDetails, ModelHandle
from mlxk.domain.speed import ModelSpeed, TaskRow, Unit
from mlxk.domain.transcription import Transcript, TranscriptionSettings

Report = Callable[[str, int, int], None]
"""Progress callback with the name of the current measurement, the steps done, and the total of steps."""

WORDS = (
    "time person year way day thing man world life hand part child eye woman place work week case point number group "
    "problem fact home water room mother area money story month lot right study book word business issue side kind "
    "head house service friend father power hour game line end member law car city name team minute idea body back "
    "parent face level office door health art war party result change morning reason research girl guy moment air"
)
"""Frequent words, most of which are one token of most models."""

_MODEL_LIBRARIES = ("mlx", "mlx-audio", "mlx-lm", "mlx-metal", "mlx-cpu", "mlx-vlm", "transformers")


@attrs.frozen
class MachineReader:
    """Describes this machine for the report of a benchmark."""

    probe: InstallationProbe
    memory: MemoryProbe
    meter: MachineMeter

    def read(self) -> Machine:
        """Return hardware, versions and present load; to be called before the measurement."""
        platform, matrices, reading = self.probe.platform(), self.memory.matrices(), self.memory.read()
        packages = ((each.name, each.version) for each in self.probe.packages() if each.name in _MODEL_LIBRARIES)
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


def busy_notes(machine: Machine) -> Iterator[str]:
    """Yield a note when other programs loaded the machine before a measurement."""
    if machine.load_before is not None and machine.load_before > BUSY_LOAD:
        share = round(100 * machine.load_before)
        yield f"Other programs loaded the cores to {share} % in the minute before: the figures may be too low."


_FEWER = "Measure fewer tokens."


@attrs.frozen
class MeasureModel:
    """Measures a text model in this process, with the engine that serves requests."""

    machine: MachineReader
    generate: GenerateText
    load: LoadModel
    tokenize: TokenizeText
    clock: Clock

    def __call__(
        self, details: ModelDetails, shapes: Sequence[Shape], images: Sequence[int], repeats: int, report: Report
    ) -> ModelSpeed:
        """Measure every shape and image: one run to warm up, then ``repeats`` runs that count.

        Every prompt is a new random sequence of tokens, and the prefix cache is emptied before each run. Decoding is
        greedy and ignores the end-of-sequence token.

        Args:
            details: The model.
            shapes: The shapes to measure, in this order.
            images: Side lengths of the square images to measure, in pixels, for a model that takes images.
            repeats: At least one.
            report: Called before each run.

        Raises:
            ContextLengthError: A shape does not fit into the model's context window.
            MlxkError: See ``GenerateText``.
        """
        machine = self.machine.read()
        require_text_model(details.description)
        runs = _Runs(self.clock, repeats, report, (len(shapes) + len(images)) * (repeats + 1))
        report("load", 0, 1)
        pool = self._tokens(details, shapes)
        began = self.clock.monotonic()
        self.load(details.description)
        load_seconds = self.clock.monotonic() - began
        rows = [self._row(details, shape, pool, runs) for shape in shapes]
        tasks = [self._images(details, side, runs) for side in images]
        peak = self.generate.generator.state(STATE_SECONDS).peak_bytes
        notes = (*busy_notes(machine), *_noisy([*rows, *tasks]))
        process = self.machine.meter.peak_process_bytes()
        return ModelSpeed(details.description, machine, load_seconds, tuple(rows), peak, process, notes, tuple(tasks))

    def _row(self, details: ModelDetails, shape: Shape, pool: Sequence[int], runs: "_Runs") -> Row:
        source = random.Random(0)

        def run() -> list[StreamTimes]:
            prompts = [tuple(source.choices(pool, k=shape.prompt_tokens)) for _ in range(shape.streams)]
            return self._generate(details, prompts, shape.generated_tokens)

        times, span = runs.measure(f"{shape.name}, {shape.streams} at once" if shape.streams > 1 else shape.name, run)
        return Row.of(shape, times, span)

    def _images(self, details: ModelDetails, side: int, runs: "_Runs") -> TaskRow:
        """Measure the time to the first token of an answer about one image."""
        settings = GenerationSettings(max_tokens=1, temperature=0.0, ignore_eos=True)
        options = GenerationOptions(settings, image_tables=False, image_facts=False)
        source = random.Random(side)

        def run() -> float:
            image = EncodedImage.of(_noise(side, source), "the image of the benchmark")
            prompt = IncomingConversation.of(Conversation((Message(Role.USER, DEFAULT_IMAGE_PROMPT),)), image)
            self.generate.generator.forget_prompts()
            began = self.clock.monotonic()
            (stream,) = self.generate(details, [prompt], options)
            with stream:
                for _ in stream:
                    pass
            return self.clock.monotonic() - began

        return _task(f"image{side}", Unit.IMAGES, 1, *runs.measure(f"image{side}", run))

    def _tokens(self, details: ModelDetails, shapes: Sequence[Shape]) -> list[int]:
        """Return tokens of plain words to build prompts from, none of them a control token.

        Raises:
            ContextLengthError: A shape exceeds the context window.
        """
        handle = details.description.handle
        text = self.tokenize.encode(handle, WORDS, add_special=False, parse_special=False)
        for shape in shapes:
            needed, most = shape.prompt_tokens + shape.generated_tokens, text.context_length
            if most is not None and needed > most:
                raise ContextLengthError(
                    f"{shape.name} takes {needed} tokens; the context window of '{handle.label}' has {most}",
                    hint=_FEWER,
                    detail={"needed_tokens": needed, "context_length": most},
                )
        return _pool(handle, text)

    def _generate(self, details: ModelDetails, prompts: Sequence[TokenIds], generated: int) -> list[StreamTimes]:
        """Compute completions of several prompts at the same time; return their timings."""
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


Run = TypeVar("Run")


@attrs.define
class _Runs:
    """Repeats measurements. The first run, which may compile kernels, warms up and does not count."""

    clock: Clock
    repeats: int
    report: Report
    steps: int
    """Total of runs, for the progress."""
    done: int = 0

    def measure(self, name: str, run: Callable[[], Run]) -> tuple[list[Run], Span]:
        """Return the results of the runs that count, and the time span of all runs."""
        began, results = self.clock.now(), []
        for index in range(self.repeats + 1):
            self.report(name, self.done, self.steps)
            result = run()
            self.done += 1
            if index:
                results.append(result)
        return results, Span(began, self.clock.now())


def _pool(model: ModelHandle, words: TokenizedText) -> list[int]:
    """Return the distinct tokens to draw prompts from."""
    if not words.tokens:
        raise ExecutionError(f"the tokenizer of '{model.label}' makes no tokens of words")
    return sorted(set(words.tokens))


def _task(name: str, unit: Unit, amount: float, seconds: Sequence[float], span: Span) -> TaskRow:
    rates = [amount / each for each in seconds]
    return TaskRow(name, unit, amount, len(seconds), Spread.of(rates), Spread.of(seconds), span)


def _noise(side: int, source: random.Random) -> bytes:
    """Return a PNG file of random pixels, which no cache can hold."""
    rows = b"".join(b"\0" + source.randbytes(3 * side) for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    encoded = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(encoded)


@attrs.frozen
class MeasureSpeech:
    """Measures a speech-to-text model in this process."""

    machine: MachineReader
    transcribe: TranscribeAudio
    clock: Clock
    generator: TextGenerator

    def __call__(self, model: ModelDescription, recording: Recording, repeats: int, report: Report) -> ModelSpeed:
        """Measure the transcription of a recording; raises as ``TranscribeAudio``."""
        machine = self.machine.read()
        length = 0.0  # seconds of the recording

        def run() -> float:
            nonlocal length
            began = self.clock.monotonic()
            for event in self.transcribe(model, recording, TranscriptionSettings()):
                if isinstance(event, Transcript):
                    length = event.seconds
            return self.clock.monotonic() - began

        seconds, span = _Runs(self.clock, repeats, report, repeats + 1).measure("sound", run)
        task = _task(f"sound{length:.0f}", Unit.SOUND, length, seconds, span)
        return _speed_of(model, machine, (task,), self.machine.meter, self.generator)


@attrs.frozen
class MeasureEmbeddings:
    """Measures an embedding model in this process."""

    machine: MachineReader
    embed: EmbedText
    tokenizer: ModelTokenizer
    clock: Clock
    generator: TextGenerator

    def __call__(
        self, model: ModelDescription, tokens: Sequence[int], counts: Sequence[int], repeats: int, report: Report
    ) -> ModelSpeed:
        """Measure requests for each combination of a text length and a number of texts.

        Args:
            model: The model.
            tokens: Lengths of the texts, in random tokens.
            counts: Numbers of texts in a request.
            repeats: Runs that count, at least one.
            report: Called before each run.

        Raises:
            MlxkError: See ``EmbedText``.
        """
        machine, source = self.machine.read(), random.Random(0)
        require_embedding_model(model)
        encoded = self.tokenizer.encode(model.handle, WORDS, add_special=False, parse_special=False)
        pool = _pool(model.handle, encoded)
        runs = _Runs(self.clock, repeats, report, len(tokens) * len(counts) * (repeats + 1))

        def measured(size: int, count: int) -> TaskRow:
            def run() -> float:
                texts = tuple(tuple(source.choices(pool, k=size)) for _ in range(count))
                began = self.clock.monotonic()
                try:
                    self.embed(model, texts, EmbeddingSettings())
                except ContextLengthError as error:
                    raise ContextLengthError(error.message, hint=_FEWER, detail=error.detail) from error
                return self.clock.monotonic() - began

            name = f"embed{size}" if count == 1 else f"embed{size} x{count}"
            return _task(name, Unit.TEXTS, count, *runs.measure(name, run))

        tasks = tuple(measured(size, count) for size in tokens for count in counts)
        return _speed_of(model, machine, tasks, self.machine.meter, self.generator)


def _speed_of(
    model: ModelDescription,
    machine: Machine,
    tasks: tuple[TaskRow, ...],
    meter: MachineMeter,
    generator: TextGenerator,
) -> ModelSpeed:
    """Return the result for a model that generates no text."""
    notes = (*busy_notes(machine), *_noisy(tasks))
    peak = generator.state(STATE_SECONDS).peak_bytes
    return ModelSpeed(model, machine, None, (), peak, meter.peak_process_bytes(), notes, tasks)


def _noisy(rows: Sequence[Row | TaskRow]) -> Iterator[str]:
    names = list(dict.fromkeys(row.shape.name if isinstance(row, Row) else row.name for row in rows if row.noisy))
    if names:
        yield f"The repeats of {', '.join(names)} lie far apart: repeat the measurement on an idle machine."
