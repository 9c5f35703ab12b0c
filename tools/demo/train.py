"""Trains the built-in demo model from scratch and writes its directory.

Usage: ``python tools/demo/train.py [OUT] [--steps N]``

The corpus, the order of the data and the first weights depend only on the seeds below.

On a Mac nothing else is needed. On Linux MLX multiplies matrices with the BLAS it was linked to, which is
slow when that is the reference BLAS. Preload OpenBLAS, and keep large buffers in the heap, which saves
about a third of the time otherwise spent on page faults::

    export LD_PRELOAD=libopenblas.so.0 OPENBLAS_NUM_THREADS=1
    export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
    python tools/demo/train.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
from pathlib import Path

import card
import mlx.core as mx
import network
import numpy as np
import tokenizer
import tool_use
import unknown
import world
from conversations import ConversationStream
from examples import Encoder, batches
from introductions import NAMES
from mlx_lm.utils import load_tokenizer
from tokenizers import Tokenizer

SEED = 20260
VOCABULARY = 1536
BATCH_TOKENS = 2048
RATE = 3e-3
STEPS = 2700
TOKENIZER_SAMPLE = 4000
NAME_COPIES = 150
_HERE = Path(__file__).resolve().parent
DEFAULT_OUT = _HERE.parents[1] / "adapters" / "builtin" / "models" / "demo"


def main() -> None:
    """Train and write the model."""
    parser = argparse.ArgumentParser(description="Train the built-in demo model.")
    parser.add_argument("out", nargs="?", type=Path, default=DEFAULT_OUT, help="directory to write")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    _warn_about_slow_blas()
    random.seed(SEED)
    np.random.seed(SEED)
    mx.random.seed(SEED)
    words = _write_tokenizer(out)
    config = network.configuration(words.get_vocab_size(), end_of_turn=2, padding=0)
    model = network.build(config)
    encoder = Encoder(load_tokenizer(out))
    outcome = network.fit(model, batches(encoder, SEED, BATCH_TOKENS), steps=arguments.steps, rate=RATE)
    network.save(model, config, out)
    card.write(out, outcome, network.parameters(model))
    sys.stderr.write(f"saved {sum(path.stat().st_size for path in out.iterdir())} bytes in {out}\n")


def _write_tokenizer(out: Path) -> Tokenizer:
    """Train the tokenizer on a sample of conversations and save it."""
    texts = ["system\nuser\nassistant\n"] * TOKENIZER_SAMPLE
    stream = ConversationStream(SEED + 7)
    for _ in range(TOKENIZER_SAMPLE):
        conversation = stream.draw()
        texts += [json.dumps(tool) for tool in conversation.tools or []]
        for turn in conversation.turns:
            texts += [turn.answer, turn.thought]
            # The words of unknown questions would crowd out those that the model has to know.
            if turn.answer != unknown.ANSWER:
                texts += [str(message["content"]) for message in turn.messages]
    # A name that is one token is recalled and copied in one step.
    texts += [form for name in _names() for form in (f" {name}", f'"{name}', f" {name.lower()}")] * NAME_COPIES
    words = tokenizer.train(texts, VOCABULARY)
    template = (_HERE / "chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")
    tokenizer.save(words, out, template, network.CONTEXT)
    return words


def _names() -> list[str]:
    """Return the words that answers copy from questions or look up."""
    places = [*world.CAPITALS, *tool_use.CITIES]
    rest = [*NAMES, *world.WORDS, *world.OPPOSITES, *world.OPPOSITES.values(), *world.SOUNDS, *world.COLOURS]
    return sorted({*places, *rest})


def _warn_about_slow_blas() -> None:
    # The reference BLAS is several times slower.
    preloaded = os.environ.get("LD_PRELOAD", "")
    if platform.system() == "Linux" and "openblas" not in preloaded:
        sys.stderr.write("warning: OpenBLAS is not preloaded; training will be slow (see train.py)\n")


if __name__ == "__main__":
    main()
