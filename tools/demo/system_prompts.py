"""The system prompts the demo model has seen, and what each does to an answer."""

from __future__ import annotations

from items import Item

NEUTRAL = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a friendly assistant.",
    "You are an assistant.",
    "You are an AI assistant.",
    "You are helpful.",
    "Be helpful.",
    "Be brief.",
    "Be friendly and brief.",
    "Answer briefly.",
    "Answer the question.",
    "Answer in English.",
    "You are the assistant of a small company.",
    "You are Demo, a tiny model.",
    "You are a helpful assistant. Answer in a friendly way.",
    "You are a careful assistant who answers questions.",
)
PIRATE = ("You are a pirate.", "You are a pirate", "Talk like a pirate.", "You are a pirate captain.")
ONE_WORD = ("Answer in one word.", "Answer with one word.", "Reply in one word.", "Use only one word.")


def answer_under(system: str | None, item: Item) -> str:
    """Return the answer of an item under a system prompt."""
    if system in PIRATE and item.pirate:
        return item.pirate
    if system in ONE_WORD and item.one_word:
        return item.one_word
    return item.answer
