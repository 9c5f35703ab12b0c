"""What an answer waits beside embeddings: to its first token and between two, alone and with one and four requests.

    python benchmarks/embeddings_beside.py [TEXTS]

Both models are tiny and made here. Prints one JSON object; seconds.
"""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from doubles.event_log import InMemoryEventLog
from models.tiny_embedding import build_bert
from models.tiny_models import build

from mlxk.adapters.mlx.embedding.embedder import MlxTextEmbedder
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.embedding import EmbeddingRequest
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

TOKENS = 400
REQUESTS = (1, 4)
_WINDOW = 512


def main(count: int) -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = build_bert(
            Path(folder) / "bert",
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            max_position_embeddings=_WINDOW,
        )
        config = Path(encoder.directory) / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": _WINDOW}))
        writer = build(Path(folder) / "llama")
        generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
        embedder = MlxTextEmbedder(generator.leases)
        request = EmbeddingRequest(encoder, tuple("bread " * (100 + index % 20) for index in range(count)))
        embedder.embed(request)
        answered(generator, writer)
        result: dict[str, Any] = {"texts": count, "alone": answered(generator, writer)}
        began = time.perf_counter()
        embedder.embed(request)
        result["embedding_alone"] = round(time.perf_counter() - began, 3)
        for requests in REQUESTS:
            threads = [threading.Thread(target=embedder.embed, args=(request,)) for _ in range(requests)]
            for each in threads:
                each.start()
            time.sleep(0.5)
            result[f"beside_{requests}"] = answered(generator, writer)
            for each in threads:
                each.join()
        generator.close()
    print(json.dumps(result, indent=2))
    return 0


def answered(generator: MlxTextGenerator, model: ModelHandle) -> dict[str, float]:
    """Return what an answer waited for its first token, and at most and usually between two."""
    settings = GenerationSettings(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    times = [time.perf_counter()]
    for _ in generator.submit(GenerationRequest(model, "The quick brown fox", settings=settings)):
        times.append(time.perf_counter())
    waits = np.diff(times)
    longest, usual = waits[1:].max(), np.median(waits[1:])
    return {"first": round(waits[0], 4), "longest": round(longest, 4), "usual": round(usual, 4)}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 120))
