"""Port: asking a person for a yes."""

from abc import abstractmethod
from typing import Protocol


class Confirmation(Protocol):
    """Asks whoever sits at the terminal."""

    @abstractmethod
    def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
        """Ask a question that is answered by yes or no.

        Args:
            facts: Lines to show before it.
            question: It, with its question mark.
            default: What an empty answer means.

        Returns:
            The answer, or None when nobody is there to give one; nothing is shown then.
        """
