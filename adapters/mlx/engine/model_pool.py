"""The model pool: loaded models within a memory budget.

The least recently used idle model is unloaded first. A model with leases is never unloaded: a request for another model
that does not fit waits until sequences have ended. Requests are served first in, first out, so that a request that
waits for memory is not overtaken indefinitely.
"""

import contextlib
import math
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.adapter_files import read_adapter
from mlxk.adapters.mlx.library_imports import contained, failed
from mlxk.adapters.mlx.loading.adapted import adapted
from mlxk.adapters.mlx.loading.load_errors import unreadable_files
from mlxk.adapters.mlx.loading.model_files import identity_of, weight_bytes
from mlxk.adapters.mlx.loading.text_model import PooledModel, load_model
from mlxk.adapters.mlx.memory import EngineLimits, return_freed_memory
from mlxk.application.ports.system import Clock, EventLog
from mlxk.domain.errors import ExecutionError, InterruptedRunError, MlxkError
from mlxk.domain.generation.request import nobody_left
from mlxk.domain.models.footprint import MemoryVerdict, WeightForm
from mlxk.domain.models.model import ModelHandle

_POLL_SECONDS = 0.2
"""Interval of checking whether the client has gone."""

Hold = Callable[[ModelHandle], AbstractContextManager[None]] | None
"""Returns a context that marks a model's files as in use; None marks nothing."""

Loader = Callable[[ModelHandle, WeightForm], Any]
"""Loads a model with its weights in a form, on the owner thread; the result has handle, name and weight_bytes."""

Judge = Callable[[ModelHandle], MemoryVerdict] | None
"""Returns the size of a model's weights and the form to load them in; None loads all weights as they are stored."""


@attrs.frozen
class WantedModel:
    """A model to load."""

    handle: ModelHandle
    adapter: str | None = None
    """Absolute directory of a LoRA adapter to apply."""
    load: Loader = load_model
    """Its loader; models of other loaders than ``load_model`` are used through a ``ModelLease`` only."""
    keep_alive_seconds: float | None = None
    """Idle time after which it is unloaded; infinite for never, None to leave the current value."""

    @property
    def identity(self) -> str:
        """The key of the model in the pool: its files with their state, and its loader.

        Raises:
            OSError: Its files cannot be read.
            ValidationError: The adapter does not exist.
        """
        identity = identity_of(self.handle, self.adapter)
        return identity if self.load is load_model else f"{identity}|{self.load.__module__}"

    @property
    def plain(self) -> "WantedModel | None":
        """The base model, without the adapter; None where there is no adapter."""
        return None if self.adapter is None else WantedModel(self.handle, load=self.load)


class LoadRequest:
    """A request to load and lease some models together; the requesting thread blocks in ``wait``.

    A requester that did not return from ``wait`` withdraws the request: leased models may have arrived meanwhile.
    """

    def __init__(self, wanted: tuple[WantedModel, ...]) -> None:
        self.wanted = wanted
        self.abandoned = False
        """Whether nobody waits any more, so that its models need not be loaded."""
        self.leased: tuple[PooledModel, ...] = ()
        """The delivered models; written on the owner thread only."""
        self.reply: queue.SimpleQueue[tuple[PooledModel, ...] | MlxkError] = queue.SimpleQueue()

    def unreadable(self) -> WantedModel:
        """Return the first model whose files cannot be read."""
        for each in self.wanted:
            try:
                each.identity  # noqa: B018 - reads the files
            except OSError:
                return each
        return self.wanted[0]

    def wait(self, is_abandoned: Callable[[], bool] = nobody_left) -> tuple[PooledModel, ...]:
        """Wait for the models and return them, leased.

        Args:
            is_abandoned: Whether the client has gone.

        Raises:
            InterruptedRunError: The client has gone.
            MlxkError: They cannot be loaded.
        """
        outcome: tuple[PooledModel, ...] | MlxkError | None = None
        while outcome is None:
            with contextlib.suppress(queue.Empty):
                outcome = self.reply.get(timeout=_POLL_SECONDS)
            if outcome is None and is_abandoned():
                raise InterruptedRunError("interrupted")
        if isinstance(outcome, MlxkError):
            raise outcome
        return outcome


