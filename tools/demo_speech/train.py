"""Trains the built-in speech model from scratch and writes its directory.

Usage: ``python tools/demo_speech/train.py [OUT] [--short N] [--full N]``

Needs espeak-ng. What is said, in which order, and the first weights depend only on the seeds below. On a Mac nothing
else is needed; on Linux preload OpenBLAS, as ``tools/demo/train.py`` explains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import card
import mlx.core as mx
import network
import samples
import tokenizer
from check import Examination
from examples import ExampleStream
from network import DEFAULT_OUT
from phrases import SEED, utterances
from recordings import voiced

RATE = 2e-3
SHORT_STEPS = 1500
FULL_STEPS = 150


def main() -> None:
    """Train and write the model."""
    parser = argparse.ArgumentParser(description="Train the built-in speech model.")
    parser.add_argument("out", nargs="?", type=Path, default=DEFAULT_OUT, help="directory to write")
    parser.add_argument("--short", type=int, default=SHORT_STEPS, help="steps on shortened windows")
    parser.add_argument("--full", type=int, default=FULL_STEPS, help="steps on windows of 30 seconds")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    mx.random.seed(SEED)
    words = tokenizer.train()
    tokenizer.save(words, out)
    config = network.configuration(
        words.get_vocab_size(),
        end_of_text=words.token_to_id(tokenizer.END_OF_TEXT),
        start=words.token_to_id("<|startoftranscript|>"),
    )
    model = network.build(config)
    spoken = voiced(utterances(), SEED)
    known = {utterance: samples for utterance, samples in spoken.items() if utterance.trained}
    batches = ExampleStream(known, words, SEED).batches(short=arguments.short, full=arguments.full)
    outcome = network.fit(model, batches, steps=arguments.short + arguments.full, rate=RATE)
    network.save(model, config, out)
    samples.write(out, spoken)
    card.write(out, outcome, network.parameters(model), Examination(out, spoken).scores())
    sys.stderr.write(f"saved {sum(path.stat().st_size for path in out.iterdir())} bytes in {out}\n")


if __name__ == "__main__":
    main()
