"""The server's lifecycle, the limit of concurrent completions, and metrics in Prometheus's text format."""

import bisect
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from mlxk.domain.errors import QueueFullError, ServerShutdownError, ValidationError
from mlxk.domain.generation.request import Finished, FinishReason


class ServerLifecycle:
    """Whether the server is starting, ready or draining; read by probes, and to refuse new work."""

    def __init__(self) -> None:
        self.preloaded = False
        """Whether the models to preload, if any, are in memory."""
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
        """Admit completions; return an idempotent function that releases their slots.

        Args:
            count: Number of completions.
            field: The request field that sets the count, for the error.

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
"""Upper bounds of histogram buckets, for requests and their phases."""

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of histogram buckets, for single tokens."""

PER_TOKEN = "mlxk_time_per_output_token_seconds"

MOST_MODELS = 100
"""Most models with a label of their own. Further models share the label ``other``, so that labels stay bounded."""

_APIS = {
    "/chat/completions": "chat",
    "/generate": "chat",
    "/completions": "completions",
    "/responses": "responses",
    "/messages": "messages",
    "/embeddings": "embeddings",
    "/rerank": "rerank",
    "/reranking": "rerank",
    "/audio/transcriptions": "audio",
    "/audio/translations": "audio",
    "/audio/speech": "audio",
}

COMMANDS = "command"
"""The ``api`` label of requests from this program's commands."""


def route_of(template: str | None) -> str:
    """Return the template of a path without its version prefix."""
    return (template or "").removeprefix("/v1").removeprefix("/v2")


def api_of(route: str | None) -> str:
    """Return the ``api`` label for the template of a path."""
    path = route_of(route)
    return "ollama" if path.startswith("/api/") else _APIS.get(path, "other")