class ModelPool:
    """Loads, keeps and unloads models; used on the owner thread only, except for ``lease_now``.

    Args:
        log: Receives loads, unloads and failures.
        clock: Measures idle time.
        limits: Has the limit of all weights together and the default idle time after which a model is unloaded.
        on_unload: Called with the identity of an unloaded model.
        hold: Its context is entered when a model is loaded, and left when it is unloaded.
        judge: Decides the form of a model's weights where MLX computes on the CPU.
    """

    def __init__(
        self,
        log: EventLog,
        clock: Clock,
        limits: EngineLimits,
        on_unload: Callable[[str], None],
        hold: Hold = None,
        judge: Judge = None,
    ) -> None:
        self._judge = judge
        self._log = log
        self._clock = clock
        self._budget = limits.model_budget_bytes
        self._limits = limits
        self._on_unload = on_unload
        self._hold = hold
        self._requests: deque[LoadRequest] = deque()
        self._models: dict[str, PooledModel] = {}
        self._lock = threading.Lock()
        """Held while leases are checked or change."""

    @property
    def models(self) -> tuple[PooledModel, ...]:
        """The loaded models, in no particular order."""
        return tuple(self._models.values())

    def add(self, request: LoadRequest) -> None:
        """Queue a request; a later ``step`` serves it."""
        self._requests.append(request)

    def withdraw(self, request: LoadRequest) -> None:
        """Return the leases of a request that was abandoned."""
        models, request.leased = request.leased, ()
        self.release(models)

    def lease_now(self, wanted: tuple[WantedModel, ...]) -> tuple[PooledModel, ...] | None:
        """Lease models that are loaded already, from any thread, without waiting for the owner thread.

        Returns:
            None when one is not loaded, its files have changed, or earlier requests wait.

        Raises:
            ValidationError: The adapter does not exist.
        """
        try:
            identities = [each.identity for each in wanted]
        except OSError:
            return None
        with self._lock:
            models = tuple(filter(None, map(self._models.get, identities)))
            if self._requests or len(models) < len(wanted):
                return None
            self._lease(models, wanted)
            return models

    def release(self, models: tuple[PooledModel, ...]) -> None:
        """Return leases."""
        with self._lock:
            for model in models:
                model.leases -= 1
                model.used_at = self._clock.monotonic()

    def unload(self, handle: ModelHandle | None, *, once_idle: bool = False) -> tuple[ModelHandle, ...]:
        """Unload idle models and return them.

        Args:
            handle: The model to unload; None for all.
            once_idle: Whether models in use are unloaded when they become idle.
        """
        unloaded = []
        with self._lock:
            selected = [each for each in self._models.items() if handle in (None, each[1].model.handle)]
            # Models with adapters first, since they keep their base model in use.
            for identity, pooled in sorted(selected, key=lambda each: each[1].adapts is None):
                if self._is_idle(pooled):
                    unloaded.append(pooled.model.handle)
                    self._unload(identity)
                elif once_idle:
                    pooled.keep_alive_seconds = 0.0
        return tuple(dict.fromkeys(unloaded))

    def _is_idle(self, pooled: PooledModel) -> bool:
        """Whether a model has no lease, and no loaded model with an adapter shares its arrays."""
        return pooled.leases == 0 and not any(each.adapts is pooled for each in self._models.values())

    @property
    def waiting(self) -> int:
        """Queued requests."""
        return len(self._requests)

    def step(self) -> None:
        """Serve as many requests as possible, in order, and unload models whose keep-alive time is over."""
        while self._requests and self._serve(self._requests[0]):
            self._requests.popleft()
        with self._lock:
            for identity, pooled in list(self._models.items()):
                if self._is_idle(pooled) and self.seconds_left(pooled) == 0:
                    self._unload(identity)

    def idle_seconds(self) -> float | None:
        """Return the time until the next idle model is unloaded, seconds; None without one."""
        left = [self.seconds_left(pooled) for pooled in self._models.values() if self._is_idle(pooled)]
        return min((seconds for seconds in left if seconds is not None), default=None)

    def seconds_left(self, pooled: PooledModel) -> float | None:
        """Return the time until a model is unloaded if nothing uses it, seconds; None when it stays loaded."""
        if pooled.keep_alive_seconds is None:
            return None
        return max(0.0, pooled.used_at + pooled.keep_alive_seconds - self._clock.monotonic())

    def close(self) -> None:
        """Unload everything and fail the queued requests."""
        for request in self._requests:
            request.reply.put(ExecutionError("The engine was closed."))
        self._requests.clear()
        for identity in list(self._models):
            self._unload(identity)

    def _serve(self, request: LoadRequest) -> bool:
        """Serve a request, or return False when it has to wait for memory."""
        if request.abandoned:
            return True
        try:
            wanted = [(each.identity, each) for each in request.wanted]
            bases = [(each.plain.identity, each.plain) for _, each in wanted if each.plain is not None]
            missing = {identity: each for identity, each in [*wanted, *bases] if identity not in self._models}
            needed = sum(map(_bytes_on_disk, missing.values()))
            if missing and not self._make_room(needed, [identity for identity, _ in [*wanted, *bases]]):
                return False
            models = tuple(self._loaded(each, identity) for identity, each in wanted)
        except OSError as error:
            request.reply.put(unreadable_files(error, request.unreadable().handle))
            return True
        except Exception as fault:  # noqa: BLE001 - boundary: who waits must get an outcome in any case
            refusal = fault if isinstance(fault, MlxkError) else failed(fault, "Loading a model")
            self._log.info("a model was not loaded", error=type(fault).__name__, reason=_reason(refusal, request))
            request.reply.put(_without_arrays(refusal))
            return True
        with self._lock:
            self._lease(models, request.wanted)
            request.leased = models
        request.reply.put(models)
        return True

    def _lease(self, models: tuple[PooledModel, ...], wanted: tuple[WantedModel, ...]) -> None:
        for model, each in zip(models, wanted, strict=True):
            model.leases += 1
            model.used_at = self._clock.monotonic()
            if each.keep_alive_seconds is not None:
                model.keep_alive_seconds = None if each.keep_alive_seconds == math.inf else each.keep_alive_seconds

    def _loaded(self, wanted: WantedModel, identity: str) -> PooledModel:
        """Return a model of the pool, after loading it, and its base model, where it is missing."""
        if identity in self._models:
            return self._models[identity]
        plain = None if wanted.plain is None else self._loaded(wanted.plain, wanted.plain.identity)
        began = self._clock.monotonic()
        with contextlib.ExitStack() as stack:
            if self._hold is not None:
                stack.enter_context(self._hold(wanted.handle))
            form = self._form(wanted.handle) if plain is None else plain.form
            model = _load(wanted, form, plain)
            hold = stack.pop_all()
        seconds = self._clock.monotonic() - began
        facts = {"bytes": model.weight_bytes, "weights": form.value}
        if wanted.adapter is not None:
            facts["adapter"] = os.path.basename(wanted.adapter)
        self._log.info("loaded a model", model=model.name, **facts, seconds=round(seconds, 3))
        # Speech and embedding models lack these attributes.
        vision, ignored = getattr(model, "vision", None), getattr(model, "ignored_settings", ())
        if vision is not None:
            vision.keep_features(self._limits.vision_cache_bytes)
        if ignored:
            self._log.warning("generation_config.json has invalid settings", model=model.name, ignored=ignored)
        keep, now = self._limits.keep_alive_seconds, self._clock.monotonic()
        self._models[identity] = PooledModel(model, now, hold, keep_alive_seconds=keep, form=form, adapts=plain)
        return self._models[identity]

    def _form(self, handle: ModelHandle) -> WeightForm:
        """Decide the form of a model's weights; no loaded model is unloaded for a wider form."""
        if self._judge is None or mx.default_device() != mx.Device(mx.cpu):
            return WeightForm.STORED
        verdict = self._judge(handle)
        free = math.inf if self._budget is None else self._budget - self._total()
        form = verdict.form if verdict.weights <= free else WeightForm.STORED
        if verdict.form is WeightForm.PLAIN and not form.widened and 2 * weight_bytes(handle.directory) <= free:
            form = WeightForm.WIDE  # takes at most twice the size of the files
        if verdict.widening_bytes and not form.widened:
            self._log.warning(
                "the weights stay in 16 bits, in which this CPU computes many times slower: no memory for 32",
                model=handle.name,
                more_bytes=verdict.widening_bytes,
            )
        return form

    def _make_room(self, needed: int, kept: list[str]) -> bool:
        """Unload idle models, but not ``kept``, until so many bytes fit; return False to wait for models in use."""
        if self._budget is None:
            return True
        with self._lock:
            while self._total() + needed > self._budget:
                others = {identity: each for identity, each in self._models.items() if identity not in kept}
                idle = [(each.used_at, identity) for identity, each in others.items() if self._is_idle(each)]
                if not idle:
                    # Without other models waiting is pointless, so it is loaded: refusing it is the caller's policy.
                    return not others
                self._unload(min(idle)[1])
        return True

    def _total(self) -> int:
        return sum(pooled.model.weight_bytes for pooled in self._models.values())

    def _unload(self, identity: str) -> None:
        pooled = self._models.pop(identity)
        pooled.held.close()
        if pooled.adapts is not None:
            # The base model was in use as long as this one.
            pooled.adapts.used_at = max(pooled.adapts.used_at, pooled.used_at)
        self._on_unload(identity)
        self._log.info("unloaded a model", model=pooled.model.name)


