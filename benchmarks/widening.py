"""What it gains on a CPU to hold weights in 32 bits, with models whose weights are random.

    python benchmarks/widening.py [--blas] [ROUNDS]

A llama of 25 million parameters, in 4 bits with bf16 scales and in bf16, and the built-in speech model: each is loaded
as its files have it, widened, and with its quantized layers unpacked, and these take turns. Prints medians of tokens
per second and of seconds. With ``--blas`` all compute with an optimised BLAS of this machine.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["MLX_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mlxk.adapters.mlx import blas

if "--blas" in sys.argv:  # before MLX
    print(blas.take() or sys.exit("there is no optimised BLAS on this machine"))

import mlx_lm
from doubles.event_log import InMemoryEventLog
from models.tiny_models import build

from mlxk.adapters.builtin import PackagedModelSource
from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.speech.transcriber import MlxSpeechTranscriber
from mlxk.adapters.mlx.text_generator import MlxTextGenerator, leases_of
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.request import Finished, GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.footprint import MemoryFit, MemoryVerdict, WeightForm
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.transcription import TranscriptionRequest

SHAPE = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
PROMPT = "The quick brown fox jumps over the lazy dog. " * 6
NEW_TOKENS = 24


@contextlib.contextmanager
def engine(form: WeightForm) -> Iterator[MlxTextGenerator]:
    """Give an engine that holds all of its models in one form."""
    verdict = MemoryVerdict(MemoryFit.FITS, 0, 0, 0, None, form)
    limits = EngineLimits(prefix_cache_bytes=0)
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock(), limits, judge=lambda _: verdict)
    try:
        yield generator
    finally:
        generator.close()


def answered(generator: MlxTextGenerator, handle: ModelHandle, tokens: int) -> tuple[float, float]:
    """Return tokens per second of prompt and answer."""
    settings = GenerationSettings(temperature=0, max_tokens=tokens, ignore_eos=True)
    (finished,) = (
        each for each in generator.submit(GenerationRequest(handle, PROMPT, settings)) if isinstance(each, Finished)
    )
    usage, timings = finished.usage, finished.timings
    return (
        usage.prompt_tokens / timings.prompt_seconds,
        (usage.completion_tokens - 1) / max(timings.generation_seconds, 1e-9),
    )


def heard(generator: MlxTextGenerator, handle: ModelHandle) -> float:
    """Return the seconds that a recording takes."""
    clip = str(Path(handle.directory, "two-phrases.wav"))
    transcriber = MlxSpeechTranscriber(leases_of(generator), InMemoryEventLog())
    began = time.perf_counter()
    for _ in transcriber.transcribe(TranscriptionRequest(handle, clip, "two-phrases.wav")):
        pass
    return time.perf_counter() - began


def text(name: str, handle: ModelHandle, rounds: int) -> None:
    """Print the speed of a text model."""
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(engine(form)) for form in WeightForm]
        for generator in engines:
            answered(generator, handle, 2)
        samples = [[answered(generator, handle, NEW_TOKENS) for generator in engines] for _ in range(rounds)]
    for index, part in enumerate(("prompt", "answer")):
        speeds = [statistics.median(sample[side][index] for sample in samples) for side in range(len(engines))]
        said = (f"{form.value} {speed:.1f}" for form, speed in zip(WeightForm, speeds, strict=True))
        print(f"{name}, {part}, tokens/s: {', '.join(said)}")


def speech(rounds: int) -> None:
    """Print the time of the built-in speech model."""
    handle = PackagedModelSource().find("demo-speech")
    assert handle is not None
    with engine(WeightForm.STORED) as own, engine(WeightForm.WIDE) as wide:
        heard(own, handle), heard(wide, handle)
        samples = [(heard(own, handle), heard(wide, handle)) for _ in range(rounds)]
    before, after = (statistics.median(side) for side in zip(*samples, strict=True))
    print(f"speech: {before:.2f} s, widened {after:.2f} s   {before / after:.1f} x")


def main(rounds: int) -> None:
    """Build the models, and measure with them."""
    with tempfile.TemporaryDirectory() as directory:
        build(Path(directory, "float32"), **SHAPE)
        for name, options in (("bf16", {}), ("4bit", {"quantize": True, "q_bits": 4})):
            mlx_lm.convert(f"{directory}/float32", f"{directory}/{name}", dtype="bfloat16", **options)
            path = f"{directory}/{name}"
            text(name, ModelHandle(path, path, Origin.WORKSPACE), rounds)
    speech(rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blas", action="store_true")
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    main(parser.parse_args().rounds)
