"""The lifecycle of the server, the limit of concurrent completions, and metrics in the text format of Prometheus."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from mlxk.domain.errors import QueueFullError, ServerShutdownError, ValidationError
from mlxk.domain.generation.request import Finished


class ServerLifecycle:
    """Starting, ready, draining: for the probes, and to refuse new work."""

    def __init__(self) -> None:
        self.preloaded = False
        """Whether the model to preload, if there is one, is in memory."""
        self.draining = False
        self.aborted = False
        """Whether work in progress is cancelled."""

    @property
    def ready(self) -> bool:
        """Whether the server takes requests without loading a model first."""
        return self.preloaded and not self.draining

    def require_open(self) -> None:
        """Refuse new work while the server drains.

        Raises:
            ServerShutdownError: The server drains.
        """
        if self.draining:
            raise ServerShutdownError("The server is shutting down.", hint="Send the request again in a moment.")


class ConcurrencyLimit:
    """Limits the completions in progress and in the queue.

    Args:
        running: Completions generated at the same time.
        waiting: Completions that may wait in the queue.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.capacity = running + waiting
        self.admitted = 0
        self._lock = threading.Lock()

    @property
    def full(self) -> bool:
        """Whether the next completion would be refused."""
        return self.admitted >= self.capacity

    def enter(self, count: int, field: str = "n") -> Callable[[], None]:
        """Admit some completions; return the function that releases their slots, which may be called twice.

        Args:
            count: Number of completions.
            field: The field of the request that sets the count.

        Raises:
            ValidationError: The count is above the limit.
            QueueFullError: Too few slots are free.
        """
        if count > self.capacity:
            raise ValidationError.in_field(
                field,
                f"asks for {count} answers; this server takes at most {self.capacity} at once",
                hint="Send several requests. There are n answers to each prompt.",
            )
        with self._lock:
            if self.admitted + count > self.capacity:
                raise QueueFullError("The server is busy: its queue is full.", hint="Try again in a moment.")
            self.admitted += count
        released = threading.Lock()

        def release() -> None:
            if released.acquire(blocking=False):
                with self._lock:
                    self.admitted -= count

        return release


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the buckets of every histogram."""

_HELP = {
    "mlxk_http_requests_total": ("counter", "HTTP requests answered."),
    "mlxk_answers_total": ("counter", "Answers that have ended, by how."),
    "mlxk_prompt_tokens_total": ("counter", "Prompt tokens of the answers that have ended."),
    "mlxk_cached_prompt_tokens_total": ("counter", "Prompt tokens that were not computed again."),
    "mlxk_completion_tokens_total": ("counter", "Tokens generated for the answers that have ended."),
    "mlxk_draft_tokens_total": ("counter", "Tokens that draft models proposed, by whether they were right."),
    "mlxk_queue_seconds": ("histogram", "Seconds an answer waited for its turn."),
    "mlxk_time_to_first_token_seconds": ("histogram", "Seconds from submission to the first token."),
    "mlxk_answer_seconds": ("histogram", "Seconds from submission to the end."),
    "mlxk_answers_admitted": ("gauge", "Answers in progress or queued."),
    "mlxk_answers_running": ("gauge", "Answers being computed."),
    "mlxk_answers_waiting": ("gauge", "Answers that wait for their turn or their model."),
    "mlxk_models_loaded": ("gauge", "Models in memory."),
    "mlxk_models_widened": ("gauge", "Models whose 16-bit weights are held in float32: there is no GPU."),
    "mlxk_blas": ("gauge", "1 when a library of the machine, such as OpenBLAS, multiplies matrices on its CPU."),
    "mlxk_engine_memory_bytes": ("gauge", "What the engine's arrays take: weights, caches of answers, kept prompts."),
    "mlxk_prefix_cache_bytes": ("gauge", "What is kept of earlier prompts for later ones that begin the same way."),
    "mlxk_decode_step_seconds": (
        "gauge",
        "Seconds of a step that generates one token, of the slowest model in memory.",
    ),
    "mlxk_prompt_chunk_tokens": ("gauge", "Prompt tokens computed between two steps of running answers, the fewest."),
    "mlxk_memory_waits_total": ("counter", "Answers that waited for memory though fewer than the most were running."),
    "mlxk_memory_evictions_total": ("counter", "Kept prompts that made room for answers."),
    "mlxk_memory_smaller_chunks_total": ("counter", "Chunks of prompts that were made smaller for lack of memory."),
    "mlxk_memory_refusals_total": ("counter", "Answers that were ended for lack of memory."),
    "mlxk_prefix_disk_entries": ("gauge", "Kept prompts on disk."),
    "mlxk_prefix_disk_bytes": ("gauge", "What they take there."),
    "mlxk_prefix_disk_limit_bytes": ("gauge", "What they may take there; 0 without a disk tier."),
    "mlxk_prefix_disk_hits_total": ("counter", "Prompts of which a part was read from disk."),
    "mlxk_prefix_disk_misses_total": ("counter", "Prompts of which nothing was on disk."),
    "mlxk_prefix_disk_writes_total": ("counter", "Kept prompts written to disk."),
    "mlxk_prefix_disk_evictions_total": ("counter", "Kept prompts deleted to make room for others."),
    "mlxk_prefix_disk_refusals_total": ("counter", "Kept prompts that were not written, for lack of space."),
    "mlxk_prefix_disk_faults_total": ("counter", "Files that did not hold what they should, and were deleted."),
    "mlxk_engine_responding": ("gauge", "1 when the engine's loop answers."),
}


class _Histogram:
    def __init__(self) -> None:
        self.buckets = [0] * len(SECONDS)
        self.count = 0
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.count += 1
        self.sum += seconds
        for index, bound in enumerate(SECONDS):
            self.buckets[index] += seconds <= bound

    def lines(self, name: str) -> Iterable[str]:
        for bound, count in zip(SECONDS, self.buckets, strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self.count}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {self.count}"


class Metrics:
    """Counters and histograms. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, str]] = Counter()
        self._histograms = {name: _Histogram() for name, (kind, _) in _HELP.items() if kind == "histogram"}

    def request(self, route: str, method: str, status: int) -> None:
        """Count a request. The route is the template, so that the metrics contain no names and paths."""
        with self._lock:
            labels = f'{{route="{route}",method="{method}",status="{status}"}}'
            self._counters["mlxk_http_requests_total", labels] += 1

    def answers(self, finished: Sequence[Finished], failure: str | None) -> None:
        """Count the completions of a request, or its error code."""
        with self._lock:
            if failure is not None:
                self._counters["mlxk_answers_total", f'{{outcome="{failure}"}}'] += 1
            for each in finished:
                timings = each.timings
                first = timings.load_seconds + timings.queue_seconds + timings.prompt_seconds
                self._counters["mlxk_answers_total", f'{{outcome="{each.reason.value}"}}'] += 1
                self._counters["mlxk_prompt_tokens_total", ""] += each.usage.prompt_tokens
                self._counters["mlxk_cached_prompt_tokens_total", ""] += each.usage.cached_tokens
                self._counters["mlxk_completion_tokens_total", ""] += each.usage.completion_tokens
                for outcome in ("accepted", "rejected"):
                    tokens = getattr(each.usage, f"{outcome}_prediction_tokens")
                    self._counters["mlxk_draft_tokens_total", f'{{outcome="{outcome}"}}'] += tokens
                self._histograms["mlxk_queue_seconds"].observe(timings.queue_seconds)
                self._histograms["mlxk_time_to_first_token_seconds"].observe(first)
                self._histograms["mlxk_answer_seconds"].observe(first + timings.generation_seconds)

    def render(self, gauges: Mapping[str, float]) -> str:
        """Return all metrics.

        Args:
            gauges: Current values of the gauges, by name, and of counters that are counted elsewhere.
        """
        with self._lock:
            lines: list[str] = []
            for name, (kind, text) in _HELP.items():
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                if kind == "histogram":
                    lines += self._histograms[name].lines(name)
                elif kind == "gauge" or name in gauges:
                    lines.append(f"{name} {gauges.get(name, 0):.12g}")
                else:
                    counted = sorted((labels, count) for (key, labels), count in self._counters.items() if key == name)
                    lines += [f"{name}{labels} {count}" for labels, count in counted]
        return "\n".join(lines) + "\n"
