"""What the engine costs and what it saves, on a model with random weights built on the spot.

    python benchmarks/engine.py [ROUNDS]

Three measurements, each in interleaved rounds with medians, so that a noisy machine disturbs both sides alike:

- tokens per CPU second of the engine over mlx-lm's bare ``BatchGenerator``, at 1, 8 and 32 streams, greedy and sampled;
- time to the first token of a short prompt behind two prompts of 2,000 tokens, over its time with nobody there, and
  what the long ones lose by it;
- time to the first token of a chat's second turn after 2,000 tokens of first turn, over a cold start.
"""

import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ["MLX_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import make_sampler
from models.answers import loaded
from models.tiny_models import build

from mlxk.adapters.in_memory.event_log import InMemoryEventLog
from mlxk.adapters.mlx.engine_options import EngineOptions
from mlxk.adapters.mlx.text import MlxTextGenerator
from mlxk.adapters.system.clock import SystemClock
from mlxk.domain.conversation import Conversation, Role
from mlxk.domain.generation import Finished, GenerationRequest, GenerationSettings, TextDelta
from mlxk.domain.model import ModelHandle

STREAMS = (1, 8, 32)
NEW_TOKENS = 128
LONG = "The quick brown fox jumps over the lazy dog. " * 1000
SHORT = "Hello world! How are you today?"
LONG_TOKENS = 2000


def cpu_seconds() -> float:
    """Return the CPU seconds of this process, user and system together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def of_tokens(handle: ModelHandle, count: int, opening: str = "") -> str:
    """Return a prompt of so many tokens."""
    _, tokenizer = loaded(handle)
    return str(tokenizer.decode(tokenizer.encode(opening + LONG, add_special_tokens=False)[:count]))


def bare(handle: ModelHandle, prompts: list[str], temperature: float) -> float:
    """Return tokens per CPU second of mlx-lm's batch generator."""
    network, tokenizer = loaded(handle)
    sampler = make_sampler(temperature, top_p=0.9)
    began, tokens = cpu_seconds(), 0
    generator = BatchGenerator(network, sampler=sampler)
    generator.insert(
        [tokenizer.encode(each, add_special_tokens=False) for each in prompts], [NEW_TOKENS] * len(prompts)
    )
    while responses := generator.next_generated():
        tokens += len(responses)
    generator.close()
    return tokens / (cpu_seconds() - began)


def ours(engine: MlxTextGenerator, handle: ModelHandle, prompts: list[str], temperature: float) -> float:
    """Return tokens per CPU second of the engine, with one reader for all streams, as a server has."""
    began = cpu_seconds()
    settings = GenerationSettings(temperature=temperature, top_p=0.9, max_tokens=NEW_TOKENS, ignore_eos=True)
    streams = [engine.submit(GenerationRequest(handle, each, settings)) for each in prompts]
    woken = threading.Event()
    for stream in streams:
        stream.listen(woken.set)
    tokens = 0
    while streams:
        woken.wait()
        woken.clear()
        for stream in list(streams):
            last = stream.take()[-1:]
            if last and isinstance(last[0], Finished):
                tokens += last[0].usage.completion_tokens
                streams.remove(stream)
    return tokens / (cpu_seconds() - began)


def first_token_seconds(engine: MlxTextGenerator, handle: ModelHandle, prompt: Conversation | str) -> float:
    """Return the wall seconds from submitting a prompt to its first text."""
    began = time.perf_counter()
    settings = GenerationSettings(temperature=0, max_tokens=4, ignore_eos=True)
    for event in engine.submit(GenerationRequest(handle, prompt, settings)):
        if isinstance(event, TextDelta):
            return time.perf_counter() - began
    raise RuntimeError("no text came")


def throughput(handle: ModelHandle, rounds: int) -> None:
    """Print the engine's tokens per CPU second over the bare generator's."""
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineOptions(prefix_cache_bytes=0))
    for temperature in (0.0, 0.7):
        for streams in STREAMS:
            prompts = [of_tokens(handle, 32, f"{number} ") for number in range(streams)]
            bare(handle, prompts, temperature), ours(engine, handle, prompts, temperature)
            samples = [
                (bare(handle, prompts, temperature), ours(engine, handle, prompts, temperature)) for _ in range(rounds)
            ]
            theirs, mine = (statistics.median(side) for side in zip(*samples, strict=True))
            ratio = statistics.median(after / before for before, after in samples)
            print(
                f"{streams:>3} streams, temperature {temperature:.1f}: {theirs:7.0f} tokens per CPU second bare,"
                f" {mine:7.0f} engine   {ratio:5.3f} x"
            )
    engine.close()


