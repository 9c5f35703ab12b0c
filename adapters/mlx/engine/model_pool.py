"""Which models are in memory.

Several may be, within a budget in bytes; the least recently used idle one goes first. A model in use is never unloaded:
a request for another that does not fit waits until answers have ended. Requests are served in the order they came, so
that one that waits for room is not overtaken for ever.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

from mlxk.adapters.mlx.engine import malloc
from mlxk.adapters.mlx.library_imports import contained
from mlxk.adapters.mlx.loading.text_model import LoadedModel, identity_of, load_model, weight_bytes
from mlxk.application.ports.clock import Clock
from mlxk.application.ports.event_log import EventLog
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.models.model import ModelHandle

_CACHE_STEP = 256
"""Tokens by which mlx-lm's caches grow."""

Loader = Callable[[ModelHandle, str | None], Any]
"""Makes a model of a handle and perhaps an adapter, on the owner thread: with a handle, a name and its weight bytes."""


@attrs.frozen
class WantedModel:
    """A model to have in memory."""

    handle: ModelHandle
    adapter: str | None = None
    """Absolute directory of a LoRA adapter to apply."""
    load: Loader = load_model
    """How to load it. What another loader than the one for text makes is used through ``lending`` only."""

    @property
    def identity(self) -> str:
        """A text that names this model, the state of its files, and how it is loaded.

        Raises:
            OSError: Its files cannot be looked at.
            ValidationError: There is no adapter where one is wanted.
        """
        identity = identity_of(self.handle, self.adapter)
        return identity if self.load is load_model else f"{identity}|{self.load.__module__}"


@attrs.define(eq=False)
class PooledModel:
    """A model in memory and how many answers use it."""

    model: LoadedModel
    used_at: float
    leases: int = 0
    bytes_per_token: float = 0.0
    """What one token takes in a cache, as far as seen; 0 before anything was computed."""

    def learn(self, cache: list[Any], tokens: int) -> None:
        """Note what a cache of so many tokens takes; caches grow in steps, so that small ones tell little."""
        self.bytes_per_token = sum(layer.nbytes for layer in cache) / max(tokens, _CACHE_STEP)


class LoadRequest:
    """A reader's wish for some models, all at once; the reader waits in ``wait``."""

    def __init__(self, wanted: tuple[WantedModel, ...]) -> None:
        self.wanted = wanted
        self.abandoned = False
        self.reply: queue.SimpleQueue[tuple[PooledModel, ...] | MlxkError] = queue.SimpleQueue()

    def wait(self) -> tuple[PooledModel, ...]:
        """Wait for the models, leased.

        Raises:
            MlxkError: Why they cannot be had.
        """
        try:
            outcome = self.reply.get()
        except BaseException:
            self.abandoned = True
            raise
        if isinstance(outcome, MlxkError):
            raise outcome
        return outcome


