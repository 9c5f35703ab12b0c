"""Port: confirmation by the user."""

from abc import abstractmethod
from typing import Protocol


class Confirmation(Protocol):
    """Asks the user at the terminal."""

    @abstractmethod
    def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
        """Ask a yes-or-no question.

        Args:
            facts: Lines to show before the question.
            question: The question, with its question mark.
            default: The meaning of an empty answer.

        Returns:
            The answer. None when there is no terminal; nothing is shown then.
        """
