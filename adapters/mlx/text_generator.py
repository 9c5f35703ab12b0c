"""The text generator port on MLX, and leases of its engine's models, by which the other ports use them.

``submit`` validates, leases the model, renders and counts the prompt in the caller's thread, then hands the sequence to
the engine on the owner thread. No MLX array leaves that thread. The engine's model pool loads, keeps and unloads models
of every kind; between two calls of a lease the engine continues to generate.
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
from mlxk.adapters.mlx.library_imports import ExceptionSummary, failed
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
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.model import ModelHandle

_LOOK_SECONDS = 0.005
"""Time between two checks for waiting work."""

T = TypeVar("T")
M = TypeVar("M")


@attrs.frozen
class _Failure:
    """An error on the owner thread without its traceback, which would keep arrays alive."""

    error: MlxkError


class ModelLease(Generic[M]):
    """A loaded model that stays in memory until the lease is returned.

    Args:
        thread: The owner thread.
        model: The loader's result; may be used inside ``call`` only.
        log: Receives failures.
        turns: Those of every lease; its own when not given.
    """

    def __init__(
        self, thread: OwnerThread[Engine], model: M, log: EventLog, turns: "TurnsOfLeases | None" = None
    ) -> None:
        self.model = model
        self._thread = thread
        self._log = log
        self._turns = turns or TurnsOfLeases()
        self.seconds = 0.0
        """Duration of the last call."""

    def call(self, work: Callable[[], T]) -> T:
        """Run a function on the owner thread and return its result; it should take no more than a second or so.

        The result must hold nothing of MLX.

        Raises:
            MlxkError: Raised by the function; any other exception becomes an ``ExecutionError``.
        """
        reply: queue.SimpleQueue[T | _Failure] = queue.SimpleQueue()
        self._thread.post(lambda _: reply.put(self._outcome(work)))
        outcome = reply.get()
        if isinstance(outcome, _Failure):
            raise outcome.error
        return outcome

    def call_in_turn(self, work: Callable[[], T]) -> T:
        """Run a function as ``call`` does that may take many seconds, when it is this lease's turn.

        Before it whatever else waits for the owner thread is served: sequences, loads and short calls get at least as
        much time as the last such function took, of whichever lease. So several recordings at once leave the others
        the same half of the time as one.
        """
        return self._in_turn(work, self._turns.windows)

    def call_batch(self, work: Callable[[], T]) -> T:
        """Run a function as ``call_in_turn`` does, among those that take a fraction of a second: batches of texts."""
        return self._in_turn(work, self._turns.batches)

    def _in_turn(self, work: Callable[[], T], turns: "Turns") -> T:
        with turns.take():
            until = turns.ended + turns.seconds
            while time.monotonic() < until and self.others_wait:
                time.sleep(_LOOK_SECONDS)
            began = time.monotonic()
            try:
                return self.call(work)
            finally:
                turns.ended = time.monotonic()
                turns.seconds = turns.ended - began

    @property
    def others_wait(self) -> bool:
        """Whether anything waits for the owner thread, or is being generated on it."""
        engine = self._thread.worker
        return self._thread.has_posted or (engine is not None and engine.running + engine.waiting > 0)

    @property
    def is_shared(self) -> bool:
        """Whether sequences are being computed beside this lease."""
        engine = self._thread.worker
        return engine is not None and engine.running > 0

    def _outcome(self, work: Callable[[], T]) -> T | _Failure:
        began = time.monotonic()
        try:
            return work()
        except MlxkError as error:
            return _Failure(error.with_traceback(None))
        except Exception as error:  # noqa: BLE001 - boundary: the caller must get an outcome in any case
            summary = ExceptionSummary.of(error)
            self._log.warning("a call on a leased model failed", error=summary.kind, where=summary.place)
            return _Failure(failed(error, "Running the model").with_traceback(None))
        finally:
            self.seconds = time.monotonic() - began


class Turns:
    """Who may keep the owner thread for many seconds: one lease at a time, in the order in which they asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()
        self.ended = 0.0
        """When the last turn ended, by the monotonic clock; changed by the holder of a turn only."""
        self.seconds = 0.0
        """How long the last turn took."""

    @property
    def waiting(self) -> tuple[threading.Event, ...]:
        """The one that has its turn, and those that wait for theirs."""
        with self._lock:
            return tuple(self._queue)

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a turn, and have it for the length of the block."""
        mine = threading.Event()
        with self._lock:
            self._queue.append(mine)
            self._queue[0].set()
        try:
            mine.wait()
            yield
        finally:
            with self._lock:
                self._queue.remove(mine)
                if self._queue:
                    self._queue[0].set()


class TurnsOfLeases:
    """The turns of all leases: those of many seconds and the short ones do not wait for each other."""

    def __init__(self) -> None:
        self.windows = Turns()
        self.batches = Turns()


class ModelLeases:
    """Leases models that are used on the owner thread.

    Args:
        thread: The owner thread.
        log: Receives failures.
    """

    def __init__(self, thread: OwnerThread[Engine], log: EventLog) -> None:
        self._thread = thread
        self._log = log
        self._turns = TurnsOfLeases()

    @contextlib.contextmanager
    def lease(self, wanted: WantedModel, kind: type[M]) -> Iterator[ModelLease[M]]:
        """Lease a model for the length of the block, loading it if it is not loaded.

        Args:
            wanted: The model and its loader.
            kind: The type of the loader's result.

        Raises:
            MlxkError: It cannot be loaded.
        """
        request = LoadRequest((wanted,))
        self._thread.post(lambda engine: engine.load(request))
        models = request.wait()
        try:
            model: object = models[0].model
            if not isinstance(model, kind):
                raise TypeError(f"the loader returned a {type(model).__name__}, not a {kind.__name__}")
            yield ModelLease(self._thread, model, self._log, self._turns)
        finally:
            # A closed engine has unloaded everything already.
            with contextlib.suppress(ExecutionError):
                self._thread.post(lambda engine: engine.release(models))

    @contextlib.contextmanager
    def loaded(self, wanted: Iterable[WantedModel], kind: type[M]) -> Iterator[M | None]:
        """Lease the first of some models that is loaded, for the length of the block; never load one, never wait.

        Args:
            wanted: A model, by each of its loaders.
            kind: The type of the loaders' result.

        Yields:
            The model, for what may be used on any thread; None when none is loaded.
        """
        engine = self._thread.worker
        found = None if engine is None else next(filter(None, (engine.lease_now((each,)) for each in wanted)), None)
        if found is None:
            yield None
            return
        try:
            model: object = found[0].model
            yield model if isinstance(model, kind) else None
        finally:
            # On its thread, which may wait for the lease to end.
            with contextlib.suppress(ExecutionError):
                self._thread.post(lambda engine: engine.release(found))


class MlxTextGenerator(TextGenerator):
    """Runs text models with mlx-lm and vision-language models with mlx-vlm, many sequences at a time.

    Args:
        log: Receives loads, unloads and failures.
        clock: Measures.
        limits: Of sequences and memory.
        hold: Entered while a model is in memory.
        judge: Decides before a model is loaded whether its 16-bit numbers are held in 32 bits.

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
        """Leases of other kinds of models, in the same memory and on the same thread, until this is closed."""
        return ModelLeases(self._thread, self._log)

    def submit(self, request: GenerationRequest) -> TextStream:
        request.validate()
        if request.engine_options.is_turboquant:
            import_codec()
        began = self._clock.monotonic()
        models = self._lease(request)
        load_seconds = self._clock.monotonic() - began
        try:
            stream = QueuedTextStream()
            rendered, media = self._process_media(request, models)
            sequence = build_sequence(request, models, stream, self._clock, rendered)
            sequence.load_seconds, sequence.media = load_seconds, media
            if len(models) > 1 and not sequence.drafted:
                self._log.info("a default draft model is not used", model=models[0].model.name, notes=sequence.notes)
            if self._disk is not None and (engine := self._thread.worker) is not None:
                sequence.kept = self._disk.fetch(sequence, engine.prefixes)
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
        found = self._engine_state(timeout_seconds)
        return found if self._disk is None else attrs.evolve(found, disk=self._disk.state(None))

    def _engine_state(self, timeout_seconds: float) -> EngineState:
        if not self._thread.started:
            return EngineState(responding=not self._thread.closed, running=0, waiting=0, models=())
        reply: queue.SimpleQueue[EngineState] = queue.SimpleQueue()
        with contextlib.suppress(ExecutionError, queue.Empty):
            self._thread.post(lambda engine: reply.put(engine.state()))
            self._last_state = reply.get(timeout=timeout_seconds)
            return self._last_state
        # The thread is in one long computation: what is loaded is known without it.
        engine = self._thread.worker
        models = self._last_state.models if engine is None or self._thread.closed else engine.resident
        return attrs.evolve(self._last_state, responding=False, models=models)

    def unload(self, model: ModelHandle | None = None, *, once_idle: bool = False) -> tuple[ModelHandle, ...]:
        if not self._thread.started or self._thread.closed:
            return ()
        reply: queue.SimpleQueue[tuple[ModelHandle, ...]] = queue.SimpleQueue()
        self._thread.post(lambda engine: reply.put(engine.unload(model, once_idle=once_idle)))
        return reply.get()

    def kept_prompts(self, tenant: str | None = None) -> KeptPrompts:
        prefixes = self._reply(lambda engine: [engine.prefixes.held(tenant, quantized=x) for x in (False, True)])
        disk = None if self._disk is None else self._disk.state(tenant)
        return KeptPrompts(*prefixes[0], self._limits.prefix_cache_bytes, *prefixes[1], disk)

    def forget_prompts(self, tenant: str | None = None) -> None:
        self._reply(lambda engine: engine.forget_prompts(tenant))

    def close(self) -> None:
        self._thread.close()

    def _reply(self, ask: Callable[[Engine], T]) -> T:
        """Return what a quick function finds out on the owner thread."""
        reply: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._thread.post(lambda engine: reply.put(ask(engine)))
        return reply.get()

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
            template_sandbox.start_ahead()  # It takes as long to start as a small model to load.
        load_request = LoadRequest(wanted)
        self._thread.post(lambda engine: engine.load(load_request))
        return load_request.wait(request.is_abandoned)

    def _process_media(
        self, request: GenerationRequest, models: tuple[PooledModel, ...]
    ) -> tuple[RenderedPrompt | None, Media | None]:
        """Render a prompt, and process it on the owner thread, for a vision-language model; None for any other."""
        model = models[0].model
        if model.vision is None:
            if request.has_images or request.has_audio:
                raise CapabilityError(f"'{model.name}' takes text, not images and sound.")
            return None, None
        text: RenderedText | None = model.vision.render(request, model)
        processed: tuple[RenderedPrompt, Media] = ModelLease(self._thread, model, self._log).call(
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
