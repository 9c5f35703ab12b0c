"""Time of hearing a recording: our transcriber, against calling mlx-audio directly, and memory for a long one.

    python benchmarks/speech.py [MODEL [FILE]] [--minutes N]

MODEL is a directory, and the built-in model when left out; FILE is its sample, repeated to N minutes (default 2). Both
sides have the model loaded and decode the file themselves; rounds alternate, so that what else the machine does hits
both. Prints one JSON object: seconds of each round, the real-time factor of ours over theirs (1 is as fast, more is
faster), and the most memory that each took.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
import wave
from pathlib import Path
from typing import Any

import mlx.core as mx
from doubles.event_log import InMemoryEventLog
from mlx_audio.stt.utils import load_model

from mlxk.adapters.builtin import PackagedModelSource
from mlxk.adapters.mlx.speech.transcriber import MlxSpeechTranscriber
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.transcription import Transcript, TranscriptionRequest

ROUNDS = 5


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("file", nargs="?")
    parser.add_argument("--minutes", type=float, default=2.0)
    arguments = parser.parse_args()
    handle = found(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        clip = arguments.file or repeated(Path(handle.directory, "two-phrases.wav"), folder, arguments.minutes)
        print(json.dumps(measured(handle, clip), indent=2))
    return 0


def found(model: str | None) -> ModelHandle:
    """Return the model to measure."""
    if model:
        directory = os.path.abspath(model)
        return ModelHandle(directory, directory, Origin.WORKSPACE)
    handle = PackagedModelSource().find("demo-speech")
    if handle is None:
        raise SystemExit("there is no built-in speech model")
    return handle


def repeated(path: Path, folder: str, minutes: float) -> str:
    """Write a clip again and again, with pauses, until it has so many minutes."""
    with wave.open(str(path)) as file:
        parameters, data = file.getparams(), file.readframes(file.getnframes())
    data += bytes(2 * parameters.framerate)
    count = int(minutes * 60 * parameters.framerate * 2 / len(data)) + 1
    target = os.path.join(folder, "long.wav")
    with wave.open(target, "wb") as file:
        file.setparams(parameters)
        file.writeframes(data * count)
    return target


def measured(handle: ModelHandle, clip: str) -> dict[str, Any]:
    """Hear the clip by turns and return what was measured."""
    log = InMemoryEventLog()
    generator = MlxTextGenerator(log, SystemClock())
    transcriber = MlxSpeechTranscriber(generator.leases, log)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = load_model(Path(handle.directory), model_name_parts=["whisper"])
    request = TranscriptionRequest(handle, clip, "clip")
    ours, theirs = heard(transcriber, request), network.generate(clip, temperature=0.0)
    seconds: dict[str, list[float]] = {"mlxk": [], "mlx-audio": []}
    for _ in range(ROUNDS):
        began = time.perf_counter()
        ours = heard(transcriber, request)
        seconds["mlxk"].append(round(time.perf_counter() - began, 3))
        began = time.perf_counter()
        theirs = network.generate(clip, temperature=0.0)
        seconds["mlx-audio"].append(round(time.perf_counter() - began, 3))
    generator.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "recording_seconds": round(ours.seconds, 1),
        "same_text": ours.text == theirs.text.strip(),
        "seconds": seconds,
        "speed_against_mlx_audio": round(medians["mlx-audio"] / medians["mlxk"], 3),
        "times_faster_than_speech": round(ours.seconds / medians["mlxk"], 2),
        "peak_mlx_bytes": mx.get_peak_memory(),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def heard(transcriber: MlxSpeechTranscriber, request: TranscriptionRequest) -> Transcript:
    """Return the transcript."""
    for event in transcriber.transcribe(request):
        if isinstance(event, Transcript):
            return event
    raise SystemExit("no transcript")


if __name__ == "__main__":
    sys.exit(main())
