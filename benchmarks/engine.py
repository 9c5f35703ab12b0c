"""What the engine costs and what it saves, on a model with random weights built on the spot.

    python benchmarks/engine.py [ROUNDS] [--reader-threads] [--bare]

Three measurements, each in interleaved rounds with medians, so that a noisy machine disturbs both sides alike:

- tokens per CPU second of the engine over mlx-lm's bare ``BatchGenerator``, at 1, 8 and 32 streams, greedy and sampled;
- time to the first token of a short prompt behind two prompts of 2,000 tokens, over its time with nobody there, and
  what the long ones lose by it;
- time to the first token of a chat's second turn after 2,000 tokens of first turn, over a cold start.

One thread reads all streams, as the server does; with ``--reader-threads`` each stream has a thread of its own. With
``--bare`` only mlx-lm's generator is measured: what samplers of their own cost it, and what a short prompt waits that
comes together with two of 2,000 tokens.
"""

import argparse
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

from doubles.event_log import InMemoryEventLog
from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import make_sampler
from models.answers import loaded
from models.tiny_models import build

from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import Finished, GenerationRequest, TextDelta
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

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


def bare(handle: ModelHandle, prompts: list[str], temperature: float, own_samplers: bool = False) -> float:
    """Return tokens per CPU second of mlx-lm's batch generator, with one sampler for all or one for each."""
    network, tokenizer = loaded(handle)
    sampler = make_sampler(temperature, top_p=0.9)
    samplers = [make_sampler(temperature, top_p=0.9) for _ in prompts] if own_samplers else None
    began, tokens = cpu_seconds(), 0
    generator = BatchGenerator(network, sampler=sampler)
    generator.insert(
        [tokenizer.encode(each, add_special_tokens=False) for each in prompts],
        [NEW_TOKENS] * len(prompts),
        samplers=samplers,
    )
    while responses := generator.next_generated():
        tokens += len(responses)
    generator.close()
    return tokens / (cpu_seconds() - began)


def ours(
    engine: MlxTextGenerator, handle: ModelHandle, prompts: list[str], temperature: float, read: Callable[..., int]
) -> float:
    """Return tokens per CPU second of the engine, readers included."""
    began = cpu_seconds()
    settings = GenerationSettings(temperature=temperature, top_p=0.9, max_tokens=NEW_TOKENS, ignore_eos=True)
    streams = [engine.submit(GenerationRequest(handle, each, settings)) for each in prompts]
    return read(streams) / (cpu_seconds() - began)


def read_together(streams: list[TextStream]) -> int:
    """Read all streams in this thread, as a server does, and return the tokens."""
    woken = threading.Event()
    for stream in streams:
        stream.subscribe(woken.set)
    tokens = 0
    while streams:
        woken.wait()
        woken.clear()
        for stream in list(streams):
            last = stream.take()[-1:]
            if last and isinstance(last[0], Finished):
                tokens += last[0].usage.completion_tokens
                streams.remove(stream)
    return tokens


def read_apart(streams: list[TextStream]) -> int:
    """Read each stream in a thread of its own and return the tokens."""
    tokens: list[int] = []

    def read(stream: TextStream) -> None:
        tokens.extend(event.usage.completion_tokens for event in stream if isinstance(event, Finished))

    threads = [threading.Thread(target=read, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(tokens)


def first_token_seconds(engine: MlxTextGenerator, handle: ModelHandle, prompt: Conversation | str) -> float:
    """Return the wall seconds from submitting a prompt to its first text."""
    began = time.perf_counter()
    settings = GenerationSettings(temperature=0, max_tokens=4, ignore_eos=True)
    for event in engine.submit(GenerationRequest(handle, prompt, settings)):
        if isinstance(event, TextDelta):
            return time.perf_counter() - began
    raise RuntimeError("no text came")


def throughput(handle: ModelHandle, rounds: int, read: Callable[..., int]) -> None:
    """Print the engine's tokens per CPU second over the bare generator's."""
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(prefix_cache_bytes=0))

    def pair(prompts: list[str], temperature: float) -> tuple[float, float]:
        return bare(handle, prompts, temperature), ours(engine, handle, prompts, temperature, read)

    for temperature in (0.0, 0.7):
        for streams in STREAMS:
            prompts = [of_tokens(handle, 32, f"{number} ") for number in range(streams)]
            pair(prompts, temperature)
            samples = [pair(prompts, temperature) for _ in range(rounds)]
            theirs, mine = (statistics.median(side) for side in zip(*samples, strict=True))
            ratio = statistics.median(after / before for before, after in samples)
            print(
                f"{streams:>3} streams, temperature {temperature:.1f}: {theirs:7.0f} tokens per CPU second bare,"
                f" {mine:7.0f} engine   {ratio:5.3f} x"
            )
    engine.close()


def fairness(handle: ModelHandle, rounds: int) -> None:
    """Print what a short prompt waits behind two long ones, and what the long ones lose."""
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(prefix_cache_bytes=0))
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
        answered = (Message(Role.ASSISTANT, "Fine."), Message(Role.USER, "And now?"))
        talk = Conversation((*talk.messages, *answered))
        samples.append((cold, first_token_seconds(engine, handle, talk)))
        engine.close()
    cold, warm = (statistics.median(side) for side in zip(*samples, strict=True))
    ratio = statistics.median(before / after for before, after in samples)
    print(f"second turn: {cold * 1000:.1f} ms cold, {warm * 1000:.1f} ms after the first   {ratio:.0f} x faster")


def bare_alone(small: ModelHandle, large: ModelHandle, rounds: int) -> None:
    """Print what mlx-lm's generator does that the engine has to do otherwise."""
    for streams in STREAMS[1:]:
        prompts = [of_tokens(small, 32, f"{number} ") for number in range(streams)]
        ratio = statistics.median(bare(small, prompts, 0.7, True) / bare(small, prompts, 0.7) for _ in range(rounds))
        print(f"{streams:>3} streams: a sampler for each makes {ratio:5.3f} x the tokens per CPU second of one for all")
    network, tokenizer = loaded(large)

    def seconds(prompts: list[str]) -> float:
        began, generator = time.perf_counter(), BatchGenerator(network)
        last = generator.insert([tokenizer.encode(each, add_special_tokens=False) for each in prompts])[-1]
        while all(response.uid != last for response in generator.next()[1]):
            pass
        generator.close()
        return time.perf_counter() - began

    long_ones = [of_tokens(large, LONG_TOKENS, str(number)) for number in range(2)]
    seconds([SHORT])
    alone, behind = seconds([SHORT]), seconds([*long_ones, SHORT])
    print(f"short prompt: {alone:.3f} s alone, {behind:.3f} s together with two long ones   {behind / alone:.0f} x")


def main(arguments: argparse.Namespace) -> None:
    """Build two models, of about one and three million parameters, and measure with them."""
    with tempfile.TemporaryDirectory() as directory:
        shape = {"num_hidden_layers": 4, "head_dim": 32, "max_position_embeddings": 8192}
        small = build(Path(directory, "small"), hidden_size=128, intermediate_size=384, **shape)
        large = build(Path(directory, "large"), hidden_size=256, intermediate_size=768, **shape)
        if arguments.bare:
            bare_alone(small, large, arguments.rounds)
            return
        throughput(small, arguments.rounds, read_apart if arguments.reader_threads else read_together)
        fairness(large, arguments.rounds)
        second_turn(large, arguments.rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=7)
    parser.add_argument("--reader-threads", action="store_true")
    parser.add_argument("--bare", action="store_true")
    main(parser.parse_args())
