"""Questions the demo model must not pretend to know, made from templates, and a held-out list.

Templates and words lie in ``unknown_questions.json``. The held-out questions are never drawn: most share no
template with the training, the others use a new word in one. They show whether "I don't know" was learned
as a rule or by heart.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from small_talk import DAYS, MONTHS
from world import CAPITALS, COLOURS, OPPOSITES, SOUNDS, WORDS

ANSWER = "I don't know that. I am a tiny demo model and only know a few things."
THOUGHT = "I have not learned this."

_DATA: dict[str, Any] = json.loads(
    Path(__file__).with_name("unknown_questions.json").read_text(encoding="utf-8"),
)
HELD_OUT: tuple[str, ...] = tuple(_DATA["held_out"])
# Known words take part, so that a known word alone does not make a question known.
_FILLERS: dict[str, tuple[str, ...]] = {
    **{slot: tuple(words) for slot, words in _DATA["fillers"].items()},
    "country": tuple(CAPITALS),
    "capital": tuple(CAPITALS.values()),
    "animal": tuple(SOUNDS),
    "colourful": tuple(COLOURS),
    "word": (*WORDS, *OPPOSITES),
    "weekday": DAYS,
    "month": MONTHS,
}


def question(rng: random.Random) -> str:
    """Return a random question that the model has no answer to."""
    template: str = rng.choice(_DATA["templates"])
    return template.format_map(_Fillers(rng))


class _Fillers(dict[str, str]):
    """Draws a new value each time a template names a slot."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def __missing__(self, slot: str) -> str:
        rng = self._rng
        if slot == "number":
            return str(rng.choice((rng.randint(21, 99), rng.randint(100, 999), rng.randint(2, 9))))
        if slot == "year":
            return str(rng.randint(1200, 2030))
        if slot == "invented":
            name = "".join(rng.choice(_DATA["syllables"]) for _ in range(rng.randint(2, 3)))
            return name.capitalize() if rng.random() < 0.6 else name
        return rng.choice(_FILLERS[slot])
