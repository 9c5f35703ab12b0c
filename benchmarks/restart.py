"""What the disk tier of the prefix cache saves after a restart, with models whose weights are random.

    python benchmarks/restart.py [ROUNDS] [TOKENS]

Each round is a chat of so many tokens in two processes, one after the other, on an empty folder: the first computes the
prompt and writes it, the second reads it. Prints medians of the milliseconds from the request to the first token, with
the model loaded and warm; what the folder takes; and whether all log probabilities of the answers are equal to the bit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["MLX_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from doubles.event_log import InMemoryEventLog
from models.tiny_models import ARCHITECTURES, build

from mlxk.adapters.mlx.memory import DiskLimits, EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import Finished, GenerationRequest, TextDelta
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle, Origin

LARGER = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
SENTENCE = "The quick brown fox jumps over the lazy dog. "
TOKENS_A_SENTENCE = 11.05
"""By the tokenizer of the tests' models."""


def chat(tokens: int) -> Conversation:
    """Return a chat of about so many tokens."""
    text = SENTENCE * int(tokens / TOKENS_A_SENTENCE)
    return Conversation((Message(Role.SYSTEM, text[: len(text) // 2]), Message(Role.USER, text[len(text) // 2 :])))


def answer(directory: str, folder: str, tokens: int) -> dict[str, Any]:
    """Return one answer of a process that has just loaded its model."""
    handle = ModelHandle(directory, directory, Origin.WORKSPACE)
    limits = EngineLimits(disk=DiskLimits(folder, 2**32))
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), limits)
    settings = GenerationSettings(temperature=0, max_tokens=8, ignore_eos=True, logprobs=20)
    hello = Conversation((Message(Role.USER, "Hello"),))
    list(engine.submit(GenerationRequest(handle, hello, settings)))
    began, first, numbers = time.perf_counter(), None, []
    for event in engine.submit(GenerationRequest(handle, chat(tokens), settings)):
        if isinstance(event, TextDelta):
            first = first or time.perf_counter() - began
            numbers += [[each.logprob for each in token.alternatives] for token in event.logprobs]
        if isinstance(event, Finished):
            usage = event.usage
    engine.close()
    return {"first": first, "prompt": usage.prompt_tokens, "cached": usage.cached_tokens, "numbers": numbers}


def in_process(directory: str, folder: str, tokens: int) -> dict[str, Any]:
    """Return the answer of a process of its own."""
    command = [sys.executable, __file__, "--answer", directory, folder, str(tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(name: str, directory: str, rounds: int, tokens: int) -> None:
    """Print a row of the table."""
    pairs, sizes = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            pairs.append([in_process(directory, folder, tokens) for _ in range(2)])
            sizes.append(sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")))
    cold, warm = (statistics.median(each[index]["first"] for each in pairs) * 1000 for index in range(2))
    equal = all(first["numbers"] == second["numbers"] for first, second in pairs)
    last = pairs[-1][1]
    print(
        f"{name}: cold {cold:.0f} ms, after a restart {warm:.0f} ms ({last['cached']} of {last['prompt']} tokens from"
        f" disk), {statistics.median(sizes) / 2**20:.1f} MiB, log probabilities {'equal' if equal else 'DIFFERENT'}",
        flush=True,
    )


def main() -> None:
    """Measure every kind of model."""
    if sys.argv[1:2] == ["--answer"]:
        directory, folder, tokens = sys.argv[2:]
        print(json.dumps(answer(directory, folder, int(tokens))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    parser.add_argument("tokens", nargs="?", type=int, default=2000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        for name in ARCHITECTURES:
            handle = build(Path(home, name), name, max_position_embeddings=2 * asked.tokens)
            measure(name, handle.directory, asked.rounds, asked.tokens)
        handle = build(Path(home, "larger"), "llama", max_position_embeddings=2 * asked.tokens, **LARGER)
        measure("llama, 25 million parameters", handle.directory, asked.rounds, asked.tokens)


if __name__ == "__main__":
    main()
