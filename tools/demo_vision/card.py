"""Writes the model card, with the numbers that the training and an examination measured."""

from __future__ import annotations

from pathlib import Path

import check
import network

_TEMPLATE = Path(__file__).resolve().parent / "card.md"


def write(directory: Path, outcome: network.Outcome, parameters: int, vocabulary: int) -> None:
    """Examine the model in a directory and write its ``README.md``."""
    marks = check.examine(directory)
    values = {
        "parameters": f"{parameters:,}",
        "context": network.CONTEXT,
        "vocabulary": vocabulary,
        "steps": f"{outcome.steps:,}",
        "images": f"{outcome.images:,}",
        "minutes": f"{outcome.seconds / 60:.0f}",
        "loss": f"{outcome.loss:.3f}",
        "marks": "\n".join(f"| {mark.title} | {mark.right} of {mark.asked} |" for mark in marks),
    }
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{{ " + name + " }}", str(value))
    (directory / "README.md").write_text(text, encoding="utf-8")
