"""What the speech model knows: its phrases, and the voices that spoke them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

SEED = 20261
"""Of every choice: pitches, recordings, first weights."""

PHRASES = (
    "Hello world.",
    "Good morning.",
    "Goodbye.",
    "Thank you very much.",
    "Who are you?",
    "What can you do?",
    "What is mlxk?",
    "How do I list models?",
    "How do I start the server?",
    "Does it send telemetry?",
    "What is the capital of France?",
    "Tell me a story.",
    "Count to ten.",
    "One, two, three, four, five.",
    "List the models on this machine.",
    "Pull a model from the hub.",
    "Show me the model card.",
    "Run the model on my laptop.",
    "The model is healthy.",
    "The server is ready.",
    "Stop the server.",
    "Nothing leaves your machine.",
    "This is a test of the speech model.",
    "The quick brown fox jumps over the lazy dog.",
)
"""Every word of them, with the space before it, becomes one token: Whisper never decodes a space by itself."""

VOICES = ("en-us", "en-gb", "en-us+f3", "en-us+m3", "en-gb+f2", "en-gb-scotland")
"""Voices of espeak-ng."""
SPEEDS = (140, 160, 180)
"""Words a minute."""
UNTRAINED = ("en-gb+f2", 160)
"""The voice and speed that are kept out of training, to be tested with."""

_SPOKEN = {"mlxk": "M L X K"}


@dataclass(frozen=True, slots=True)
class Utterance:
    """One phrase as one voice says it."""

    phrase: int
    """Index of the phrase."""
    voice: str
    speed: int
    """Words a minute."""

    @property
    def text(self) -> str:
        """The phrase as it is written."""
        return PHRASES[self.phrase]

    @property
    def spoken(self) -> str:
        """The phrase as the synthesizer is to read it."""
        text = self.text
        for written, said in _SPOKEN.items():
            text = text.replace(written, said)
        return text

    @property
    def trained(self) -> bool:
        """Whether it takes part in training."""
        return (self.voice, self.speed) != UNTRAINED


def utterances() -> list[Utterance]:
    """Return every phrase in every voice at every speed."""
    combinations = itertools.product(range(len(PHRASES)), VOICES, SPEEDS)
    return [Utterance(phrase, voice, speed) for phrase, voice, speed in combinations]
