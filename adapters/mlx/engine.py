"""What runs on the owner thread: the models in memory and the answers in progress."""

from mlxk.adapters.mlx.engine_options import EngineOptions
from mlxk.adapters.mlx.residency import LoadRequest, Residency, Resident
from mlxk.adapters.mlx.scheduler import Job, Scheduler
from mlxk.application.ports.clock import Clock
from mlxk.application.ports.event_log import EventLog
from mlxk.domain.errors import ExecutionError


class Engine:
    """The worker of the owner thread; see ``owner_thread.Worker``."""

    def __init__(self, log: EventLog, clock: Clock, options: EngineOptions) -> None:
        self._residency = Residency(
            log, clock, options.model_budget_bytes, options.keep_alive_seconds, forget=lambda identity: None
        )
        self._scheduler = Scheduler(log, options.max_rows, self._residency.release)

    def ask(self, request: LoadRequest) -> None:
        """Have models loaded and leased."""
        self._residency.ask(request)

    def release(self, residents: tuple[Resident, ...]) -> None:
        """Give leases back that no job took over."""
        self._residency.release(residents)

    def start(self, job: Job) -> None:
        """Compute a job; its leases are given back when it ends."""
        self._scheduler.add(job)

    def cancel(self, job: Job) -> None:
        """End a job."""
        self._scheduler.cancel(job.row)

    def turn(self) -> bool:
        """Do one small piece of work; return whether there is more to do at once."""
        self._residency.turn()
        return self._scheduler.turn()

    def idle_seconds(self) -> float | None:
        """Return how long the thread may sleep."""
        return self._residency.idle_seconds()

    def fail_all(self, error: Exception) -> None:
        """End every answer with an error."""
        self._scheduler.end_all(ExecutionError(f"The engine failed ({type(error).__name__})."))

    def close(self) -> None:
        """End every answer and unload every model."""
        self._scheduler.end_all()
        self._residency.close()
