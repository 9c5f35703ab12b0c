"""Sound files: what is read, what is refused and how, and that no file brings anything down."""

import os
import random
import stat
import struct
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from mlx_audio import audio_io
from models.tiny_speech import murmur, write_wav

from mlxk.adapters.mlx.audio_file import format_of, read_audio
from mlxk.domain.errors import BackendNotInstalledError, MlxkError, StorageError, ValidationError
from mlxk.domain.generation.media import MAX_AUDIO_BYTES
from mlxk.domain.transcription import MAX_AUDIO_SECONDS

SOUNDS = Path(__file__).parents[1] / "sounds"
HELLO = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo-speech" / "hello.wav"
RATE = 16_000
MUTATIONS = 400
SLOW = """#!{python}
import pathlib, sys
sys.stdout.buffer.write(pathlib.Path({pcm!r}).read_bytes())
"""


@pytest.mark.parametrize("name", ["hello.mp3", "hello.flac"])
def test_compressed_files_are_read_in_process_as_mlx_audio_reads_them(name: str) -> None:
    path = SOUNDS / name
    theirs, _ = audio_io.read(str(path), dtype="float32", sample_rate=RATE, nchannels=1)
    ours = read_audio(str(path), name, RATE)
    assert np.array_equal(ours.samples, theirs)
    assert ours.seconds == pytest.approx(1.18, abs=0.15)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_wav_files_of_any_usual_rate_are_read_as_mlx_audio_reads_them(rate: int, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "clip.wav", murmur(0.7, rate=rate), rate)
    theirs, _ = audio_io.read(str(path), dtype="float32", sample_rate=RATE, nchannels=1)
    ours = read_audio(str(path), "clip.wav", RATE)
    assert np.array_equal(ours.samples, theirs)
    assert ours.seconds == pytest.approx(0.7, abs=0.01)


def test_several_channels_become_one(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(struct.pack("<hh", 8192, 0) * RATE)
    assert read_audio(str(path), "stereo.wav", RATE).samples == pytest.approx(np.full(RATE, 0.125), abs=1e-3)


@pytest.mark.parametrize(("name", "kind"), [("hello.m4a", "M4A"), ("hello.ogg", "OGG"), ("hello.webm", "WebM")])
def test_other_formats_are_known_by_their_first_bytes_whatever_the_name(name: str, kind: str) -> None:
    assert format_of((SOUNDS / name).read_bytes()[:64]) == kind


@pytest.mark.parametrize("name", ["hello.m4a", "hello.ogg", "hello.webm"])
def test_without_ffmpeg_other_formats_are_refused_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendNotInstalledError, match=f"needs the program ffmpeg.*{name}") as caught:
        read_audio(str(SOUNDS / name), name, RATE)
    assert caught.value.hint is not None
    assert "ffmpeg" in caught.value.hint


def test_with_ffmpeg_its_output_is_the_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pcm = tmp_path / "pcm"
    pcm.write_bytes(struct.pack("<4h", 0, 16384, -16384, 32767) + b"\0")
    program = tmp_path / "ffmpeg"
    program.write_text(SLOW.format(python=sys.executable, pcm=str(pcm)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    sound = read_audio(str(SOUNDS / "hello.m4a"), "hello.m4a", RATE)
    assert sound.samples.tolist() == pytest.approx([0.0, 0.5, -0.5, 1.0], abs=1e-4)


def test_a_missing_file_and_a_directory_are_said_so(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.wav", tmp_path):
        with pytest.raises(ValidationError, match=r"Audio file not found: clip\.wav"):
            read_audio(str(path), "clip.wav", RATE)


def test_a_path_that_no_disk_has_is_a_typed_error() -> None:
    with pytest.raises(MlxkError):
        read_audio("/a\0b", "clip.wav", RATE)


def test_an_empty_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    with pytest.raises(ValidationError, match="Empty audio file"):
        read_audio(str(tmp_path / "empty.wav"), "empty.wav", RATE)


def test_a_file_without_a_sample_is_said_so(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "clip.wav", [])
    with pytest.raises(ValidationError, match=r"holds no sound|damaged"):
        read_audio(str(path), "clip.wav", RATE)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.wav"
    with path.open("wb") as file:
        file.truncate(MAX_AUDIO_BYTES + 1)
    with pytest.raises(ValidationError, match=r"too large \(>50MB\)"):
        read_audio(str(path), "large.wav", RATE)


def test_a_small_file_with_days_of_silence_is_refused_without_decoding_all_of_it(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "slow.wav", np.zeros(MAX_AUDIO_SECONDS * 1000 + 2000), rate=1000)
    with pytest.raises(ValidationError, match=r"too long \(>2 h\)"):
        read_audio(str(path), "slow.wav", 2000)


@pytest.mark.parametrize("rate", [1, 999])
def test_samples_so_slow_that_nothing_said_is_in_them_are_refused_at_once(rate: int, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "slow.wav", np.zeros(20_000), rate=rate)
    with pytest.raises(ValidationError, match=f"The sample rate of {rate} Hz is not supported"):
        read_audio(str(path), "slow.wav", RATE)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(ValidationError, match=r"No regular file.*: pipe\.wav"):
        read_audio(str(tmp_path / "pipe.wav"), "pipe.wav", RATE)


def test_a_picture_is_no_sound(tmp_path: Path) -> None:
    path = tmp_path / "picture.wav"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValidationError, match="No known sound format"):
        read_audio(str(path), "picture.wav", RATE)


def test_numbers_that_are_none_become_silence(tmp_path: Path) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0.25] * 100, np.float32).tobytes()
    body = b"fmt " + struct.pack("<IHHIIHH", 16, 3, 1, RATE, RATE * 4, 4, 32) + b"data" + struct.pack("<I", len(values))
    path = tmp_path / "nan.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body) + len(values)) + b"WAVE" + body + values)
    samples = read_audio(str(path), "nan.wav", RATE).samples
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1


def test_no_damaged_file_does_more_than_raise_a_typed_error(tmp_path: Path) -> None:
    chance = random.Random(7)
    whole = [path.read_bytes() for path in (HELLO, SOUNDS / "hello.mp3", SOUNDS / "hello.flac")]
    path = tmp_path / "hostile"
    decoded = 0
    for _ in range(MUTATIONS):
        path.write_bytes(damaged(bytearray(chance.choice(whole)), chance))
        try:
            sound = read_audio(str(path), "hostile", RATE)
        except (ValidationError, BackendNotInstalledError, StorageError):
            continue
        assert np.isfinite(sound.samples).all()
        decoded += 1
    assert 0 < decoded < MUTATIONS


def damaged(data: bytearray, chance: random.Random) -> bytes:
    """Return a file that was cut, changed in its header or anywhere, or whose beginning is all that is right."""
    match chance.randrange(5):
        case 0:
            return bytes(data[: chance.randrange(len(data))])
        case 1:
            for _ in range(chance.randrange(1, 8)):
                data[chance.randrange(64)] = chance.randrange(256)
        case 2:
            for _ in range(chance.randrange(1, 30)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        case 3:
            return bytes(data[: chance.randrange(1, 60)]) + chance.randbytes(chance.randrange(3000))
        case _:
            start = chance.randrange(len(data))
            del data[start : start + chance.randrange(1, 200)]
    return bytes(data)
