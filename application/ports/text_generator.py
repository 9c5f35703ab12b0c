"""Port: the text generation engine."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Protocol, Self

import attrs

from mlxk.domain.generation.conversation import Adaptation
from mlxk.domain.generation.request import GenerationRequest, StreamEvent
from mlxk.domain.models.model import ModelHandle


class TextStream(Protocol):
    """The events of one sequence: ``PromptProgress`` while a long prompt is computed, ``TextDelta``s, one ``Finished``.

    One thread reads it; ``cancel`` may be called from any thread. Leaving the context manager cancels it. To read one
    stream, iterate, which blocks; to read many in one thread, set a callback on each and ``take``.
    """

    adaptations: tuple[Adaptation, ...]
    """How the conversation was fitted to the model's chat template; known from the start."""
    prompt_tokens: int
    """Tokens of the prompt; known from the start, 0 for a recording."""

    @abstractmethod
    def __iter__(self) -> Iterator[StreamEvent]:
        """Return itself."""

    @abstractmethod
    def __next__(self) -> StreamEvent:
        """Block until the next event and return it.

        Raises:
            MlxkError: The sequence failed; other sequences are not affected.
        """

    @abstractmethod
    def take(self) -> tuple[StreamEvent, ...]:
        """Return the unread events, oldest first, without blocking; often empty.

        Raises:
            MlxkError: The sequence failed; raised after the events before the failure were returned.
        """

    @abstractmethod
    def subscribe(self, callback: Callable[[], None]) -> None:
        """Set a callback for new events. It is called immediately once, then whenever ``take`` would return something.

        It runs on the generator's thread, so it must return quickly and not raise.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Stop the sequence. The stream then ends with ``Finished(CANCELLED)``. Idempotent, also after the end."""

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
    """Seconds until it is unloaded if nothing uses it; None when it stays loaded."""
    in_use: bool = False
    """Whether a request has it now."""
    context_length: int | None = None
    """Tokens of its context window; None when unknown, or when it does not generate text."""
    tokens_per_second: float | None = None
    """Speed of the completion that ended last; None before there was one."""
    widened: bool = False
    """Whether its 16-bit numbers are held in 32 bits."""


@attrs.frozen
class DiskPrefixes:
    """What is kept of prompts on disk. Counters start at zero with the process."""

    entries: int
    bytes: int
    limit_bytes: int
    hits: int = 0
    """Prompts of which a part was read from disk."""
    misses: int = 0
    """Prompts of which nothing was on disk."""
    writes: int = 0
    evictions: int = 0
    refusals: int = 0
    """Prompts that were not written, for lack of space on disk, or of memory while they wait for it."""
    faults: int = 0
    """Files that did not hold what they should, and were deleted."""


@attrs.frozen
class KeptPrompts:
    """What is kept of prompts, of one tenant or of all."""

    entries: int
    """In memory."""
    bytes: int
    limit_bytes: int
    quantized_entries: int = 0
    """Those of them that were quantized for lack of memory."""
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
    """Sequences in the queue, for capacity or for their model."""
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
    """Kept prompts that were quantized for lack of memory."""
    prefix_quantized_hits: int = 0
    """Prompts that began with one of these."""
    vision_cache_bytes: int = 0
    """Features of images that loaded models keep for later prompts."""
    vision_cache_hits: int = 0
    """Images whose features were kept, of the loaded models."""
    vision_cache_misses: int = 0
    """Images whose features were computed, of the loaded models."""
    active_bytes: int = 0
    """Memory of all arrays."""
    peak_bytes: int = 0
    """Most memory of all arrays since the process began."""
    residents: tuple[ResidentModel, ...] = ()
    """The loaded models with their sizes, in the order of ``models``."""
    step_seconds: float = 0.0
    """What a decoding step of one sequence takes, of the slowest loaded model; 0 while unknown."""
    chunk_tokens: int = 0
    """Tokens of a prompt computed between two decoding steps, the fewest of any loaded model; 0 while unknown."""
    disk: DiskPrefixes | None = None
    """What is kept on disk for all tenants; None without a disk tier."""
    fault_seconds: float | None = None
    """Seconds since the engine's loop last failed, which ended every sequence; None if it never did."""
    matrix_library: str | None = None
    """The library of the machine that multiplies matrices on its CPU; None without one."""
    memory_waits: int = 0
    """Sequences that waited for memory though fewer than the most were running."""
    memory_evictions: int = 0
    """Kept prompts that made room for sequences."""
    memory_smaller_chunks: int = 0
    """Chunks of prompts that were made smaller for lack of memory."""
    memory_step_backs: int = 0
    """Running completions that had to wait once more, to be continued when others have ended."""
    memory_swaps: int = 0
    """Times that the system began to move memory to swap while anything was generated."""
    memory_refusals: int = 0
    """Sequences that were ended for lack of memory."""


class TextGenerator(Protocol):
    """Runs text models: loads them on request, keeps them in memory, and reports its state. Thread-safe."""

    @abstractmethod
    def submit(self, request: GenerationRequest) -> TextStream:
        """Queue a sequence. Settings that are None come from the model's generation_config, then from our defaults.

        The queue is unlimited: an entrypoint with many clients limits how many sequences it admits.

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
        """Load the model of a request, whose prompt is not used, and return once it is loaded.

        Raises:
            IncompatibleModelError, UntrustedModelCodeError, BackendNotInstalledError: The model cannot be loaded.
            ExecutionError: Loading failed for another reason, or the generator is closed.
            InterruptedRunError: The client has gone (``GenerationRequest.is_abandoned``).
        """

    @abstractmethod
    def state(self, timeout_seconds: float) -> EngineState:
        """Return the state of the engine; one that was never used is responding.

        Args:
            timeout_seconds: How long to wait for the engine's thread.
        """

    @abstractmethod
    def unload(self, model: ModelHandle | None = None, *, once_idle: bool = False) -> tuple[ModelHandle, ...]:
        """Unload idle models and return them. A model in use stays loaded.

        Args:
            model: The model to unload; None means every idle one.
            once_idle: Whether a model in use is unloaded when its use has ended.
        """

    @abstractmethod
    def kept_prompts(self, tenant: str | None = None) -> KeptPrompts:
        """Return what is kept of a tenant's prompts for later ones that begin the same way; None: of all."""

    @abstractmethod
    def forget_prompts(self, tenant: str | None = None) -> None:
        """Drop what is kept of a tenant's prompts; None: of all. What is being computed goes on."""

    @abstractmethod
    def close(self) -> None:
        """Cancel every sequence and unload every model. Idempotent."""