class ModelPool:
    """Loads, keeps and unloads models; used on the owner thread only, but for ``lease_now``.

    Args:
        budget_bytes: What the weights may take altogether; None: no limit.
        keep_alive_seconds: An idle model is unloaded after this long; None: never.
        forget: Called with a model's identity when it goes, to drop what was computed with it.
    """

    def __init__(
        self,
        log: EventLog,
        clock: Clock,
        budget_bytes: int | None,
        keep_alive_seconds: float | None,
        forget: Callable[[str], None],
    ) -> None:
        self._log = log
        self._clock = clock
        self._budget = budget_bytes
        self._keep_alive = keep_alive_seconds
        self._forget = forget
        self._requests: deque[LoadRequest] = deque()
        self._residents: dict[str, PooledModel] = {}
        self._lock = threading.Lock()
        """Held while a resident's leases are judged or change."""

    @property
    def models(self) -> tuple[PooledModel, ...]:
        """What is in memory, in no particular order."""
        return tuple(self._residents.values())

    def ask(self, request: LoadRequest) -> None:
        """Take a request; it is answered in a later ``turn``."""
        self._requests.append(request)

    def lease_now(self, wanted: tuple[WantedModel, ...]) -> tuple[PooledModel, ...] | None:
        """Lease models that are in memory already; from any thread, without waiting for the owner thread.

        Returns:
            None when one is missing, its files have changed, or others wait for their turn.

        Raises:
            ValidationError: There is no adapter where one is wanted.
        """
        try:
            identities = [each.identity for each in wanted]
        except OSError:
            return None
        with self._lock:
            found = [self._residents.get(identity) for identity in identities]
            residents = tuple(resident for resident in found if resident is not None)
            if self._requests or len(residents) < len(wanted):
                return None
            self._lease(residents)
            return residents

    def release(self, residents: tuple[PooledModel, ...]) -> None:
        """Give leases back."""
        with self._lock:
            for resident in residents:
                resident.leases -= 1
                resident.used_at = self._clock.monotonic()

    def unload(self, handle: ModelHandle | None) -> tuple[ModelHandle, ...]:
        """Unload the idle models, or the one of this handle if it is idle; return which went."""
        with self._lock:
            gone = {
                identity: resident.model.handle
                for identity, resident in self._residents.items()
                if resident.leases == 0 and handle in (None, resident.model.handle)
            }
            for identity in gone:
                self._unload(identity)
        return tuple(gone.values())

    @property
    def waiting(self) -> int:
        """Requests that wait for their models."""
        return len(self._requests)

    def turn(self) -> None:
        """Answer as many requests as can be answered now, in order, and unload what was idle for too long."""
        while self._requests and self._serve(self._requests[0]):
            self._requests.popleft()
        if self._keep_alive is not None:
            oldest = self._clock.monotonic() - self._keep_alive
            with self._lock:
                for identity, resident in list(self._residents.items()):
                    if resident.leases == 0 and resident.used_at <= oldest:
                        self._unload(identity)

    def idle_seconds(self) -> float | None:
        """Return when the next idle model is due, seconds from now; None when none is."""
        idle = [resident.used_at for resident in self._residents.values() if resident.leases == 0]
        if self._keep_alive is None or not idle:
            return None
        return max(0.0, min(idle) + self._keep_alive - self._clock.monotonic())

    def close(self) -> None:
        """Unload everything and refuse who waits."""
        for request in self._requests:
            request.reply.put(ExecutionError("The engine was closed."))
        self._requests.clear()
        for identity in list(self._residents):
            self._unload(identity)

    def _serve(self, request: LoadRequest) -> bool:
        """Answer a request, or return False when it has to wait for room."""
        if request.abandoned:
            return True
        try:
            identities = [each.identity for each in request.wanted]
            missing = [
                each
                for each, identity in zip(request.wanted, identities, strict=True)
                if identity not in self._residents
            ]
            if missing and not self._make_room(
                sum(weight_bytes(each.handle.directory) for each in missing), identities
            ):
                return False
            residents = tuple(
                self._resident(each, identity) for each, identity in zip(request.wanted, identities, strict=True)
            )
        except OSError as error:
            request.reply.put(ExecutionError(f"The model's files cannot be read ({type(error).__name__})."))
            return True
        except MlxkError as error:
            self._log.info("a model was not loaded", error=type(error).__name__, reason=_reason(error, request))
            request.reply.put(_without_arrays(error))
            return True
        with self._lock:
            self._lease(residents)
        if request.abandoned:
            self.release(residents)
        else:
            request.reply.put(residents)
        return True

    def _lease(self, residents: tuple[PooledModel, ...]) -> None:
        for resident in residents:
            resident.leases += 1
            resident.used_at = self._clock.monotonic()

    def _resident(self, wanted: WantedModel, identity: str) -> PooledModel:
        found = self._residents.get(identity)
        if found is not None:
            return found
        began = self._clock.monotonic()
        model = _load(wanted)
        seconds = self._clock.monotonic() - began
        self._log.info("loaded a model", model=model.name, bytes=model.weight_bytes, seconds=round(seconds, 3))
        # Only models that write text have any; the others are not asked how to sample.
        ignored = getattr(model, "ignored_settings", ())
        if ignored:
            self._log.warning("generation_config.json asks for what cannot be used", model=model.name, ignored=ignored)
        resident = self._residents[identity] = PooledModel(model, self._clock.monotonic())
        return resident

    def _make_room(self, needed: int, kept: list[str]) -> bool:
        """Unload idle models until so many bytes fit; return False when models in use are in the way."""
        if self._budget is None:
            return True
        with self._lock:
            while self._total() + needed > self._budget:
                others = {identity: each for identity, each in self._residents.items() if identity not in kept}
                idle = [(each.used_at, identity) for identity, each in others.items() if each.leases == 0]
                if not idle:
                    # With nothing else in memory there is nothing to wait for; policy is the caller's.
                    return not others
                self._unload(min(idle)[1])
        return True

    def _total(self) -> int:
        return sum(resident.model.weight_bytes for resident in self._residents.values())

    def _unload(self, identity: str) -> None:
        resident = self._residents.pop(identity)
        self._forget(identity)
        self._log.info("unloaded a model", model=resident.model.name)


def _load(wanted: WantedModel) -> Any:  # noqa: ANN401 - what a loader makes is the borrower's business
    """Load a model; whatever a library does on the way, this ends in a model or a typed error."""
    name = wanted.handle.name
    try:
        with contained(name):
            loaded = wanted.load(wanted.handle, wanted.adapter)
            malloc.materialize_random_state()
            malloc.give_back()
            return loaded
    except (MlxkError, OSError):
        raise
    except Exception as error:
        raise ExecutionError(f"'{name}' could not be loaded ({type(error).__name__}).") from error


def _reason(error: MlxkError, request: LoadRequest) -> str:
    """Return what a library said about a failure, with models by their names instead of their directories."""
    reason = str(error if error.__cause__ is None else error.__cause__)
    for each in request.wanted:
        reason = reason.replace(each.handle.directory, each.handle.name)
    return reason[:500]


def _without_arrays(error: MlxkError) -> MlxkError:
    """Cut an error off from the frames it went through: they hold arrays, which must not outlive the owner thread."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