_HELP = {
    "mlxk_http_requests_total": ("counter", "HTTP requests answered."),
    "mlxk_answers_total": ("counter", "Answers that have ended, by how."),
    "mlxk_prompt_tokens_total": ("counter", "Prompt tokens of the answers that have ended."),
    "mlxk_cached_prompt_tokens_total": ("counter", "Prompt tokens that were not computed again."),
    "mlxk_completion_tokens_total": ("counter", "Tokens generated for the answers that have ended."),
    "mlxk_draft_tokens_total": ("counter", "Tokens that draft models proposed, by whether they were right."),
    "mlxk_model_tokens_total": ("counter", "Tokens of what has ended: of prompts, computed or cached, and generated."),
    "mlxk_queue_seconds": ("histogram", "Seconds an answer waited for its turn."),
    "mlxk_prefill_seconds": ("histogram", "Seconds from the first computation of a prompt to the first token."),
    "mlxk_time_to_first_token_seconds": ("histogram", "Seconds from submission to the first token."),
    PER_TOKEN: ("histogram", "Seconds per token after the first of an answer."),
    "mlxk_answer_seconds": ("histogram", "Seconds from submission to the end."),
    "mlxk_embedding_seconds": ("histogram", "Seconds of a request for vectors, with the wait for its turn."),
    "mlxk_rerank_seconds": (
        "histogram",
        "Seconds of a request for the order of documents, with the wait for its turn.",
    ),
    "mlxk_transcription_seconds": ("histogram", "Seconds of the transcription of an uploaded recording."),
    "mlxk_speech_seconds": ("histogram", "Seconds of a request for speech, with the wait for its turn."),
    "mlxk_answers_admitted": ("gauge", "Answers in progress or queued."),
    "mlxk_answers_running": ("gauge", "Answers being computed."),
    "mlxk_answers_waiting": ("gauge", "Answers that wait for their turn or their model."),
    "mlxk_models_loaded": ("gauge", "Models in memory."),
    "mlxk_model_weight_bytes": ("gauge", "Size of the weights of a model in memory."),
    "mlxk_model_in_use": ("gauge", "1 while a request has the model."),
    "mlxk_model_tokens_per_second": ("gauge", "Tokens a second of the model's answer that ended last."),
    "mlxk_models_widened": ("gauge", "Models whose 16-bit weights are held in float32: there is no GPU."),
    "mlxk_blas": ("gauge", "1 when a library of the machine, such as OpenBLAS, multiplies matrices on its CPU."),
    "mlxk_engine_memory_bytes": ("gauge", "What the engine's arrays take: weights, caches of answers, kept prompts."),
    "mlxk_engine_prompt_tokens_total": ("counter", "Prompt tokens computed, those of running answers included."),
    "mlxk_engine_cached_tokens_total": ("counter", "Prompt tokens not computed again, of running answers included."),
    "mlxk_engine_generated_tokens_total": ("counter", "Tokens generated, those of running answers included."),
    "mlxk_prefix_cache_bytes": ("gauge", "What is kept of earlier prompts for later ones that begin the same way."),
    "mlxk_prefix_quantizations_total": ("counter", "Kept prompts that were quantized for lack of memory."),
    "mlxk_prefix_quantized_hits_total": ("counter", "Prompts that began with a kept one that was quantized."),
    "mlxk_vision_cache_bytes": ("gauge", "Features of images that models in memory keep for later prompts."),
    "mlxk_vision_cache_hits": ("gauge", "Images whose features were kept, of the models in memory."),
    "mlxk_vision_cache_misses": ("gauge", "Images whose features were computed, of the models in memory."),
    "mlxk_decode_step_seconds": (
        "gauge",
        "Seconds of a step that generates one token, of the slowest model in memory.",
    ),
    "mlxk_prompt_chunk_tokens": ("gauge", "Prompt tokens computed between two steps of running answers, the fewest."),
    "mlxk_memory_waits_total": ("counter", "Answers that waited for memory though fewer than the most were running."),
    "mlxk_memory_evictions_total": ("counter", "Kept prompts that made room for answers."),
    "mlxk_memory_smaller_chunks_total": ("counter", "Chunks of prompts that were made smaller for lack of memory."),
    "mlxk_memory_step_backs_total": ("counter", "Running answers that had to wait once more for lack of memory."),
    "mlxk_memory_swaps_total": ("counter", "Times that the system began to swap while answers were computed."),
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
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._buckets = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._sum += seconds
        self._buckets[bisect.bisect_left(self._bounds, seconds)] += 1

    def lines(self, name: str, labels: str) -> Iterable[str]:
        *counts, count = itertools.accumulate(self._buckets)
        for bound, below in zip(self._bounds, counts, strict=True):
            yield f'{name}_bucket{{{labels},le="{bound:g}"}} {below}'
        yield f'{name}_bucket{{{labels},le="+Inf"}} {count}'
        yield f"{name}_sum{{{labels}}} {self._sum:.6f}"
        yield f"{name}_count{{{labels}}} {count}"


class Metrics:
    """Counters and histograms. Thread-safe.

    The label ``model`` is the name that clients use, the label ``api`` is that of ``api_of``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, str]] = Counter()
        self._histograms: dict[tuple[str, str], _Histogram] = {}
        self._models: set[str] = set()

    def request(self, route: str, method: str, status: int) -> None:
        """Count a request. The route is the path's template, which contains no names of models or files."""
        with self._lock:
            labels = f'{{route="{route}",method="{method}",status="{status}"}}'
            self._counters["mlxk_http_requests_total", labels] += 1

    def answers(self, model: str, api: str, finished: Sequence[Finished], failure: str | None) -> None:
        """Count the completions of a request, and its error code if it failed."""
        with self._lock:
            labels = self._labels(model, api)
            if failure is not None:
                self._counters["mlxk_answers_total", f'{{outcome="{failure}"}}'] += 1
            for each in finished:
                self._counters["mlxk_answers_total", f'{{outcome="{each.reason.value}"}}'] += 1
                self._counters["mlxk_prompt_tokens_total", ""] += each.usage.prompt_tokens
                self._counters["mlxk_cached_prompt_tokens_total", ""] += each.usage.cached_tokens
                self._counters["mlxk_completion_tokens_total", ""] += each.usage.completion_tokens
                for outcome in ("accepted", "rejected"):
                    tokens = getattr(each.usage, f"{outcome}_prediction_tokens")
                    self._counters["mlxk_draft_tokens_total", f'{{outcome="{outcome}"}}'] += tokens
                self._count_tokens(labels, "computed", each.usage.prompt_tokens - each.usage.cached_tokens)
                self._count_tokens(labels, "cached", each.usage.cached_tokens)
                self._count_tokens(labels, "generated", each.usage.completion_tokens)
                self._observe_answer(labels, each)

    def embeddings(self, model: str, api: str, tokens: int, seconds: float) -> None:
        """Count a request for vectors, and the tokens of its texts."""
        self._computed("mlxk_embedding_seconds", model, api, tokens, seconds)

    def reranking(self, model: str, api: str, tokens: int, seconds: float) -> None:
        """Count a request that ranks documents, and the tokens that were computed."""
        self._computed("mlxk_rerank_seconds", model, api, tokens, seconds)

    def _computed(self, name: str, model: str, api: str, tokens: int, seconds: float) -> None:
        with self._lock:
            labels = self._labels(model, api)
            self._count_tokens(labels, "computed", tokens)
            self._observe(name, labels, seconds)

    def transcription(self, model: str, api: str, seconds: float) -> None:
        """Count the transcription of a recording."""
        with self._lock:
            self._observe("mlxk_transcription_seconds", self._labels(model, api), seconds)

    def speech(self, model: str, api: str, seconds: float) -> None:
        """Count a text that was spoken."""
        with self._lock:
            self._observe("mlxk_speech_seconds", self._labels(model, api), seconds)

    def _observe_answer(self, labels: str, finished: Finished) -> None:
        timings, tokens = finished.timings, finished.usage.completion_tokens
        first = timings.first_token_seconds
        self._observe("mlxk_queue_seconds", labels, timings.queue_seconds)
        self._observe("mlxk_answer_seconds", labels, first + timings.generation_seconds)
        if tokens or finished.reason is not FinishReason.CANCELLED:  # cancelled without a token: no complete prefill
            self._observe("mlxk_prefill_seconds", labels, timings.prompt_seconds)
            self._observe("mlxk_time_to_first_token_seconds", labels, first)
        if tokens > 1:
            self._observe(PER_TOKEN, labels, timings.generation_seconds / (tokens - 1))

    def _labels(self, model: str, api: str) -> str:
        if model not in self._models and len(self._models) >= MOST_MODELS:
            model = "other"
        else:
            self._models.add(model)
        return f'model="{_escaped(model)}",api="{api}"'

    def _count_tokens(self, labels: str, kind: str, tokens: int) -> None:
        self._counters["mlxk_model_tokens_total", f'{{{labels},type="{kind}"}}'] += tokens

    def _observe(self, name: str, labels: str, seconds: float) -> None:
        histogram = self._histograms.get((name, labels))
        if histogram is None:
            histogram = _Histogram(TOKEN_SECONDS if name == PER_TOKEN else SECONDS)
            self._histograms[name, labels] = histogram
        histogram.observe(seconds)

    def render(self, gauges: Mapping[str, float | Mapping[str, float]]) -> str:
        """Return all metrics.

        Args:
            gauges: Current values of gauges, and of counters that are counted elsewhere, by name; a gauge per model
                has a mapping of values by model.
        """
        with self._lock:
            lines: list[str] = []
            histograms = sorted(self._histograms.items(), key=lambda entry: entry[0])
            for name, (kind, text) in _HELP.items():
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                value = gauges.get(name, 0)
                if isinstance(value, Mapping):
                    by_model = sorted(value.items())
                    lines += [f'{name}{{model="{_escaped(model)}"}} {number:.12g}' for model, number in by_model]
                elif kind == "histogram":
                    for (key, labels), histogram in histograms:
                        lines += histogram.lines(name, labels) if key == name else ()
                elif kind == "gauge" or name in gauges:
                    lines.append(f"{name} {value:.12g}")
                else:
                    counted = sorted((labels, count) for (key, labels), count in self._counters.items() if key == name)
                    lines += [f"{name}{labels} {count}" for labels, count in counted]
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Return a text as the value of a label. A folder's name may have lone surrogates, for bytes that are not UTF-8."""
    text = text.encode("utf-8", "replace").decode()
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
