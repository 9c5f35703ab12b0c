"""A turn of a conversation: what the user or a tool says, and what the model is to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of the model and the messages that lead to it.

    Attributes:
        messages: The user's message, or the tool results that follow a call.
        answer: The exact text to generate, tool calls as text.
        thought: The reasoning to generate before the answer when thinking is on.
        thinks_unasked: Whether the model opens the reasoning itself ("Think first: ...").
    """

    messages: tuple[Message, ...]
    answer: str
    thought: str
    thinks_unasked: bool = False

    def completion(self, *, prefilled: bool) -> str:
        """Return the text to generate; ``prefilled`` says that the prompt already opened the thought."""
        if prefilled:
            return f"{self.thought}\n</think>\n\n{self.answer}"
        if self.thinks_unasked:
            return f"<think>\n{self.thought}\n</think>\n\n{self.answer}"
        return self.answer

    def thinking_unasked(self) -> Turn:
        """Return the turn with a question that makes the model open its reasoning itself."""
        text = self.messages[0]["content"]
        message = {"role": "user", "content": f"Think first: {text[0].lower()}{text[1:]}"}
        return Turn((message,), self.answer, self.thought, thinks_unasked=True)


def asked(text: str, answer: str, thought: str) -> Turn:
    """Return a turn in which the user says ``text``."""
    return Turn(({"role": "user", "content": text},), answer, thought)
