"""What quantized keys and values cost and gain: bytes of a token, how far off its logits are, and speed.

    python benchmarks/kv_bits.py [ROUNDS]

Two random llamas, one of 25 million parameters. Bytes are those of a full cache; of TurboQuant the last layer counts,
which is not quantized. Logits are those of 64 tokens after 448 that are quantized in seven chunks, held against those
of plain keys and values: the length of the difference, relative to theirs. Speeds are tokens per second of processor
time, of 1 and of 8 streams after a kept prompt of 482 tokens; rounds of each kind of cache take turns. Prints medians.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["MLX_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import mlx.core as mx
from doubles.event_log import InMemoryEventLog
from models.answers import loaded
from models.tiny_models import build

from mlxk.adapters.mlx.engine.prefill import make_cache, quantize_cache
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.kv_cache import TURBOQUANT_BITS
from mlxk.domain.models.model import ModelHandle

TINY = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
LARGER = {**TINY, "hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536}
LARGER |= {"num_attention_heads": 8, "num_key_value_heads": 4}
CONTEXT, SCORED = 448, 64
PROMPT = "The quick brown fox. " * 80
NEW_TOKENS = 32
KINDS = {
    "as they are": EngineOptions(),
    "8 bits": EngineOptions(kv_bits=8),
    "4 bits": EngineOptions(kv_bits=4),
    **{
        f"TurboQuant, {bits} bits": EngineOptions(kv_bits=bits, kv_scheme="turboquant")
        for bits in reversed(TURBOQUANT_BITS)
    },
}


def logits_of(network: Any, options: EngineOptions) -> tuple[mx.array, float]:  # noqa: ANN401
    """Return the logits of the scored tokens, and the bytes of a token in the cache."""
    tokens = mx.random.randint(0, 200, (1, CONTEXT + SCORED), key=mx.random.key(1))
    cache = make_cache(network, options, None)
    for start in range(0, CONTEXT, SCORED):
        mx.eval(network(tokens[:, start : start + SCORED], cache=cache))
        if options.kv_bits is not None and not options.is_turboquant:
            quantize_cache(cache, options.kv_bits, None)
    logits = network(tokens[:, CONTEXT:], cache=cache).astype(mx.float32)
    mx.eval(logits)
    return logits, sum(layer.nbytes for layer in cache) / (CONTEXT + SCORED)


def speed(generator: MlxTextGenerator, handle: ModelHandle, streams: int, options: EngineOptions) -> float:
    """Return the tokens per second of processor time of answers that are computed together."""
    settings = GenerationSettings(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    request = GenerationRequest(handle, PROMPT, settings, engine_options=options)
    began = time.process_time()
    for stream in [generator.submit(request) for _ in range(streams)]:
        list(stream)
    return streams * NEW_TOKENS / (time.process_time() - began)


def measure(handle: ModelHandle, rounds: int) -> None:
    """Print the figures of one model."""
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    samples: dict[tuple[int, str], list[float]] = {}
    for _ in range(rounds + 1):
        for name, options in KINDS.items():
            for streams in (1, 8):
                samples.setdefault((streams, name), []).append(speed(generator, handle, streams, options))
    generator.close()
    network, _ = loaded(handle)
    plain, _ = logits_of(network, EngineOptions())
    for name, options in KINDS.items():
        logits, size = logits_of(network, options)
        error = (mx.linalg.norm(logits - plain) / mx.linalg.norm(plain)).item()
        # The first round computes the prompt.
        one, eight = (statistics.median(samples[streams, name][1:]) for streams in (1, 8))
        print(f"{name:22} {size:8.0f} bytes  error {error:.3f}  {one:7.1f} and {eight:7.1f} tokens/s")


def main(rounds: int) -> None:
    """Build the models, and measure."""
    with tempfile.TemporaryDirectory() as directory:
        for name, shape in (("tiny", TINY), ("25 million parameters", LARGER)):
            print(name)
            measure(build(Path(directory, name), **shape), rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    main(parser.parse_args().rounds)