def fairness(handle: ModelHandle, rounds: int) -> None:
    """Print what a short prompt waits behind two long ones, and what the long ones lose."""
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineOptions(prefix_cache_bytes=0))
    settings = GenerationSettings(temperature=0, max_tokens=1, ignore_eos=True)

    def long_ones(meanwhile: Callable[[], float | None], delay: float = 0.0) -> tuple[float, float | None]:
        began = time.perf_counter()
        streams = [
            engine.submit(GenerationRequest(handle, of_tokens(handle, LONG_TOKENS, str(number)), settings))
            for number in range(2)
        ]
        time.sleep(delay)
        waited = meanwhile()
        for stream in streams:
            list(stream)
        return time.perf_counter() - began, waited

    short = lambda: first_token_seconds(engine, handle, SHORT)  # noqa: E731
    short(), long_ones(short)
    usual = long_ones(lambda: None)[0]
    # The short one comes at another moment of the long ones' work in every round.
    samples = [
        (short(), long_ones(lambda: None)[0], *long_ones(short, usual * (index + 1) / (rounds + 2)))
        for index in range(rounds)
    ]
    alone, long_alone, long_shared, behind = (
        statistics.median(each)
        for each in zip(*samples, strict=True)  # type: ignore[type-var]
    )
    waits = statistics.median((sample[3] or 0.0) / sample[0] for sample in samples)
    loses = statistics.median(sample[2] / sample[1] - 1 for sample in samples)
    print(
        f"short prompt: {alone * 1000:.1f} ms alone,"
        f" {(behind or 0.0) * 1000:.1f} ms behind two long ones   {waits:.1f} x"
    )
    print(f"two long ones: {long_alone:.3f} s alone, {long_shared:.3f} s with the short one   {loses:+.1%}")
    engine.close()


def second_turn(handle: ModelHandle, rounds: int) -> None:
    """Print what the second turn of a long chat saves."""
    samples = []
    for number in range(rounds):
        engine = MlxTextGenerator(InMemoryEventLog(), SystemClock())
        first_token_seconds(engine, handle, SHORT)
        talk = Conversation.of(of_tokens(handle, LONG_TOKENS, f"{number} "))
        cold = first_token_seconds(engine, handle, talk)
        talk = talk.with_turn(Role.ASSISTANT, "Fine.").with_turn(Role.USER, "And now?")
        samples.append((cold, first_token_seconds(engine, handle, talk)))
        engine.close()
    cold, warm = (statistics.median(side) for side in zip(*samples, strict=True))
    ratio = statistics.median(before / after for before, after in samples)
    print(f"second turn: {cold * 1000:.1f} ms cold, {warm * 1000:.1f} ms after the first   {ratio:.0f} x faster")


def main(rounds: int) -> None:
    """Build two models, of about one and three million parameters, and measure with them."""
    with tempfile.TemporaryDirectory() as directory:
        shape = {"num_hidden_layers": 4, "head_dim": 32, "max_position_embeddings": 8192}
        small = build(Path(directory, "small"), hidden_size=128, intermediate_size=384, **shape)
        large = build(Path(directory, "large"), hidden_size=256, intermediate_size=768, **shape)
        throughput(small, rounds)
        fairness(large, rounds)
        second_turn(large, rounds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
