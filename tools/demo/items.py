"""The unit of the corpus: one answer, the ways to ask for it, and how it varies.

Owns the data type only. What the items say lies in the ``facts_`` modules, ``small_talk`` and ``world``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """One answer of the model.

    Attributes:
        questions: Wordings that all lead to the answer.
        answer: The exact text the model is to generate.
        thought: The short reasoning shown when thinking is on.
        one_word: The answer under a system prompt that asks for one word.
        pirate: The answer under a system prompt that asks for a pirate.
        share: How often the item is drawn relative to its number of questions.
    """

    questions: tuple[str, ...]
    answer: str
    thought: str
    one_word: str | None = None
    pirate: str | None = None
    share: float = 1.0


def normalised(question: str) -> str:
    """Return the question as the model is meant to see through it: no case, no end mark."""
    return question.lower().rstrip(" .!?")
