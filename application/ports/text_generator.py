"""The port to the text generation engine."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Protocol, Self

import attrs

from mlxk.domain.generation.conversation import Adaptation
from mlxk.domain.generation.request import GenerationRequest, StreamEvent
from mlxk.domain.models.model import ModelHandle

STATE_SECONDS = 0.5
"""The usual timeout of ``TextGenerator.state``."""


class TextStream(Protocol):
    """The events of one sequence, in the order that ``domain.generation.request`` defines, up to one ``Finished``.

    One thread reads the stream; ``cancel`` may be called from any thread. Leaving the context manager cancels the
    sequence. Iterating blocks and suits one stream; to read many streams in one thread, ``subscribe`` to each and
    ``take``.
    """

    adaptations: tuple[Adaptation, ...]
    """How the conversation was adapted to the model's chat template; set from the start."""
    prompt_tokens: int
    """Tokens of the prompt; set from the start, 0 for a transcription."""

    @abstractmethod
    def __iter__(self) -> Iterator[StreamEvent]:
        """Return itself."""

    @abstractmethod
    def __next__(self) -> StreamEvent:
        """Block until the next event and return it.

        Raises:
            StopIteration: ``Finished`` was returned, or the error was raised.
            MlxkError: The sequence failed; other sequences are not affected.
        """

    @abstractmethod
    def take(self) -> tuple[StreamEvent, ...]:
        """Return the unread events, oldest first, without blocking; often empty.

        Raises:
            MlxkError: The sequence failed; raised once all events before the failure were returned.
        """

    @abstractmethod
    def subscribe(self, callback: Callable[[], None]) -> None:
        """Set the callback for new events. It is called once immediately, then whenever ``take`` would return events.

        The callback runs on the generator's thread; it must return quickly and must not raise.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the sequence; the stream then ends with ``Finished(CANCELLED)``. Idempotent, also after the end."""

    @abstractmethod
    def __enter__(self) -> Self:
        """Return itself."""

    @abstractmethod
    def __exit__(self, *exc_info: object) -> None:
        """Cancel."""


@attrs.frozen
class ResidentModel:
    """A loaded model."""

    handle: ModelHandle
    weight_bytes: int
    idle_seconds_left: float | None
    """Seconds until it is unloaded if it stays idle; None when it stays loaded."""
    in_use: bool = False
    """Whether a request is using it."""
    context_length: int | None = None
    """Tokens of its context window; None when unknown, or when it does not generate text."""
    tokens_per_second: float | None = None
    """Speed of the last completion; None before the first."""
    widened: bool = False
    """Whether its 16-bit weights are held in 32 bits."""


@attrs.frozen
class DiskPrefixes:
    """State of the prefix cache's disk tier. Counters start at zero with the process."""

    entries: int
    bytes: int
    limit_bytes: int
    hits: int = 0
    """Prompts of which a prefix was read from disk."""
    misses: int = 0
    """Prompts of which no prefix was on disk."""
    writes: int = 0
    evictions: int = 0
    refusals: int = 0
    """Prompts not written, for lack of space on disk or of memory in the write queue."""
    faults: int = 0
    """Files whose content was invalid and which were deleted."""


@attrs.frozen
class KeptPrompts:
    """State of the prefix cache, for one tenant or for all."""

    entries: int
    """Prompts kept in memory."""
    bytes: int
    limit_bytes: int
    quantized_entries: int = 0
    """Entries that were quantized for lack of memory."""
    quantized_bytes: int = 0
    disk: DiskPrefixes | None = None
    """None without a disk tier."""


