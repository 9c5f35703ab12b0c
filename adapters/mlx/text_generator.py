"""The text generator port on MLX.

``submit`` validates, leases the model, renders and counts the prompt in the caller's thread, then hands the sequence to
the engine on the owner thread. No MLX array leaves that thread.
"""

import contextlib
import queue

import attrs

from mlxk.adapters.mlx.engine.build_sequence import build_sequence
from mlxk.adapters.mlx.engine.engine import Engine, OwnerThread
from mlxk.adapters.mlx.engine.model_lease import ModelLease, ModelLeases
from mlxk.adapters.mlx.engine.model_pool import Hold, LoadRequest, WantedModel
from mlxk.adapters.mlx.engine.prefill import Media
from mlxk.adapters.mlx.engine.sequence import Sequence
from mlxk.adapters.mlx.loaders import library_for, loader_of
from mlxk.adapters.mlx.loading.text_model import PooledModel
from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.prompting import template_sandbox
from mlxk.adapters.mlx.prompting.templates import RenderedPrompt, RenderedText
from mlxk.application.ports.system import Clock, EventLog
from mlxk.application.ports.text_generator import EngineState, TextGenerator, TextStream
from mlxk.application.text_streams import QueuedTextStream
from mlxk.domain.errors import CapabilityError, ExecutionError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.model import ModelHandle


class MlxTextGenerator(TextGenerator):
    """Runs text models with mlx-lm and vision-language models with mlx-vlm, many sequences at a time.

    Args:
        log: Receives loads, unloads and failures.
        clock: Measures.
        limits: Of sequences and memory.
        hold: Entered while a model is in memory.
    """

    def __init__(self, log: EventLog, clock: Clock, limits: EngineLimits | None = None, hold: Hold = None) -> None:
        self._log = log
        self._clock = clock
        self._limits = limits or EngineLimits()
        self._hold = hold
        self._thread: OwnerThread[Engine] = OwnerThread(self._build_engine, log)
        self._last_state = EngineState(responding=False, running=0, waiting=0, models=())

    @property
    def leases(self) -> ModelLeases:
        """Leases of other kinds of models, in the same memory and on the same thread, until this is closed."""
        return ModelLeases(self._thread, self._log)

    def submit(self, request: GenerationRequest) -> TextStream:
        request.validate()
        began = self._clock.monotonic()
        models = self._lease(request)
        load_seconds = self._clock.monotonic() - began
        try:
            stream = QueuedTextStream()
            rendered, media = self._process_media(request, models)
            sequence = build_sequence(request, models, stream, self._clock, rendered)
            sequence.load_seconds, sequence.media = load_seconds, media
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

    def close(self) -> None:
        self._thread.close()

    def _lease(self, request: GenerationRequest) -> tuple[PooledModel, ...]:
        """Lease the models of a request, loading those that are not loaded."""
        engine_options = request.engine_options
        wanted = [
            WantedModel(
                request.model, engine_options.adapter, loader_of(library_for(request)), request.keep_alive_seconds
            )
        ]
        if engine_options.draft_model is not None:
            wanted.append(WantedModel(engine_options.draft_model))
        engine = self._thread.worker
        if engine is not None and (models := engine.lease_now(tuple(wanted))) is not None:
            return models
        if isinstance(request.prompt, Conversation):
            template_sandbox.start_ahead()  # It takes as long to start as a small model to load.
        load_request = LoadRequest(tuple(wanted))
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
        if len(models) > 1:
            raise CapabilityError("draft_model: vision models take no draft model.")
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
        return Engine(self._log, self._clock, self._limits, self._hold)


def leases_of(generator: TextGenerator) -> ModelLeases:
    """Return the leases of the engine behind a text generator, for models of other modalities.

    Raises:
        TypeError: It is a text generator of another technology.
    """
    if not isinstance(generator, MlxTextGenerator):
        raise TypeError(f"{type(generator).__name__} leases no models")
    return generator.leases
