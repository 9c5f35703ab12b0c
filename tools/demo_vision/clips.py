"""Writes clips of drawings, each shown for a second, and counts those that the program and the model name in order.

Usage: ``python tools/demo_vision/clips.py FILE.mp4 [--seed N] [--say]``, or ``--check [COUNT]``

The same number gives the same clip. The exit status of a check is 1 when too few are right.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from conversations import Figure, figure
from drawings import draw

SIZE = (112, 112)
RATE = 8.0
"""Frames a second."""

FIGURES = 4
"""Of a clip, each shown for a second."""

COUNT = 32
REQUIRED = 30 / 32


def figures_of(seed: int) -> list[Figure]:
    """Return what a clip shows, in order; no figure follows itself."""
    rng = random.Random(seed)
    shown = [figure(rng)]
    while len(shown) < FIGURES:
        following = figure(rng)
        if following != shown[-1]:
            shown.append(following)
    return shown


def write(path: Path, seed: int) -> None:
    """Write a clip as an MP4."""
    rng = random.Random(seed + 1_000_000)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), RATE, SIZE)
    for each in figures_of(seed):
        drawn = np.asarray(draw(rng, each.colour, each.shape, SIZE).image.convert("RGB"))
        for _ in range(round(RATE)):
            writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    writer.release()


def answer(seed: int) -> str:
    """Return what the program says about a clip."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write(path, seed)
        command = [sys.executable, "-m", "mlxk", "run", "demo-vision", "--video", str(path), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    response: str = json.loads(done.stdout)["data"]["response"]
    return response.rpartition("</details>")[2].strip()


def wanted(seed: int) -> str:
    """Return the right answer."""
    named = [each.named for each in figures_of(seed)]
    return " ".join(f"{each[0].upper()}{each[1:]}." for each in named)


def check(count: int) -> bool:
    """Print the wrong answers and how many are right; return whether they suffice."""
    right = 0
    for seed in range(count):
        got, want = answer(seed), wanted(seed)
        right += got == want
        if got != want:
            print(f"  clip {seed}: {want!r}: {got!r}")
    print(f"{right} of {count} clips named in order")
    return right >= REQUIRED * count


def main() -> int:
    """Write a clip, or check many; return the exit status."""
    parser = argparse.ArgumentParser(description="Clips of drawings for the built-in vision demo.")
    parser.add_argument("file", nargs="?", type=Path, help="the clip to write")
    parser.add_argument("--seed", type=int, default=0, help="which clip")
    parser.add_argument("--say", action="store_true", help="print what the clip shows")
    parser.add_argument("--check", nargs="?", type=int, const=COUNT, help="check so many clips")
    arguments = parser.parse_args()
    if arguments.check is not None:
        return 0 if check(arguments.check) else 1
    if arguments.file is None:
        parser.error("name a file to write, or --check")
    write(arguments.file, arguments.seed)
    if arguments.say:
        print(wanted(arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
