"""Shows the trained model drawings it has never seen and counts the exact answers.

Usage: ``python tools/demo_vision/check.py [MODEL]``

The exit status is 1 when too few are right.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import conversations
import drawings
import mlx_vlm
from conversations import Conversation
from mlx_vlm.generate import generate

SEED = 990_001
REQUIRED = 0.9
DEFAULT_MODEL = Path(__file__).resolve().parents[2] / "adapters" / "builtin" / "models" / "demo-vision"


@dataclass(frozen=True)
class Mark:
    """The outcome of one part of the examination."""

    title: str
    right: int
    asked: int
    wrong: tuple[str, ...]


def examine(directory: Path) -> list[Mark]:
    """Return the marks of the model in a directory, greedily decoded."""
    model, processor = mlx_vlm.load(str(directory.resolve()), trust_remote_code=False)

    def answer(conversation: Conversation) -> str:
        prompt = processor.tokenizer.apply_chat_template(
            conversation.messages[:-1], tokenize=False, add_generation_prompt=True
        )
        images = [each.image for each in conversation.drawings] or None
        return str(generate(model, processor, prompt, image=images, max_tokens=80, temperature=0.0).text)

    return [
        _mark("one unseen drawing, described", 200, conversations.plain, answer),
        _mark("one unseen drawing with facts, a system prompt or a second turn", 100, conversations.elaborate, answer),
        _mark("two drawings in one prompt", 60, lambda rng: conversations.several(rng, 2), answer),
        _mark("two to five drawings in one prompt", 60, conversations.several, answer),
        _mark("one to five frames of a clip, with their times", 60, conversations.clip, answer),
        _mark("questions without a drawing", 40, conversations.text_only, answer),
        _mark("every colour and shape, 224 by 224 pixels, on white or grey", 32, _Catalogue().draw, answer),
    ]


class _Catalogue:
    """Draws every figure once."""

    def __init__(self) -> None:
        self._figures = [(colour, shape) for colour in drawings.COLOURS for shape in drawings.SHAPES]

    def draw(self, rng: random.Random) -> Conversation:
        """Return the next figure with the program's default question."""
        colour, shape = self._figures.pop()
        figure = conversations.Figure(colour, shape)
        named = figure.named
        asked: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
        answer = {"role": "assistant", "content": f"{named[0].upper()}{named[1:]}."}
        return Conversation(
            [{"role": "user", "content": asked}, answer], [figure], [drawings.draw(rng, colour, shape, (224, 224))]
        )


def _mark(
    title: str,
    count: int,
    draw: Callable[[random.Random], Conversation],
    answer: Callable[[Conversation], str],
) -> Mark:
    rng = random.Random(SEED)
    asked = [draw(rng) for _ in range(count)]
    answers = [answer(each) for each in asked]
    wanted = [str(each.messages[-1]["content"]) for each in asked]
    wrong = [f"{want!r}: {got!r}" for want, got in zip(wanted, answers, strict=True) if want != got.strip()]
    return Mark(title, count - len(wrong), count, tuple(wrong))


def report(marks: Iterable[Mark]) -> bool:
    """Print the marks with the wrong answers; return whether they suffice."""
    passed = True
    for mark in marks:
        for line in mark.wrong:
            print(f"  {line}")
        print(f"{mark.title}: {mark.right} of {mark.asked}")
        passed = passed and mark.right >= REQUIRED * mark.asked
    return passed


def main() -> int:
    """Run the examination and return the exit status."""
    parser = argparse.ArgumentParser(description="Check the answers of the built-in vision demo.")
    parser.add_argument("model", nargs="?", type=Path, default=DEFAULT_MODEL, help="directory of the model")
    return 0 if report(examine(parser.parse_args().model)) else 1


if __name__ == "__main__":
    sys.exit(main())
