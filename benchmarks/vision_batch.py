"""What decoding in one batch gains for requests with and without images, against one after the other.

    python benchmarks/vision_batch.py [ROUNDS] [--model DIRECTORY] [--tokens N]

Eight requests, five with an image and three without, are sent together and then one after the other, in interleaved
rounds with medians, so that a noisy machine disturbs both sides alike. Pictures differ from round to round, so that
each is encoded. Without ``--model``: the built-in vision model. CPU seconds are printed beside those of the clock.
Weights are held, and matrices multiplied, as the program does it: on a CPU in 32 bits, by the machine's OpenBLAS where
it has one. ``--stored`` leaves the weights in 16 bits, and MLX its own library.
"""

import argparse
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["MLX_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mlxk.adapters.mlx import blas

if "--stored" not in sys.argv:  # before MLX
    blas.take()

import mlx.core as mx
from doubles.event_log import InMemoryEventLog
from models.answers import read
from models.pictures import about, noise

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.footprint import MemoryFit, MemoryVerdict, WeightForm
from mlxk.domain.models.model import ModelHandle, Origin

DEMO = Path(__file__).resolve().parents[1] / "adapters" / "builtin" / "models" / "demo-vision"
REQUESTS = 8
WITH_IMAGE = 5


def mixed(handle: ModelHandle, turn: int, tokens: int) -> list[GenerationRequest]:
    """Return the requests of one round."""
    found = []
    for index in range(REQUESTS):
        number = turn * REQUESTS + index
        words = f"What is in picture {number}, and which colour does it have?"
        shown = (noise(number, 64, 64), words) if index < WITH_IMAGE else (words,)
        settings = GenerationSettings(
            temperature=0.0 if index % 2 else 0.8, seed=number, max_tokens=tokens, ignore_eos=True
        )
        found.append(GenerationRequest(handle, about(*shown), settings, backends=("mlx-vlm",)))
    return found


def measure(handle: ModelHandle, rounds: int, tokens: int, form: WeightForm) -> tuple[float, ...]:
    """Return the median seconds of eight requests one after the other and together, then the same in CPU seconds."""
    verdict = MemoryVerdict(MemoryFit.FITS, 0, 0, 0, None, form)
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), judge=lambda _: verdict)
    found: list[tuple[float, ...]] = []
    try:
        for turn in range(rounds + 1):
            marks = [_now()]
            for each in mixed(handle, 2 * turn, tokens):
                read(engine.submit(each))
            marks.append(_now())
            with ThreadPoolExecutor(REQUESTS) as clients:
                list(clients.map(lambda each: read(engine.submit(each)), mixed(handle, 2 * turn + 1, tokens)))
            marks.append(_now())
            found.append(tuple(marks[k + 1][clock] - marks[k][clock] for clock in (0, 1) for k in (0, 1)))
    finally:
        engine.close()
    # The first round loads the model.
    return tuple(statistics.median(each) for each in zip(*found[1:], strict=True))


def _now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--stored", action="store_true", help="hold weights as they are stored")
    asked = parser.parse_args()
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    form = WeightForm.WIDE if on_cpu and not asked.stored else WeightForm.STORED
    model = asked.model.resolve()
    figures = measure(ModelHandle(model.name, str(model), Origin.WORKSPACE), asked.rounds, asked.tokens, form)
    for unit, apart, together in (("s", *figures[:2]), ("CPU s", *figures[2:])):
        print(
            f"{model.name}: {REQUESTS} requests of {asked.tokens} tokens, {WITH_IMAGE} with an image: "
            f"{apart:.2f} {unit} one after the other, {together:.2f} {unit} together, {apart / together:.2f} times"
        )


if __name__ == "__main__":
    main()
