"""Audio files as samples: format detection, limits, decoding and resampling. Uses no MLX."""

import hashlib
import importlib.util
import io
import math
import os
import shutil
import stat
import subprocess
from typing import Any

import attrs
import numpy as np

from mlxk.application.ports.audio_decoder import AudioDecoder
from mlxk.domain.errors import BackendNotInstalledError, StorageError, ValidationError
from mlxk.domain.generation.media import AUDIO_RATE, MAX_AUDIO_BYTES, DecodedAudio
from mlxk.domain.transcription import MAX_AUDIO_SECONDS

Samples = np.ndarray[Any, np.dtype[np.float32]]

IN_PROCESS = frozenset({"WAV", "MP3", "FLAC"})
"""Formats that are decoded without ffmpeg."""

_FFMPEG_SECONDS = 900.0
_FRAME_SYNC = 0xE0

_MIN_SAMPLE_RATE = 1_000
"""Hz; no speech is left below, and resampling takes longer the lower the rate."""

_MAX_FILTER_STEPS = 50_000
"""Size of the resampling filter, the larger rate over the common divisor; at this size it takes 50 MB."""


@attrs.frozen(eq=False)
class AudioSamples:
    """A decoded recording: mono, samples from -1 to 1."""

    samples: Samples
    rate: int
    """Sample rate, Hz."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / self.rate


def read_audio(path: str, name: str, rate: int) -> AudioSamples:
    """Decode a file.

    Args:
        path: The file.
        name: Its name in error messages.
        rate: Sample rate of the result, Hz.

    Raises:
        ValidationError: It is missing, empty, too large, too long, or not audio.
        StorageError: It cannot be read.
        BackendNotInstalledError: Its format needs ffmpeg, which is not installed.
    """
    kind = _format_of_file(path, name)
    samples = _in_process(path, name, kind, rate) if kind in IN_PROCESS else _with_ffmpeg(path, name, kind, rate)
    audio = AudioSamples(samples, rate)
    if len(samples) == 0:
        raise ValidationError(f"The audio file holds no sound: {name}")
    if audio.seconds > MAX_AUDIO_SECONDS:
        raise ValidationError(f"Audio file too long (>{MAX_AUDIO_SECONDS // 3600} h): {name}", hint="Split it.")
    return audio


def _format_of_file(path: str, name: str) -> str:
    """Return the format by the first bytes, after checking that the file can be read."""
    try:
        found = os.stat(path)
        size = found.st_size
        if stat.S_ISDIR(found.st_mode):
            raise ValidationError(f"Audio file not found: {name}", hint="That is a directory; name a file.")
        if not stat.S_ISREG(found.st_mode):
            raise ValidationError(f"No regular file, such as a pipe or a device: {name}", hint="Save the sound first.")
        if size > MAX_AUDIO_BYTES:
            raise ValidationError(f"Audio file too large (>{MAX_AUDIO_BYTES // 1000**2}MB): {name}")
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise ValidationError(f"Audio file not found: {name}") from error
    except (OSError, ValueError) as error:
        raise StorageError(f"The audio file cannot be read ({type(error).__name__}): {name}") from error
    if not head:
        raise ValidationError(f"Empty audio file: {name}")
    kind = format_of(head)
    if kind is None:
        raise ValidationError(
            f"No known sound format: {name}", hint="WAV, MP3 and FLAC are read; with ffmpeg also M4A, OGG, WebM, AIFF."
        )
    return kind


def format_of(head: bytes) -> str | None:
    """Return the audio format of a file's first bytes; None when unknown."""
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if head[4:8] == b"ftyp":
        return "M4A"
    known = {b"fLaC": "FLAC", b"OggS": "OGG", b"\x1aE\xdf\xa3": "WebM", b"caff": "CAF", b"ID3": "MP3"}
    found = next((kind for magic, kind in known.items() if head.startswith(magic)), None)
    if found is None and len(head) > 1 and head[0] == 0xFF and head[1] & _FRAME_SYNC == _FRAME_SYNC:
        return "MP3" if head[1] & 0x06 else "AAC"
    return found


def _in_process(path: str, name: str, kind: str, rate: int) -> Samples:
    # Not at the top: mlx-audio, which brings miniaudio, may be absent.
    import miniaudio
    from mlx_audio import audio_io

    with open(path, "rb") as file:
        data = file.read(MAX_AUDIO_BYTES + 1)
    inspect = {"WAV": miniaudio.wav_get_info, "MP3": miniaudio.mp3_get_info, "FLAC": miniaudio.flac_get_info}[kind]
    try:
        # Bytes, not the path: the reader would go by a file's name where its content cannot be decoded.
        stated = rate if data.startswith(b"ID3") else inspect(data).sample_rate
        if stated < _MIN_SAMPLE_RATE or max(stated, rate) // math.gcd(stated, rate) > _MAX_FILTER_STEPS:
            raise ValidationError(f"The sample rate of {stated} Hz is not supported: {name}")
        samples, _ = audio_io.read(
            io.BytesIO(data), dtype="float32", sample_rate=rate, nchannels=1, duration=float(MAX_AUDIO_SECONDS + 1)
        )
    except (miniaudio.MiniaudioError, ValueError, RuntimeError, ArithmeticError, EOFError) as error:
        if "ffmpeg not found" in str(error):
            raise _needs_ffmpeg(name, "AAC behind a tag") from error
        raise ValidationError(f"The audio file is damaged, or not what it says it is: {name}") from error
    return np.nan_to_num(np.asarray(samples, dtype=np.float32).reshape(-1))


def _with_ffmpeg(path: str, name: str, kind: str, rate: int) -> Samples:
    program = shutil.which("ffmpeg")
    if program is None:
        raise _needs_ffmpeg(name, kind)
    # Containers can refer to other files and URLs; the whitelist makes ffmpeg open this file only.
    command = [program, "-nostdin", "-v", "error", "-protocol_whitelist", "file", "-i", f"file:{path}", "-map", "0:a:0"]
    command += ["-t", str(MAX_AUDIO_SECONDS + 1), "-f", "s16le", "-ac", "1", "-ar", str(rate), "pipe:1"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_FFMPEG_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValidationError(f"ffmpeg took longer than {_FFMPEG_SECONDS:.0f} s to decode: {name}") from error
    except OSError as error:
        raise BackendNotInstalledError(f"The program ffmpeg cannot be run: {error.strerror}.") from error
    if done.returncode != 0 and not done.stdout:
        raise ValidationError(f"The audio file is damaged, or not what it says it is: {name}")
    complete = done.stdout[: len(done.stdout) // 2 * 2]
    return np.frombuffer(complete, dtype="<i2").astype(np.float32) / 32768.0


def _needs_ffmpeg(name: str, kind: str) -> BackendNotInstalledError:
    message = f"Reading {kind} needs the program ffmpeg, which is not installed: {name}"
    return BackendNotInstalledError(
        message,
        detail={"problems": [{"param": "file", "message": message}]},
        hint="Install it (macOS: brew install ffmpeg; Debian: apt install ffmpeg), or convert the file to WAV.",
    )


class MlxAudioDecoder(AudioDecoder):
    """Decodes with mlx-audio's reader, and the formats that it does not support with ffmpeg."""

    def decode(self, path: str, name: str) -> DecodedAudio:
        if importlib.util.find_spec("mlx_audio") is None:
            raise BackendNotInstalledError("Reading sound needs mlx-audio.", hint="Install it: pip install mlx-audio")
        samples = read_audio(path, name, AUDIO_RATE).samples.astype("<f4").tobytes()
        return DecodedAudio(samples, hashlib.sha256(samples).hexdigest())
