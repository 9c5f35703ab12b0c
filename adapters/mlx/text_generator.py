"""Text generation with mlx-lm: the port, as callers see it.

A call validates, has the model loaded, renders and counts the prompt in the caller's thread, then hands the job to the
engine on the owner thread. Nothing of MLX leaves that thread.
"""

import contextlib
import queue
from typing import TYPE_CHECKING

import attrs

from mlxk.adapters.mlx.compatibility import Library, library_for
from mlxk.adapters.mlx.engine.engine_limits import EngineLimits
from mlxk.adapters.mlx.engine.model_lease import ModelLease, ModelLeases
from mlxk.adapters.mlx.engine.owner_thread import OwnerThread
from mlxk.adapters.mlx.engine.text_stream import EventSink, MlxTextStream
from mlxk.adapters.mlx.exception_summary import ExceptionSummary
from mlxk.application.ports.clock import Clock
from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.text_generator import EngineState, TextGenerator, TextStream
from mlxk.domain.errors import CapabilityError, ExecutionError, MlxkError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.model import ModelHandle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlxk.adapters.mlx.engine.engine import Engine
    from mlxk.adapters.mlx.engine.jobs import Job
    from mlxk.adapters.mlx.engine.model_pool import Loader, PooledModel
    from mlxk.adapters.mlx.loading.text_model import LoadedModel
    from mlxk.adapters.mlx.prompting.templates import RenderedPrompt
    from mlxk.adapters.mlx.vision.prefill import VisionPrompt
    from mlxk.adapters.mlx.vision.prompts import LookedAt


class MlxTextGenerator(TextGenerator):
    """Runs text models with mlx-lm, any number of answers at a time.

    Args:
        log: Hears of loads, unloads and failures.
        clock: Measures.
        options: Limits.
    """

    def __init__(self, log: EventLog, clock: Clock, options: EngineLimits | None = None) -> None:
        self._log = log
        self._clock = clock
        self._options = options or EngineLimits()
        self._thread: OwnerThread[Engine] = OwnerThread(self._build, log)
        self._state = EngineState(responding=False, running=0, waiting=0, models=())

    def submit(self, request: GenerationRequest) -> TextStream:
        """Start an answer; see the port."""
        request.validate()
        try:
            return self._submit(request)
        except ImportError as error:
            raise self._unusable(error) from error

    @property
    def lender(self) -> ModelLeases:
        """Models of other kinds, in the same memory and on the same thread; gone when this is closed."""
        return ModelLeases(self._thread, self._log)

    def close(self) -> None:
        self._thread.close()

    def state(self, timeout_seconds: float) -> EngineState:
        if not self._thread.started:
            return EngineState(responding=not self._thread.closed, running=0, waiting=0, models=())
        reply: queue.SimpleQueue[EngineState] = queue.SimpleQueue()
        with contextlib.suppress(ExecutionError, queue.Empty):
            self._thread.post(lambda engine: reply.put(engine.state()))
            self._state = reply.get(timeout=timeout_seconds)
            return self._state
        return attrs.evolve(self._state, responding=False)

    def unload(self, model: ModelHandle | None = None) -> tuple[ModelHandle, ...]:
        if not self._thread.started or self._thread.closed:
            return ()
        reply: queue.SimpleQueue[tuple[ModelHandle, ...]] = queue.SimpleQueue()
        self._thread.post(lambda engine: reply.put(engine.unload(model)))
        return reply.get()

    def _submit(self, request: GenerationRequest) -> TextStream:
        from mlxk.adapters.mlx.engine.build_sequence import prepare
        from mlxk.adapters.mlx.engine.jobs import Job

        asked_at = self._clock.monotonic()
        residents = self._lease(request)
        loaded_at = self._clock.monotonic()
        try:
            sink = EventSink()
            models = tuple(each.model for each in residents)
            rendered, seen = self._look(request, models)
            row = prepare(request, models, sink, self._clock, rendered)
            row.answer.load_seconds = loaded_at - asked_at
            job = Job(row, residents, engine_options=request.engine_options)
            job.media = self._media(models[0], seen)
        except BaseException:
            self._thread.post(lambda engine: engine.release(residents))
            raise
        self._thread.post(lambda engine: engine.start(job))
        return MlxTextStream(sink, lambda: self._cancel(job))

    def _unusable(self, error: ImportError) -> MlxkError:
        """Return why the libraries cannot be used; what Python says of a broken one goes to the log."""
        from mlxk.adapters.mlx.library_imports import import_failure

        failure = import_failure(error, "Running text models", "mlx", "mlx-lm")
        if isinstance(failure, ExecutionError):
            fault = ExceptionSummary.of(error)
            self._log.error(
                "a library cannot be imported", error=fault.kind, where=fault.place, reason=str(error)[:300]
            )
        return failure

    def _lease(self, request: GenerationRequest) -> "tuple[PooledModel, ...]":
        """Have the models of a request in memory, loading them if need be."""
        from mlxk.adapters.mlx.engine.model_pool import LoadRequest, WantedModel

        engine_options = request.engine_options
        wanted = [WantedModel(request.model, engine_options.adapter, _loader(library_for(request)))]
        if engine_options.draft_model is not None:
            wanted.append(WantedModel(engine_options.draft_model))
        engine = self._thread.worker
        if engine is not None and (residents := engine.lease_now(tuple(wanted))) is not None:
            return residents
        wish = LoadRequest(tuple(wanted))
        self._thread.post(lambda worker: worker.ask(wish))
        return wish.wait()

    def _look(
        self, request: GenerationRequest, models: "Sequence[LoadedModel]"
    ) -> "tuple[RenderedPrompt | None, LookedAt | None]":
        """Have a model that looks at images process the prompt; nothing for any other, whose prompt is text."""
        if models[0].vision is None:
            if request.has_images or request.has_audio:
                raise CapabilityError(f"'{models[0].name}' takes text, not images and sound.")
            return None, None
        if len(models) > 1:
            raise CapabilityError("draft_model: models that look at images take no draft model.")
        from mlxk.adapters.mlx.vision.prompts import look

        return ModelLease(self._thread, models[0], self._log).call(lambda: look(request, models[0]))

    def _media(self, model: "LoadedModel", seen: "LookedAt | None") -> "VisionPrompt | None":
        if seen is None:
            return None
        from mlxk.adapters.mlx.vision.prefill import VisionPrompt

        return VisionPrompt(model.vision, model.network, seen)

    def _cancel(self, job: "Job") -> None:
        # Closed means ended: every answer got its last event then.
        with contextlib.suppress(ExecutionError):
            self._thread.post(lambda engine: engine.cancel(job))

    def _build(self) -> "Engine":
        from mlxk.adapters.mlx.engine.engine import Engine

        return Engine(self._log, self._clock, self._options)


def _loader(library: Library) -> "Loader":
    """Return the function that loads the models of a library."""
    if library is Library.MLX_VLM:
        from mlxk.adapters.mlx.vision.loader import load_vision_model

        return load_vision_model
    from mlxk.adapters.mlx.loading.text_model import load_model

    return load_model
