"""Sound files: what is read, what is refused and how, and that no file brings anything down."""

import itertools
import json
import math
import os
import random
import stat
import struct
import sys
from pathlib import Path
from typing import Any

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


L, R, C, LOW, BACK, SIDE, TOP = math.sqrt(0.5), math.sqrt(0.5), 1.0, 0.0, 0.5, 0.5, math.sqrt(0.5)
"""What a speaker adds to mono before all is scaled to one, as ITU-R BS.775 and ffmpeg have it."""
LAYOUTS = [
    (None, [1.0]),
    (None, [L, R]),
    (None, [L, R, LOW]),
    (None, [L, R, C, BACK]),
    (None, [L, R, C, BACK, BACK]),
    (None, [L, R, C, LOW, BACK, BACK]),
    (None, [L, R, C, LOW, BACK, SIDE, SIDE]),
    (None, [L, R, C, LOW, BACK, BACK, SIDE, SIDE]),
    (None, [1.0] * 12),
    (0x8, [1.0]),
    (0x600, [1.0, 1.0]),
    (0x7, [L, R, C]),
    (0x33, [L, R, BACK, BACK]),
    (0xF, [L, R, C, LOW]),
    (0x60F, [L, R, C, LOW, SIDE, SIDE]),
    (0xFF, [L, R, C, LOW, BACK, BACK, L, R]),
    (0x503F, [L, R, C, LOW, BACK, BACK, TOP, TOP]),
    (0x3, [L, R, C, LOW, BACK, BACK]),
]
"""Channel mask of a file, None without one, and the weight of each of its channels."""
PCM = bytes.fromhex("0100000000001000800000aa00389b71")


def wav_of(frames: np.ndarray[Any, Any], mask: int | None, rate: int = RATE, form: bytes = b"RIFF") -> bytes:
    """Return a WAV file of 16-bit frames, one column a channel."""
    channels, body = frames.shape[1], frames.astype("<i2").tobytes()
    kind = 1 if mask is None else 0xFFFE
    fmt = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * 2, channels * 2, 16)
    if mask is not None:
        fmt += struct.pack("<HHI", 22, 16, mask) + PCM
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt
    if form == b"RF64":
        sizes = struct.pack("<QQQI", 36 + len(chunks) + 8 + len(body), len(body), len(frames), 0)
        chunks = b"ds64" + struct.pack("<I", len(sizes)) + sizes + chunks
    stated = 0xFFFFFFFF if form == b"RF64" else len(body)
    chunks += b"data" + struct.pack("<I", stated) + body
    return form + struct.pack("<I", 0xFFFFFFFF if form == b"RF64" else 4 + len(chunks)) + b"WAVE" + chunks


@pytest.mark.parametrize(("mask", "weights"), LAYOUTS)
def test_the_channels_of_any_layout_are_mixed_as_ffmpeg_mixes_them(
    mask: int | None, weights: list[float], tmp_path: Path
) -> None:
    frames = np.random.default_rng(len(weights)).integers(-9000, 9000, (4000, len(weights)))
    path = tmp_path / "clip.wav"
    path.write_bytes(wav_of(frames, mask))
    expected = frames @ (np.array(weights) / sum(weights)) / 32768
    assert read_audio(str(path), "clip.wav", RATE).samples == pytest.approx(expected, abs=1e-5)