def _bytes_on_disk(wanted: WantedModel) -> int:
    if wanted.adapter is not None:
        return read_adapter(wanted.adapter).weight_bytes
    return weight_bytes(wanted.handle.directory)


def _load(wanted: WantedModel, form: WeightForm, plain: PooledModel | None) -> Any:  # noqa: ANN401 - by the loader
    """Load a model; any failure in a library becomes a typed error."""
    name = wanted.handle.name
    try:
        with contained(name):
            if plain is not None and wanted.adapter is not None:
                loaded = adapted(plain.model, wanted.adapter, form)
            else:
                loaded = wanted.load(wanted.handle, form)
            # Networks start with random weights, which the loaded ones replace before they are computed. Unevaluated,
            # the random state would reference every draw since the process began.
            mx.eval(mx.random.state)
            return_freed_memory()
            return loaded
    except (MlxkError, OSError):
        raise
    except Exception as error:
        raise failed(error, f"Loading '{name}'") from error


def _reason(error: MlxkError, request: LoadRequest) -> str:
    """Return the cause's message for the log, with directories replaced by the models' names."""
    reason = str(error if error.__cause__ is None else error.__cause__)
    for each in request.wanted:
        reason = reason.replace(each.handle.directory, each.handle.name)
    return reason[:500]


def _without_arrays(error: MlxkError) -> MlxkError:
    """Remove an error's traceback and causes: their frames hold arrays, which must not outlive the owner thread."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
