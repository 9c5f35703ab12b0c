"""Trains the built-in vision demo from scratch and writes its directory.

Usage: ``python tools/demo_vision/train.py [OUT] [--steps N N]``

The drawings, the order of the data and the first weights depend only on the seed below. On Linux preload OpenBLAS and
keep large buffers in the heap, as ``tools/demo/train.py`` says; the first two parts take about half an hour then, on
one core.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import card
import conversations
import mlx.core as mx
import network
import numpy as np
import samples
import tokenizer
from batches import Batches
from mlx_vlm.utils import load_processor

SEED = 20261
VOCABULARY = 640
RATE = 2e-3
LENGTHS = (1000, 3500)
"""Steps of learning to see, and of learning to talk about it."""

CLIPS = ((1200, 8e-4, 1.0), (1100, 5e-4, 1.0), (450, 3e-4, 0.3), (240, 2e-4, 1.0))
"""Rounds of learning to talk about frames of clips, after that: see ``network.go_on``."""

_HERE = Path(__file__).resolve().parent
DEFAULT_OUT = _HERE.parents[1] / "adapters" / "builtin" / "models" / "demo-vision"


def main() -> None:
    """Train and write the model."""
    parser = argparse.ArgumentParser(description="Train the built-in vision demo.")
    parser.add_argument("out", nargs="?", type=Path, default=DEFAULT_OUT, help="directory to write")
    parser.add_argument("--steps", nargs=2, type=int, default=LENGTHS, help="optimizer steps of the first two parts")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    random.seed(SEED)
    np.random.seed(SEED)
    mx.random.seed(SEED)
    words = tokenizer.train(conversations.vocabulary(), VOCABULARY)
    template = (_HERE / "chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")
    tokenizer.save(words, out, template, network.CONTEXT)
    config = network.configuration(words)
    network.write_configuration(config, out)
    model = network.build(config)
    mx.eval(model.parameters())
    network.save(model, out)
    batches = Batches(load_processor(out), words, SEED)
    outcome = network.fit(model, batches, tuple(arguments.steps), RATE)
    for steps, rate, kept in CLIPS:
        outcome = outcome.then(network.go_on(model, batches, steps, rate, kept))
    network.save(model, out)
    samples.write(out)
    card.write(out, outcome, network.parameters(model), words.get_vocab_size())
    sys.stderr.write(f"saved {sum(path.stat().st_size for path in out.iterdir())} bytes in {out}\n")


if __name__ == "__main__":
    main()
