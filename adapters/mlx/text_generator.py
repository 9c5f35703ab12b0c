"""The text generator port on MLX, and model leases, through which the other ports use the engine's models.

``submit`` validates the request, leases the model, renders and counts the prompt in the caller's thread, then posts the
sequence to the engine on the owner thread. No MLX array leaves that thread. The engine's model pool loads, keeps and
unloads models of every kind; between two calls of a lease the engine continues to generate.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import attrs

from mlxk.adapters.mlx.engine.build_sequence import build_sequence
from mlxk.adapters.mlx.engine.disk_tier import DiskTier
from mlxk.adapters.mlx.engine.engine import Engine, OwnerThread
from mlxk.adapters.mlx.engine.model_pool import Hold, Judge, LoadRequest, WantedModel
from mlxk.adapters.mlx.engine.prefill import Media
from mlxk.adapters.mlx.engine.sequence import Sequence
from mlxk.adapters.mlx.engine.turbo_cache import import_codec
from mlxk.adapters.mlx.loaders import draft_loader, library_for, loader_of, quantizing_activations
from mlxk.adapters.mlx.loading.text_model import PooledModel
from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.prompting import template_sandbox
from mlxk.adapters.mlx.prompting.templates import RenderedPrompt, RenderedText
from mlxk.application.ports.system import Clock, EventLog
from mlxk.application.ports.text_generator import EngineState, KeptPrompts, TextGenerator, TextStream
from mlxk.application.text_streams import QueuedTextStream
from mlxk.domain.errors import CapabilityError, ExecutionError, MlxkError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest, nobody_left
from mlxk.domain.models.model import ModelHandle

_POLL_SECONDS = 0.005
"""Interval of checking for waiting work."""

T = TypeVar("T")
M = TypeVar("M")


class ModelLease(Generic[M]):
    """A loaded model that stays in memory until the lease is returned.

    Args:
        thread: The owner thread.
        model: The loader's result; may be used inside ``call`` only.
        turns: The turns that all leases share; None for turns of its own.
    """

    def __init__(self, thread: OwnerThread[Engine], model: M, turns: "LeaseTurns | None" = None) -> None:
        self.model = model
        self._thread = thread
        self._turns = turns or LeaseTurns()
        self.seconds = 0.0
        """Duration of the last call."""

    def call(self, work: Callable[[], T]) -> T:
        """Run a function on the owner thread and return its result; it should take at most about a second.

        The result must not hold MLX objects.

        Raises:
            MlxkError: Raised by the function; other exceptions become an ``ExecutionError``.
        """

        def timed(_: Engine) -> T:
            began = time.monotonic()
            try:
                return work()
            finally:
                self.seconds = time.monotonic() - began

        return self._thread.call(timed, "a call on a leased model failed", "Running the model")

    def call_in_turn(self, work: Callable[[], T]) -> T:
        """Like ``call``, for functions that may take many seconds: waits for this lease's turn.

        Before the turn, other work for the owner thread (sequences, loads, short calls) gets at least as much time as
        the last turn of any lease took. So several recordings at once leave the others half of the time, as one does.
        """
        return self._in_turn(work, self._turns.windows)

    def call_batch(self, work: Callable[[], T]) -> T:
        """Like ``call_in_turn``, for functions that take a fraction of a second, such as batches of texts."""
        return self._in_turn(work, self._turns.batches)

    def _in_turn(self, work: Callable[[], T], turns: "Turns") -> T:
        with turns.take():
            until = turns.ended + turns.seconds
            while time.monotonic() < until and self.others_wait:
                time.sleep(_POLL_SECONDS)
            began = time.monotonic()
            try:
                return self.call(work)
            finally:
                turns.ended = time.monotonic()
                turns.seconds = turns.ended - began

    @property
    def others_wait(self) -> bool:
        """Whether any other work waits for the owner thread or runs on it."""
        engine = self._thread.worker
        return self._thread.has_posted or (engine is not None and engine.running + engine.waiting > 0)

    @property
    def is_shared(self) -> bool:
        """Whether sequences are being computed beside this lease."""
        engine = self._thread.worker
        return engine is not None and engine.running > 0


class Turns:
    """A fair lock for the owner thread: one lease has its turn at a time, first in, first out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()
        self.ended = 0.0
        """End of the last turn, monotonic time; written by the holder of a turn only."""
        self.seconds = 0.0
        """Duration of the last turn."""

    @property
    def waiting(self) -> tuple[threading.Event, ...]:
        """The holder of the turn, and those waiting."""
        with self._lock:
            return tuple(self._queue)

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a turn, and hold it for the length of the block."""
        own = threading.Event()
        with self._lock:
            self._queue.append(own)
            self._queue[0].set()
        try:
            own.wait()
            yield
        finally:
            with self._lock:
                self._queue.remove(own)
                if self._queue:
                    self._queue[0].set()


class LeaseTurns:
    """The turns of all leases; long calls (windows of audio) and short ones (batches) do not wait for each other."""

    def __init__(self) -> None:
        self.windows = Turns()
        self.batches = Turns()


def _loaded(
    thread: OwnerThread[Engine], wanted: tuple[WantedModel, ...], is_abandoned: Callable[[], bool] = nobody_left
) -> tuple[PooledModel, ...]:
    """Return models, loaded and leased; without a lease if the wait fails or is interrupted at any moment."""
    request = LoadRequest(wanted)
    try:
        thread.post(lambda engine: engine.load(request))
        return request.wait(is_abandoned)
    except BaseException:
        request.abandoned = True  # at once: the owner thread may go from one load to the next
        # An engine that is closed, or could not be started, has no model.
        with contextlib.suppress(MlxkError):
            thread.post(lambda engine: engine.withdraw(request))
        raise


class ModelLeases:
    """Leases models for use on the owner thread.

    Args:
        thread: The owner thread.
    """

    def __init__(self, thread: OwnerThread[Engine]) -> None:
        self._thread = thread
        self._turns = LeaseTurns()

    @contextlib.contextmanager
    def lease(self, wanted: WantedModel, kind: type[M]) -> Iterator[ModelLease[M]]:
        """Lease a model for the length of the block, loading it if it is not loaded.

        Args:
            wanted: The model and its loader.
            kind: The type of the loader's result.

        Raises:
            MlxkError: It cannot be loaded.
        """
        models = _loaded(self._thread, (wanted,))
        try:
            model: object = models[0].model
            if not isinstance(model, kind):
                raise TypeError(f"the loader returned a {type(model).__name__}, not a {kind.__name__}")
            yield ModelLease(self._thread, model, self._turns)
        finally:
            # A closed engine has unloaded everything already.
            with contextlib.suppress(ExecutionError):
                self._thread.post(lambda engine: engine.release(models))

    @contextlib.contextmanager
    def loaded(self, wanted: Iterable[WantedModel], kind: type[M]) -> Iterator[M | None]:
        """Lease the first model that is already loaded, for the length of the block; never loads or waits.

        Args:
            wanted: The same model with different loaders, in order of preference.
            kind: The type of the loaders' result.

        Yields:
            The model, of which only thread-safe parts may be used; None when none is loaded.
        """
        engine = self._thread.worker
        leased = None if engine is None else next(filter(None, (engine.lease_now((each,)) for each in wanted)), None)
        if leased is None:
            yield None
            return
        try:
            model: object = leased[0].model
            yield model if isinstance(model, kind) else None
        finally:
            # Posted, so that the owner thread wakes up: a request may wait for this model to be unloaded.
            with contextlib.suppress(ExecutionError):
                self._thread.post(lambda engine: engine.release(leased))


class MlxTextGenerator(TextGenerator):
    """Runs text models with mlx-lm and vision-language models with mlx-vlm, many sequences at a time.

    Args:
        log: Receives loads, unloads and failures.
        clock: Times everything.
        limits: Limits of sequences and memory.
        hold: Returns a context that is entered while a model is in memory.
        judge: Decides before a model is loaded whether its 16-bit weights are converted to 32 bits.

    Raises:
        StorageError: The folder of the disk tier cannot be used.
    """

    def __init__(
        self, log: EventLog, clock: Clock, limits: EngineLimits | None = None, hold: Hold = None, judge: Judge = None
    ) -> None:
        self._log = log
        self._clock = clock
        self._limits = limits or EngineLimits()
        self._hold = hold
        self._judge = judge
        disk = self._limits.disk
        self._disk = None if disk is None else DiskTier(disk, log, clock, self._limits.prefix_cache_bytes)
        self._thread: OwnerThread[Engine] = OwnerThread(self._build_engine, log)
        self._last_state = EngineState(responding=False, running=0, waiting=0, models=())

    @property
    def leases(self) -> ModelLeases:
        """Leases of models of any kind, in the same pool and on the same thread, until this generator is closed."""
        return ModelLeases(self._thread)

    def submit(self, request: GenerationRequest) -> TextStream:
        request.validate()
        if request.engine_options.is_turboquant:
            import_codec()
        began = self._clock.monotonic()
        models = self._lease(request)
        try:
            load_seconds = self._clock.monotonic() - began
            stream = QueuedTextStream()
            rendered, media = self._process_media(request, models)
            sequence = build_sequence(request, models, stream, self._clock, rendered)
            sequence.load_seconds, sequence.media = load_seconds, media
            if len(models) > 1 and not sequence.drafted:
                self._log.info("a default draft model is not used", model=models[0].model.name, notes=sequence.notes)
            if self._disk is not None and (engine := self._thread.worker) is not None:
                sequence.fetched = self._disk.fetch(sequence, engine.prefixes)
        except BaseException:
            self._thread.post(lambda engine: engine.release(models))
            raise
        stream.on_cancel = lambda: self._cancel(sequence)
        self._thread.post(lambda engine: engine.start(sequence))
        return stream

    def load(self, request: GenerationRequest) -> None:
        models = self._lease(request)
        self._thread.post(lambda engine: engine.release(models))

    def state(self, timeout_seconds: float) -> EngineState:
        state = self._engine_state(timeout_seconds)
        return state if self._disk is None else attrs.evolve(state, disk=self._disk.state(None))

    def _engine_state(self, timeout_seconds: float) -> EngineState:
        if not self._thread.started:
            return EngineState(responding=not self._thread.closed, running=0, waiting=0, models=())
        reply: queue.SimpleQueue[EngineState] = queue.SimpleQueue()
        with contextlib.suppress(ExecutionError, queue.Empty):
            self._thread.post(lambda engine: reply.put(engine.state()))
            self._last_state = reply.get(timeout=timeout_seconds)
            return self._last_state
        # The thread is busy with one long computation; the loaded models can be read without it.
        engine = self._thread.worker
        models = self._last_state.models if engine is None or self._thread.closed else engine.resident
        return attrs.evolve(self._last_state, responding=False, models=models)

    def unload(self, model: ModelHandle | None = None, *, once_idle: bool = False) -> tuple[ModelHandle, ...]:
        if not self._thread.started or self._thread.closed:
            return ()
        return self._thread.call(lambda engine: engine.unload(model, once_idle=once_idle))

    def kept_prompts(self, tenant: str | None = None) -> KeptPrompts:
        every, quantized = self._thread.call(
            lambda engine: (engine.prefixes.usage(tenant), engine.prefixes.usage(tenant, quantized=True))
        )
        disk = None if self._disk is None else self._disk.state(tenant)
        return KeptPrompts(*every, self._limits.prefix_cache_bytes, *quantized, disk)

    def forget_prompts(self, tenant: str | None = None) -> None:
        self._thread.call(lambda engine: engine.forget_prompts(tenant))

    def close(self) -> None:
        self._thread.close()

    def _lease(self, request: GenerationRequest) -> tuple[PooledModel, ...]:
        """Lease the models of a request, loading those that are not loaded."""
        engine_options = request.engine_options
        load = loader_of(library_for(request))
        if engine_options.quantize_activations:
            load = quantizing_activations(load)
        wanted = [WantedModel(request.model, engine_options.adapter, load, request.keep_alive_seconds)]
        if engine_options.draft_model is not None:
            wanted.append(WantedModel(engine_options.draft_model, load=draft_loader(engine_options.draft_model)))
        return self._leased(request, tuple(wanted))

    def _leased(self, request: GenerationRequest, wanted: tuple[WantedModel, ...]) -> tuple[PooledModel, ...]:
        engine = self._thread.worker
        if engine is not None and (models := engine.lease_now(wanted)) is not None:
            return models
        if isinstance(request.prompt, Conversation):
            template_sandbox.start_ahead()  # takes as long as loading a small model
        return _loaded(self._thread, wanted, request.is_abandoned)

    def _process_media(
        self, request: GenerationRequest, models: tuple[PooledModel, ...]
    ) -> tuple[RenderedPrompt | None, Media | None]:
        """Render the prompt of a vision-language model and process its media on the owner thread; None for others."""
        model = models[0].model
        if model.vision is None:
            if request.has_images or request.has_audio:
                raise CapabilityError(f"'{model.name}' takes text, not images and sound.")
            return None, None
        text: RenderedText | None = model.vision.render(request, model)
        processed: tuple[RenderedPrompt, Media] = ModelLease(self._thread, model).call(
            lambda: model.vision.process(request, model, text)
        )
        return processed

    def _cancel(self, sequence: Sequence) -> None:
        # A closed engine has ended every sequence already.
        with contextlib.suppress(ExecutionError):
            self._thread.post(lambda engine: engine.cancel(sequence))

    def _build_engine(self) -> Engine:
        return Engine(self._log, self._clock, self._limits, self._hold, self._judge, self._disk)


def leases_of(generator: TextGenerator) -> ModelLeases:
    """Return the leases of the engine behind a text generator, for models of other modalities.

    Raises:
        TypeError: It is a text generator of another technology.
    """
    if not isinstance(generator, MlxTextGenerator):
        raise TypeError(f"{type(generator).__name__} leases no models")
    return generator.leases
