"""What quantized keys and values cost: tokens per second of 1 and of 8 streams.

    python benchmarks/kv_bits.py [ROUNDS]

A random llama of 4 layers; rounds of each kind of cache take turns. Prints medians.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["MLX_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from doubles.event_log import InMemoryEventLog
from models.tiny_models import build

from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle

SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
PROMPT = "The quick brown fox. " * 20
NEW_TOKENS = 64
KINDS = {"as they are": EngineOptions(), "8 bits": EngineOptions(kv_bits=8), "4 bits": EngineOptions(kv_bits=4)}


def speed(generator: MlxTextGenerator, handle: ModelHandle, streams: int, options: EngineOptions) -> float:
    """Return the tokens per second of answers that are computed together, their prompts included."""
    settings = GenerationSettings(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    began = time.perf_counter()
    started = [
        generator.submit(GenerationRequest(handle, f"{number} {PROMPT}", settings, engine_options=options))
        for number in range(streams)
    ]
    for stream in started:
        list(stream)
    return streams * NEW_TOKENS / (time.perf_counter() - began)


def main(rounds: int) -> None:
    """Build the model, and measure."""
    with tempfile.TemporaryDirectory() as directory:
        handle = build(Path(directory, "model"), **SHAPE)
        generator = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(prefix_cache_bytes=0))
        samples: dict[tuple[int, str], list[float]] = {}
        for _ in range(rounds + 1):
            for name, options in KINDS.items():
                for streams in (1, 8):
                    samples.setdefault((streams, name), []).append(speed(generator, handle, streams, options))
        generator.close()
    for (streams, name), found in sorted(samples.items()):
        print(f"{streams} streams, {name}: {statistics.median(found[1:]):.1f} tokens/s")  # the first warms up


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    main(parser.parse_args().rounds)