def crc(data: bytes, polynomial: int, bits: int) -> bytes:
    """Return the checksum of a FLAC frame or of its header."""
    rest = 0
    for byte in data:
        rest ^= byte << (bits - 8)
        for _ in range(8):
            rest = (rest << 1 ^ (polynomial if rest >> (bits - 1) else 0)) & ((1 << bits) - 1)
    return rest.to_bytes(bits // 8, "big")


def flac_of(frames: np.ndarray[Any, Any], mask: int | None) -> bytes:
    """Return a FLAC file of one block of at most 256 uncompressed 16-bit frames, with a comment about the mask."""
    count, channels = frames.shape
    stream = struct.pack(">HHHIH", count, count, 0, 0, 0)[:10]
    stream += (RATE << 44 | (channels - 1) << 41 | 15 << 36 | count).to_bytes(8, "big") + bytes(16)
    text = b"" if mask is None else b"waveformatextensible_channel_mask=0x%X" % mask
    comment = struct.pack("<II", 0, int(bool(text))) + (struct.pack("<I", len(text)) + text if text else b"")
    head = b"\xff\xf8" + bytes([0x60, (channels - 1) << 4 | 8, 0, count - 1])
    frame = head + crc(head, 0x07, 8)
    frame += b"".join(b"\x02" + column.astype(">i2").tobytes() for column in frames.T)
    blocks = b"\0" + len(stream).to_bytes(3, "big") + stream + b"\x84" + len(comment).to_bytes(3, "big") + comment
    return b"fLaC" + blocks + frame + crc(frame, 0x8005, 16)


@pytest.mark.parametrize(
    ("mask", "weights"),
    [
        (None, [L, R, C]),
        (0x7, [L, R, C]),
        (0xB, [L, R, LOW]),
        (0x3, [L, R, C]),
        (None, [L, R, BACK, BACK]),
        (0x107, [L, R, C, BACK]),
        (0xF, [L, R, C, LOW]),
    ],
)
def test_the_channels_of_flac_are_mixed_as_its_comment_says(
    mask: int | None, weights: list[float], tmp_path: Path
) -> None:
    frames = np.random.default_rng(len(weights)).integers(-9000, 9000, (200, len(weights)))
    path = tmp_path / "clip.flac"
    path.write_bytes(flac_of(frames, mask))
    expected = frames @ (np.array(weights) / sum(weights)) / 32768
    assert read_audio(str(path), "clip.flac", RATE).samples == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_one_voice_in_every_channel_is_that_voice(channels: int, rate: int, tmp_path: Path) -> None:
    voice = np.array(murmur(0.5, rate=rate)) * 32767
    path = write_wav(tmp_path / "one.wav", murmur(0.5, rate=rate), rate)
    alone = read_audio(str(path), "one.wav", RATE).samples
    path.write_bytes(wav_of(np.repeat(voice[:, None], channels, axis=1), None, rate))
    assert read_audio(str(path), "clip.wav", RATE).samples == pytest.approx(alone, abs=2e-4)


def test_large_forms_of_wav_are_read(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).integers(-9000, 9000, (4000, 1))
    path = tmp_path / "large.wav"
    path.write_bytes(wav_of(frames, None, form=b"RF64"))
    assert read_audio(str(path), "large.wav", RATE).samples == pytest.approx(frames[:, 0] / 32768, abs=1e-5)


def test_more_channels_than_any_recording_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(wav_of(np.zeros((10, 65), np.int16), None))
    with pytest.raises(ValidationError, match=r"65 channels are not supported.*clip\.wav"):
        read_audio(str(path), "clip.wav", RATE)


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


RECORDING = """#!{python}
import json, pathlib, sys
pathlib.Path({seen!r}).write_text(json.dumps([sys.argv[1:], len(sys.stdin.buffer.read())]))
sys.stdout.buffer.write(bytes(4))
"""
OTHERS = {
    b"OggS": ("ogg", "pipe"),
    b"\x1aE\xdf\xa3": ("matroska", "pipe"),
    b"\xff\xf1": ("aac", "pipe"),
    b"ID3\4\0\0\0\0\0\0\xff\xf1": ("aac", "pipe"),
    b".snd": ("au", "pipe"),
    b"#!AMR\n": ("amr", "pipe"),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": ("asf", "pipe"),
    b"\0\0\x01\xba": ("mpeg", "pipe"),
    b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x55\0": ("wav", "pipe"),
    b"\0\0\0\x18ftypM4A ": ("mov", "cache,pipe"),
    b"\0\0\0\x18moov": ("mov", "cache,pipe"),
    b"caff": ("caf", "cache,pipe"),
    b"FORM\0\0\0\0AIFF": ("aiff", "cache,pipe"),
}


@pytest.mark.parametrize("beginning", OTHERS)
def test_ffmpeg_gets_the_bytes_alone_one_demuxer_and_limits(
    beginning: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, program, seen = tmp_path / "clip", tmp_path / "ffmpeg", tmp_path / "seen.json"
    path.write_bytes(beginning + bytes(500))
    program.write_text(RECORDING.format(python=sys.executable, seen=str(seen)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    read_audio(str(path), "clip", RATE)
    arguments, size = json.loads(seen.read_text())
    after = dict(itertools.pairwise(arguments))
    before_input = arguments[: arguments.index("-i")]
    assert size == len(beginning) + 500
    assert (before_input[before_input.index("-f") + 1], after["-protocol_whitelist"]) == OTHERS[beginning]
    assert after["-i"].endswith("pipe:0")
    assert str(path) not in arguments
    assert int(after["-timelimit"]) <= 900
    assert int(after["-t"]) == MAX_AUDIO_SECONDS + 1
    assert int(after["-fs"]) == (MAX_AUDIO_SECONDS + 1) * RATE * 2


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "ffconcat version 1.0\nfile 'a.wav'\n", "<MPD xmlns=''/>"]
)
def test_playlists_are_no_sound_even_with_ffmpeg(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "list.m4a").write_text(text)
    with pytest.raises(ValidationError, match=r"No known sound format: list\.m4a"):
        read_audio(str(tmp_path / "list.m4a"), "list.m4a", RATE)


@pytest.mark.parametrize(
    ("program", "error", "said"),
    [
        ("#!/no/such/interpreter\n", BackendNotInstalledError, "The program ffmpeg cannot be run: No such file or"),
        ("#!/bin/sh\nexit 1\n", ValidationError, "The audio file is damaged, or not what it says it is: hello.ogg"),
    ],
)
def test_an_ffmpeg_that_does_not_run_is_told_from_a_file_that_it_cannot_read(
    program: str, error: type[MlxkError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ffmpeg").write_text(program)
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(error) as raised:
        read_audio(str(SOUNDS / "hello.ogg"), "hello.ogg", RATE)
    assert raised.value.message.startswith(said)


def test_a_wav_of_another_encoding_asks_for_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x55\0" + bytes(100))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendNotInstalledError, match=r"WAV in this encoding needs the program ffmpeg.*: clip\.wav"):
        read_audio(str(path), "clip.wav", RATE)


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
