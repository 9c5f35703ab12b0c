"""Writes the model card, with what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import network
import samples
from phrases import PHRASES, SPEEDS, UNTRAINED, VOICES

if TYPE_CHECKING:
    from check import Score

_TEMPLATE = Path(__file__).resolve().parent / "card.md"


def write(directory: Path, outcome: network.Outcome, parameters: int, scores: list[Score]) -> None:
    """Write ``README.md`` into the model directory."""
    values = {
        "parameters": f"{parameters:,}",
        "kilobytes": f"{(directory / 'model.safetensors').stat().st_size / 1000:.0f}",
        "steps": outcome.steps,
        "recordings": f"{outcome.recordings:,}",
        "minutes": f"{outcome.seconds / 60:.0f}",
        "loss": f"{outcome.loss:.2f}",
        "clips": len(PHRASES) * len(VOICES) * len(SPEEDS),
        "voices": ", ".join(VOICES),
        "speeds": ", ".join(map(str, SPEEDS)),
        "untrained": f"{UNTRAINED[0]} at {UNTRAINED[1]}",
        "scores": "\n".join(f"| {each.title} | {each.exact} of {each.total} | {each.timed} |" for each in scores),
        "samples": "\n".join(f"| `{each.name}` | {each.text} |" for each in samples.SAMPLES),
        "phrases": "\n".join(f"- {phrase}" for phrase in PHRASES),
    }
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{{ " + name + " }}", str(value))
    (directory / "README.md").write_text(text, encoding="utf-8")
