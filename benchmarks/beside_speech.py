"""What a text model waits while a long recording is transcribed, and what the recording loses by it.

    python benchmarks/beside_speech.py [--speech MODEL] [--minutes N] [--requests N] [--rounds N]

Both models are warm. In each round a recording of 10 minutes is transcribed alone, then twice while a text model of
random weights answers 20 short requests: one right after the other, which is the most that one client asks for, and
with pauses of up to half a window, so that they come at any moment of a window. Printed are, as ratios within the round
and then as medians over the rounds: the median time to the first token in windows of the recording (of 30 seconds of
sound), and the share of its speed that the recording loses between the first request and the last answer. The exit
status is 1 above 1.5 windows or 55 %.
"""

import argparse
import itertools
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import attrs

os.environ["MLX_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from doubles.event_log import InMemoryEventLog
from models.tiny_models import build
from speech import found, repeated

from mlxk.adapters.mlx.speech.transcriber import MlxSpeechTranscriber
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.request import GenerationRequest, TextDelta
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.transcription import TranscriptionProgress, TranscriptionRequest

MOST_WINDOWS, MOST_LOSS = 1.5, 0.55
NEW_TOKENS = 32
PROMPT = "Hello world! How are you today?"
TEXT_MODEL = {"hidden_size": 512, "num_hidden_layers": 4, "intermediate_size": 1536}
WAITING_SECONDS = 600


@attrs.frozen
class Share:
    """What each side got, beside what it gets alone."""

    requests: int
    """Requests that came while the recording was transcribed."""
    first_token_windows: float
    """Median time to the first token, in windows."""
    slowest_windows: float
    lost: float
    """Share of the recording's speed that was lost while text was asked for."""
    meanwhile: int
    """Windows that were decoded meanwhile."""

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, first token after {self.first_token_windows:.2f} windows,"
            f" {self.slowest_windows:.2f} at most; {self.meanwhile} windows meanwhile, {self.lost:.0%} of speed lost"
        )


class Hearing:
    """A transcription in a thread of its own, and the times at which its windows were ready."""

    def __init__(self, transcriber: MlxSpeechTranscriber, request: TranscriptionRequest) -> None:
        self.ready: list[tuple[float, float]] = []
        """Time of the clock, and the seconds of the recording that were heard by then."""
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._hear, args=(transcriber, request))
        self._thread.start()

    def _hear(self, transcriber: MlxSpeechTranscriber, request: TranscriptionRequest) -> None:
        for event in transcriber.transcribe(request):
            if isinstance(event, TranscriptionProgress):
                self.ready.append((time.perf_counter(), event.done_seconds))
                self._begun.set()

    def begun(self) -> None:
        """Wait for the first window."""
        self._begun.wait(WAITING_SECONDS)

    @property
    def ended(self) -> bool:
        """Whether everything was heard."""
        return not self._thread.is_alive()

    def end(self) -> None:
        """Wait for the end."""
        self._thread.join(WAITING_SECONDS)

    def windows(self) -> list[float]:
        """Return how long each window took, seconds."""
        times = [moment for moment, _ in self.ready]
        return [after - before for before, after in itertools.pairwise(times)]

    def speed(self, first: float, last: float) -> tuple[float, int]:
        """Return the seconds of sound heard for each second between two moments, by whole windows, and their number."""
        inside = [each for each in self.ready if first <= each[0] <= last]
        if len(inside) < 2:
            return 0.0, len(inside)
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]), len(inside) - 1


def first_token_seconds(engine: MlxTextGenerator, handle: ModelHandle) -> float:
    """Return the seconds from asking to the first text, after the answer is complete."""
    began, first = time.perf_counter(), 0.0
    settings = GenerationSettings(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    for event in engine.submit(GenerationRequest(handle, PROMPT, settings)):
        if isinstance(event, TextDelta) and not first:
            first = time.perf_counter() - began
    return first


def shared(
    engine: MlxTextGenerator, text: ModelHandle, request: TranscriptionRequest, requests: int, chance: random.Random
) -> tuple[Share, Share]:
    """Transcribe alone and beside text; return what requests without pauses got, and those with pauses."""
    transcriber = MlxSpeechTranscriber(engine.leases, InMemoryEventLog())
    alone = Hearing(transcriber, request)
    alone.end()
    window = statistics.median(alone.windows())
    usual, _ = alone.speed(alone.ready[0][0], alone.ready[-1][0])

    def beside(pauses: list[float]) -> Share:
        hearing = Hearing(transcriber, request)
        hearing.begun()
        began, waits = time.perf_counter(), []
        for pause in pauses:
            time.sleep(pause)
            if hearing.ended:
                break  # what comes after the recording waits for nothing
            waits.append(first_token_seconds(engine, text) / window)
        ended = time.perf_counter()
        hearing.end()
        speed, count = hearing.speed(began, ended)
        return Share(len(waits), statistics.median(waits), max(waits), 1 - speed / usual, count)

    pauses = [window / 2 * chance.random() for _ in range(requests)]
    return beside([0.0] * requests), beside(pauses)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", help="the directory of a speech model, else the built-in one")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    sample = found(None)
    with tempfile.TemporaryDirectory() as folder:
        clip = repeated(Path(sample.directory, "two-phrases.wav"), folder, arguments.minutes)
        text = build(Path(folder, "text"), **TEXT_MODEL)
        request = TranscriptionRequest(found(arguments.speech), clip, "clip")
        first_token_seconds(engine, text)
        chance = random.Random(15)
        rounds = [shared(engine, text, request, arguments.requests, chance) for _ in range(arguments.rounds)]
    engine.close()
    good = True
    for name, shares in zip(("one after the other", "with pauses"), zip(*rounds, strict=True), strict=True):
        for share in shares:
            print(f"{name}: {share}")
        waits = statistics.median(share.first_token_windows for share in shares)
        lost = statistics.median(share.lost for share in shares)
        print(
            f"{name}, median: first token after {waits:.2f} windows (at most {MOST_WINDOWS}),"
            f" {lost:.0%} lost (at most {MOST_LOSS:.0%})"
        )
        good = good and waits <= MOST_WINDOWS and lost <= MOST_LOSS
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
