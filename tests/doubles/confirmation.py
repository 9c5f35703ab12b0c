"""In-memory double of the confirmation by the user.

InMemoryConfirmation(None)                  # no terminal
InMemoryConfirmation(True)                  # confirms every question; ``asked`` has the questions
"""

from mlxk.application.ports.system import Confirmation


class InMemoryConfirmation(Confirmation):
    """Gives the same answer to every question.

    Args:
        answer: The answer; None means that there is no terminal.
    """

    def __init__(self, answer: bool | None = None) -> None:
        self._answer = answer
        self.asked: list[tuple[tuple[str, ...], str]] = []

    def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
        if self._answer is not None:
            self.asked.append((facts, question))
        return self._answer
