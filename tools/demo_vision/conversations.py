"""What is asked about the drawings, and the answers the model learns.

A conversation is a list of messages in the form chat templates expect, with the drawings it shows beside it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from drawings import COLOURS, SHAPES, Drawing, draw

DESCRIBE = (
    "Describe the image.",
    "Describe the image",
    "Describe this image.",
    "describe this",
    "describe",
    "Describe what you see.",
    "Describe what you see in detail",
    "Describe the picture.",
    "Describe each picture",
    "Describe images",
    "Describe the images.",
    "What is in the image?",
    "What is in this image?",
    "What's in the image?",
    "What is in the picture?",
    "What is this?",
    "What do you see?",
    "What can you see?",
    "What does the image show?",
    "What is shown here?",
    "Name the shape and its color.",
    "Please describe the image.",
    "Caption this.",
)
ASK_COLOUR = (
    "What color is it?",
    "What colour is it?",
    "Which color is it?",
    "What color is the shape?",
    "What colour is the shape?",
    "What is the color?",
)
ASK_SHAPE = ("What shape is it?", "Which shape is it?", "What is the shape?", "What form does it have?")
WATCH = (
    "Describe the video.",
    "Describe the video",
    "Describe the clip.",
    "What happens?",
    "What happens in the video?",
)
WATCH += ("What is in the video?", "What does the video show?", "What do you see in the video?", "What is shown?")
COMPARE = ("Compare these images", "Describe each image.", "What is in these images?", "List what you see.")
SYSTEM = ("You are a helpful assistant.", "Be brief.", "Answer in one sentence.", "You describe images.")
CAMERAS = ("Apple iPhone SE", "Apple iPhone 15 Pro", "Canon EOS R5", "NIKON Z 6", "Google Pixel 8", "SONY ILCE-7M4")
NO_IMAGE = "There is no image. Please show me one."
TEXT = {
    "Hello": "Hello! Show me an image.",
    "Hello!": "Hello! Show me an image.",
    "Hi": "Hello! Show me an image.",
    "Who are you?": "I am demo-vision, a tiny vision model that comes with mlxk.",
    "What are you?": "I am demo-vision, a tiny vision model that comes with mlxk.",
    "What can you do?": "I name the color and the shape in simple drawings.",
    "What is mlxk?": "mlxk is the knife for local models on Apple's MLX.",
    "Thanks": "You are welcome.",
    "Thank you!": "You are welcome.",
}
MOST_IMAGES = 5
"""In one conversation; as many as the program shows a model at once."""

LAST_NUMBER = 20
"""Pictures are numbered up to this; later chunks of a long series have high numbers."""


@dataclass
class Conversation:
    """Messages, the last one an answer, and the drawings they show, in order."""

    messages: list[dict[str, Any]]
    figures: list[Figure] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)


@dataclass(frozen=True)
class Figure:
    """One coloured shape."""

    colour: str
    shape: str

    @property
    def named(self) -> str:
        """The figure with its article."""
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.shape}"


def figure(rng: random.Random) -> Figure:
    """Return any figure."""
    return Figure(rng.choice(list(COLOURS)), rng.choice(SHAPES))


def plain(rng: random.Random) -> Conversation:
    """Return one question about one drawing."""
    shown = figure(rng)
    question, answer = _question(rng, shown)
    return Conversation([_user(rng, question, 1), _assistant(answer)], [shown], [_drawn(rng, shown)])


def elaborate(rng: random.Random) -> Conversation:
    """Return one drawing with what else a prompt may hold: facts about the photo, a system prompt, a second turn."""
    shown = figure(rng)
    question, answer = _question(rng, shown)
    facts = f"{_facts(rng, None)}\n\n" if rng.random() < 0.6 else ""
    messages = [_user(rng, facts + question, 1), _assistant(answer)]
    if rng.random() < 0.3:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM)})
    if rng.random() < 0.35:
        question, answer = _question(rng, shown)
        messages += [_user(rng, question, 0), _assistant(answer)]
    return Conversation(messages, [shown], [_drawn(rng, shown)])


def several(rng: random.Random, most: int = MOST_IMAGES) -> Conversation:
    """Return two or more drawings, each labelled with its number, to be named one after the other."""
    count = min(most, rng.choice((2, 2, 2, 3, 3, 4, 5)))
    figures = [figure(rng) for _ in range(count)]
    first = rng.choice((1, rng.randint(1, LAST_NUMBER - count + 1)))
    labels = [f"Image {number}" for number in range(first, first + count)]
    parts: list[dict[str, str]] = []
    for label in labels:
        parts += [{"type": "text", "text": f"{label}:"}, {"type": "image"}]
    question = rng.choice(COMPARE) if rng.random() < 0.4 else rng.choice(DESCRIBE)
    facts = "\n".join(_facts(rng, label) for label in labels) if rng.random() < 0.3 else ""
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": f"{facts}\n\n{question}".strip()}]}
    answer = " ".join(f"{_capital(each.named)}." for each in figures)
    return Conversation([asked, _assistant(answer)], figures, [_drawn(rng, each) for each in figures])


def clip(rng: random.Random, most: int = MOST_IMAGES) -> Conversation:
    """Return the frames of a clip, each labelled with its time, to be named one after the other."""
    count = min(most, rng.choice((1, 2, 3, 4, 4, 5)))
    figures = [figure(rng) for _ in range(count)]
    step = rng.choice((1.0, rng.uniform(0.1, 4.0)))
    parts: list[dict[str, str]] = []
    for index in range(count):
        parts += [{"type": "text", "text": f"Frame at {index * step:.1f} s:"}, {"type": "image"}]
    question = rng.choice(WATCH) if rng.random() < 0.6 else rng.choice((*DESCRIBE, *COMPARE))
    facts = f"{_facts(rng, None)}\n\n" if rng.random() < 0.15 else ""
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": facts + question}]}
    answer = " ".join(f"{_capital(each.named)}." for each in figures)
    return Conversation([asked, _assistant(answer)], figures, [_drawn(rng, each) for each in figures])


def text_only(rng: random.Random) -> Conversation:
    """Return a question without a drawing."""
    if rng.random() < 0.4:
        question, answer = rng.choice((*DESCRIBE, *ASK_COLOUR, *ASK_SHAPE)), NO_IMAGE
    else:
        question, answer = rng.choice(list(TEXT.items()))
    return Conversation([{"role": "user", "content": question}, _assistant(answer)])


def vocabulary() -> list[str]:
    """Return the texts that the tokenizer is trained on."""
    questions = [*DESCRIBE, *ASK_COLOUR, *ASK_SHAPE, *COMPARE, *SYSTEM, *TEXT, *TEXT.values(), NO_IMAGE]
    figures = [Figure(colour, shape) for colour in COLOURS for shape in SHAPES]
    answers = [answer for each in figures for answer in (_capital(each.named), f"It is {each.named}.")]
    numbered = [f"Image {number}:" for number in range(1, LAST_NUMBER + 1)] * 8
    rng = random.Random(0)
    facts = [_facts(rng, rng.choice((None, "Image 1", "Image 2"))) for _ in range(400)]
    return [*questions * 6, *answers * 4, *numbered, *facts, *["system\nuser\nassistant\n"] * 60]


def _question(rng: random.Random, shown: Figure) -> tuple[str, str]:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(DESCRIBE), f"{_capital(shown.named)}."
    if kind < 0.8:
        return rng.choice(ASK_COLOUR), f"It is {shown.colour}."
    return rng.choice(ASK_SHAPE), f"It is a {shown.shape}."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _user(rng: random.Random, text: str, images: int) -> dict[str, Any]:
    """Return a user turn with its pictures before or after the text, as programs differ in that."""
    if not images:
        return {"role": "user", "content": text}
    pictures: list[dict[str, str]] = [{"type": "image"}] * images
    words = {"type": "text", "text": text}
    content = [*pictures, words] if rng.random() < 0.7 else [words, *pictures]
    return {"role": "user", "content": content}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _drawn(rng: random.Random, shown: Figure) -> Drawing:
    return draw(rng, shown.colour, shown.shape)


def _facts(rng: random.Random, label: str | None) -> str:
    """Return a line of facts about a photo, in the form in which the program states them."""
    known = [] if label is None else [label]
    if rng.random() < 0.7:
        south, west = rng.choice("NS"), rng.choice("EW")
        known.append(f"GPS: {rng.uniform(0, 90):.4f}°{south}, {rng.uniform(0, 180):.4f}°{west}")
    if rng.random() < 0.7 or not known:
        known.append(
            f"Date: {rng.randint(1999, 2026)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
            f" {rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        )
    if rng.random() < 0.6:
        known.append(f"Camera: {rng.choice(CAMERAS)}")
    return f"[{' | '.join(known)}]"