@attrs.frozen
class EngineState:
    """A snapshot of the engine. Counters start at zero with the process."""

    responding: bool
    """Whether the engine's thread responded in time; if not, every other field is out of date."""
    running: int
    """Sequences being computed."""
    waiting: int
    """Queued sequences, which wait for capacity or for their model."""
    models: tuple[ModelHandle, ...]
    """Loaded models, sorted by name."""
    prompt_tokens: int = 0
    """Prompt tokens computed."""
    cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache."""
    generated_tokens: int = 0
    ended: int = 0
    """Sequences that ended, for any reason."""
    failed: int = 0
    """Sequences that ended with an error."""
    prefix_cache_bytes: int = 0
    prefix_quantizations: int = 0
    """Entries of the prefix cache that were quantized for lack of memory."""
    prefix_quantized_hits: int = 0
    """Prompts that used a quantized entry."""
    vision_cache_bytes: int = 0
    """Image features that the loaded models cache for later prompts."""
    vision_cache_hits: int = 0
    """Images whose features were cached, of the loaded models."""
    vision_cache_misses: int = 0
    """Images whose features were computed, of the loaded models."""
    active_bytes: int = 0
    """Memory of all arrays."""
    peak_bytes: int = 0
    """Peak memory of all arrays since the process began."""
    residents: tuple[ResidentModel, ...] = ()
    """The loaded models with their sizes, in the order of ``models``."""
    step_seconds: float = 0.0
    """Duration of a decoding step of one sequence, of the slowest loaded model; 0 while unknown."""
    chunk_tokens: int = 0
    """Prompt tokens computed between two decoding steps, the minimum over the loaded models; 0 while unknown."""
    disk: DiskPrefixes | None = None
    """The disk tier of the prefix cache, for all tenants; None without one."""
    fault_seconds: float | None = None
    """Seconds since the engine's loop last failed, which ended every sequence; None if it never did."""
    matrix_library: str | None = None
    """The library that multiplies matrices on the CPU; None without one."""
    memory_waits: int = 0
    """Sequences that waited for memory although fewer than the maximum were running."""
    memory_evictions: int = 0
    """Entries of the prefix cache evicted to make room for sequences."""
    memory_smaller_chunks: int = 0
    """Prefill chunks made smaller for lack of memory."""
    memory_step_backs: int = 0
    """Running sequences put back into the queue, to continue when others have ended."""
    memory_swaps: int = 0
    """Times that the system began to swap memory out during generation."""
    memory_refusals: int = 0
    """Sequences ended for lack of memory."""


class TextGenerator(Protocol):
    """Runs text models: loads them on request, keeps them in memory, and reports its state. Thread-safe."""

    @abstractmethod
    def submit(self, request: GenerationRequest) -> TextStream:
        """Queue a sequence. Settings that are None come from the model's generation_config, then from our defaults.

        The queue is unbounded: an entrypoint with many clients must limit the sequences that it submits.

        Raises:
            ValidationError: A setting is out of range.
            ContextLengthError: The prompt is longer than the model's context window.
            CapabilityError: The model does not support a requested feature, such as a reasoning budget.
            IncompatibleModelError, UntrustedModelCodeError, BackendNotInstalledError: The model cannot be loaded.
            ExecutionError: Loading failed for another reason, or the generator is closed.
            InterruptedRunError: The client has gone (``GenerationRequest.is_abandoned``).
        """

    @abstractmethod
    def load(self, request: GenerationRequest) -> None:
        """Load the model of a request and return once it is loaded; the prompt is ignored.

        Raises:
            IncompatibleModelError, UntrustedModelCodeError, BackendNotInstalledError: The model cannot be loaded.
            ExecutionError: Loading failed for another reason, or the generator is closed.
            InterruptedRunError: The client has gone (``GenerationRequest.is_abandoned``).
        """

    @abstractmethod
    def state(self, timeout_seconds: float) -> EngineState:
        """Return the state of the engine; an engine that was never used counts as responding. Never raises.

        Args:
            timeout_seconds: How long to wait for the engine's thread.
        """

    @abstractmethod
    def unload(self, model: ModelHandle | None = None, *, once_idle: bool = False) -> tuple[ModelHandle, ...]:
        """Unload idle models and return them. A model in use stays loaded.

        Args:
            model: The model to unload; None means every idle model.
            once_idle: Whether a model in use is unloaded as soon as it becomes idle.
        """

    @abstractmethod
    def kept_prompts(self, tenant: str | None = None) -> KeptPrompts:
        """Return the state of the prefix cache, for the prompts of one tenant; None means all tenants."""

    @abstractmethod
    def forget_prompts(self, tenant: str | None = None) -> None:
        """Drop a tenant's entries from the prefix cache; None means all tenants. Running sequences are not affected."""

    @abstractmethod
    def close(self) -> None:
        """Cancel every sequence and unload every model. Idempotent."""
