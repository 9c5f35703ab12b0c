"""Port: text from a conversation, as a stream of events."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Protocol, Self

from mlxk.domain.generation.request import GenerationEvent, GenerationRequest


class TextStream(Protocol):
    """One running answer: an iterator of events that can be given up at any time.

    It yields ``TextDelta``s and then exactly one ``Finished``; afterwards it is exhausted. It is consumed by one
    thread; ``cancel`` may be called from any other. Used as a context manager, leaving the block cancels.

    A reader of one stream iterates, and waits. A reader of many listens to each and takes what there is.
    """

    @abstractmethod
    def __iter__(self) -> Iterator[GenerationEvent]:
        """Return itself."""

    @abstractmethod
    def __next__(self) -> GenerationEvent:
        """Wait for the next event.

        Raises:
            MlxkError: Whatever made this answer fail; other answers are not affected.
        """

    @abstractmethod
    def take(self) -> tuple[GenerationEvent, ...]:
        """Return the events that have come and were not read yet, oldest first, without waiting; often empty.

        Raises:
            MlxkError: As ``__next__`` does, after the events before the failure were returned.
        """

    @abstractmethod
    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called whenever there is something to take, and once at once.

        The calls come from the generator's own thread: the function must be quick and must not raise.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Ask for no more. The stream then ends with ``Finished(CANCELLED)``. May be called twice, or too late."""

    @abstractmethod
    def __enter__(self) -> Self:
        """Return itself."""

    @abstractmethod
    def __exit__(self, *exc_info: object) -> None:
        """Cancel."""


class TextGenerator(Protocol):
    """Runs text models. Loads what a request names when it is not loaded yet, and releases everything on ``close``."""

    @abstractmethod
    def submit(self, request: GenerationRequest) -> TextStream:
        """Start an answer; settings that are None are filled from the model's generation_config, then our defaults.

        Raises:
            ValidationError: A setting is out of range.
            ContextLengthError: The prompt does not fit into the model's context window.
            CapabilityError: The model cannot do what is asked, such as reason within a budget.
            QueueFullError: Too many answers wait already.
            IncompatibleModelError, UntrustedModelCodeError, BackendNotInstalledError: The model cannot be loaded.
            ExecutionError: Loading failed for a reason of its own.
        """

    @abstractmethod
    def close(self) -> None:
        """Release every model. May be called twice; a later ``submit`` is refused with ``ExecutionError``."""
