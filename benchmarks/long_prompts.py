"""What long prompts cost beside attention: whether anything of ours grows faster than the prompt.

    python benchmarks/long_prompts.py [TOKENS ...]

Two tiny models with random weights: a recurrent one, which has no attention, so that all of its time should grow like
the prompt; and a llama with two layers of one head, of which a prompt computes the attention of the first. For
each length it prints

- the seconds from a request to its sequence (rendering, tokenizing, limits), in one message and in messages of about
  100 tokens;
- the seconds to the first token after that, and those of the bare network in the same chunks: the difference is ours;
- the seconds of the same request again, which the prefix cache has, and of a request that continues it.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["MLX_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import mlx.core as mx
from doubles.event_log import InMemoryEventLog
from mlx_lm.models.cache import make_prompt_cache
from models.answers import loaded
from models.tiny_models import build

from mlxk.adapters.mlx.chunk_policy import SINGLE_CHUNK_CPU
from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import Finished, GenerationRequest, PromptProgress
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

TEXT = "The quick brown fox jumps over the lazy dog. "
SETTINGS = GenerationSettings(temperature=0, max_tokens=8, ignore_eos=True)


def bare(handle: ModelHandle, tokens: int) -> float:
    """Return the seconds of the bare network for a prompt, in the chunks of a single prompt."""
    network, _ = loaded(handle)
    cache, began = make_prompt_cache(network), time.perf_counter()
    for start in range(0, tokens, SINGLE_CHUNK_CPU):
        size = min(SINGLE_CHUNK_CPU, tokens - start)
        network(mx.ones((1, size), dtype=mx.int32), cache=cache)
        mx.eval([layer.state for layer in cache])
    return time.perf_counter() - began


def asked(engine: MlxTextGenerator, handle: ModelHandle, talk: Conversation) -> tuple[float, Finished, int]:
    """Return the seconds up to the sequence, the end of its completion, and how often progress was reported."""
    began = time.perf_counter()
    with engine.submit(GenerationRequest(handle, talk, SETTINGS)) as stream:
        built, reports = time.perf_counter() - began, 0
        for event in stream:
            reports += isinstance(event, PromptProgress)
            if isinstance(event, Finished):
                return built, event, reports
    raise RuntimeError("the stream had no end")


def built_of_messages(engine: MlxTextGenerator, handle: ModelHandle, count: int) -> float:
    """Return the seconds up to the sequence of a conversation with so many messages."""
    roles = [Role.USER if index % 2 == 0 else Role.ASSISTANT for index in range(count | 1)]
    talk = Conversation(tuple(Message(role, TEXT * 8) for role in roles))
    began = time.perf_counter()
    with engine.submit(GenerationRequest(handle, talk, SETTINGS)):
        return time.perf_counter() - began


def measure(name: str, handle: ModelHandle, lengths: list[int]) -> None:
    """Print a row for each length."""
    _, tokenizer = loaded(handle)
    each = len(tokenizer.encode(TEXT * 100, add_special_tokens=False)) / 100
    for length in lengths:
        engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits())
        asked(engine, handle, Conversation.of("Hello"))
        talk = Conversation.of(TEXT * int(length / each))
        built, cold, reports = asked(engine, handle, talk)
        _, again, _ = asked(engine, handle, talk)
        more = (Message(Role.ASSISTANT, "Fine."), Message(Role.USER, "And now?"))
        _, further, _ = asked(engine, handle, Conversation((*talk.messages, *more)))
        network = bare(handle, cold.usage.prompt_tokens)
        messages = built_of_messages(engine, handle, length // 100)
        engine.close()
        columns = [
            name,
            f"{cold.usage.prompt_tokens:,}",
            f"{built:.2f}",
            f"{messages:.2f}",
            f"{cold.timings.prompt_seconds:.1f}",
            f"{network:.1f}",
            f"{cold.timings.generation_seconds / (cold.usage.completion_tokens - 1) * 1000:.1f}",
            f"{again.timings.prompt_seconds:.2f} ({again.usage.cached_tokens:,})",
            f"{further.timings.prompt_seconds:.2f} ({further.usage.cached_tokens:,})",
            f"{reports}",
        ]
        print(f"| {' | '.join(columns)} |", flush=True)


COLUMNS = (
    "model",
    "tokens",
    "to the sequence, s",
    "the same of many messages, s",
    "to the first token, s",
    "bare network, s",
    "a token after it, ms",
    "again, s (cached)",
    "continued, s (cached)",
    "reports",
)


def main(arguments: argparse.Namespace) -> None:
    """Build the models and print the table."""
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|---|{'--:|' * (len(COLUMNS) - 1)}")
    with tempfile.TemporaryDirectory() as directory:
        window = {"max_position_embeddings": 262_144}
        recurrent = build(Path(directory, "recurrent"), "mamba2", num_hidden_layers=1, **window)
        measure("recurrent", recurrent, arguments.tokens)
        shape = {"hidden_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 32}
        measure("llama", build(Path(directory, "llama"), **window, **shape), arguments.tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("tokens", nargs="*", type=int, default=[25_000, 50_000, 100_000])
    main(parser.parse_args())
