"""Decodes audio files to samples: format detection, limits, decoding and resampling. Uses no MLX."""

import contextlib
import hashlib
import importlib.util
import math
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import attrs
import numpy as np

from mlxk.application.ports.media import AudioDecoder
from mlxk.domain.errors import BackendNotInstalledError, StorageError, ValidationError
from mlxk.domain.generation.media import AUDIO_RATE, MAX_AUDIO_BYTES, DecodedAudio
from mlxk.domain.transcription import MAX_AUDIO_SECONDS

Samples = np.ndarray[Any, np.dtype[np.float32]]

IN_PROCESS = frozenset({"WAV", "MP3", "FLAC"})
"""Formats that are decoded without ffmpeg."""

_FFMPEG_SECONDS = 900
"""Limit of ffmpeg's time, both wall-clock and processor time."""

_FRAME_SYNC = 0xE0
_MAX_TAGS = 8
_HEADER_BYTES = 64 * 1024

_EXTENSIBLE = 0xFFFE
_WAV_ENCODINGS = frozenset({0x0, 0x1, 0x2, 0x3, 0x6, 0x7, 0x11})
"""Encodings of WAV files that are decoded without ffmpeg; the decoder itself refuses 0."""

_MAX_CHANNELS = 64
_CHUNK_FRAMES = 192_000
"""Maximum number of frames decoded at a time."""

_MIN_SAMPLE_RATE = 1_000
"""Hz. Lower rates leave no speech, and resampling takes longer the lower the rate."""

_MAX_FILTER_STEPS = 50_000
"""Limit of the resampling filter's size: the larger rate over the common divisor. At the limit it takes 50 MB."""


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


def read_audio(path: str, name: str, rate: int, longest: int = MAX_AUDIO_SECONDS) -> AudioSamples:
    """Decode a file.

    Args:
        path: The file.
        name: Its name in error messages.
        rate: Sample rate of the result, Hz.
        longest: Maximum duration, seconds; little more is decoded.

    Raises:
        ValidationError: It is missing, empty, too large, too long, or not audio.
        StorageError: It cannot be read.
        BackendNotInstalledError: Its format needs ffmpeg, which is not installed.
    """
    kind, in_process = _format_of_file(path, name)
    with _with_data_size(path) if kind == "WAV" else contextlib.nullcontext(path) as complete:
        samples = (_in_process if in_process else _with_ffmpeg)(complete, name, kind, rate, longest)
    audio = AudioSamples(samples, rate)
    if len(samples) == 0:
        raise ValidationError(f"The audio file holds no sound: {name}")
    if audio.seconds > longest:
        limit = f"{longest // 3600} h" if longest >= 3600 else f"{longest} s"
        raise ValidationError(f"Audio file too long (>{limit}): {name}", hint="Split it.")
    return audio


def _format_of_file(path: str, name: str) -> tuple[str, bool]:
    """Return the format by the first bytes, and whether it is decoded without ffmpeg; see ``read_audio`` for errors."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ValidationError(f"Audio file not found: {name}", hint="That is a directory; name a file.")
        if not stat.S_ISREG(status.st_mode):
            raise ValidationError(f"No regular file, such as a pipe or a device: {name}", hint="Save the sound first.")
        if status.st_size > MAX_AUDIO_BYTES:
            raise ValidationError(f"Audio file too large (>{MAX_AUDIO_BYTES // 1000**2}MB): {name}")
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
        kind = format_of(head)
        if head.startswith(b"ID3"):
            kind = _format_after_tags(path) or kind
    except FileNotFoundError as error:
        raise ValidationError(f"Audio file not found: {name}") from error
    except (OSError, ValueError) as error:
        raise StorageError(f"The audio file cannot be read ({type(error).__name__}): {name}") from error
    if not head:
        raise ValidationError(f"Empty audio file: {name}")
    if kind is None:
        others = ", ".join(sorted(_DEMUXERS.keys() - IN_PROCESS))
        raise ValidationError(
            f"No known sound format: {name}", hint=f"WAV, MP3 and FLAC are read; with ffmpeg also {others}."
        )
    return kind, kind in IN_PROCESS and (kind != "WAV" or _WavFormat.of(head).tag in _WAV_ENCODINGS)


@contextlib.contextmanager
def _with_data_size(path: str) -> Iterator[str]:
    """Yield the path of a WAV file, or of a temporary copy with the size of the sound where the file states none.

    Writers that were stopped, or wrote to a pipe, could not go back and state the size.

    Raises:
        StorageError: The file cannot be read, or there is no room for the copy.
    """
    with contextlib.ExitStack() as stack:
        try:
            offset = _missing_size_offset(path)
            if offset is not None:
                copy = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlxk-wav-")), "sound")
                shutil.copyfile(path, copy)
                with open(copy, "r+b") as file:
                    file.seek(offset)
                    file.write((os.path.getsize(copy) - offset - 4).to_bytes(4, "little"))
                path = copy
        except OSError as error:
            raise StorageError(f"The recording cannot be completed: {error.strerror}.") from error
        yield path


def _missing_size_offset(path: str) -> int | None:
    """Return the offset of the data chunk's size where that is 0 though sound follows; None for other files."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
    if head[:4] != b"RIFF" or int.from_bytes(head[4:8], "little") + 8 >= size:
        return None
    position = 12
    while position + 8 <= len(head):
        chunk_size = int.from_bytes(head[position + 4 : position + 8], "little")
        if head[position : position + 4] == b"data":
            return position + 4 if chunk_size == 0 and position + 8 < size else None
        position += 8 + chunk_size + chunk_size % 2
    return None


_SIGNATURES = (
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "OGG"),
    (0, b"\x1aE\xdf\xa3", "WebM"),
    (0, b"caff", "CAF"),
    (0, b"ID3", "MP3"),
    (0, b"riff\x2e\x91\xcf\x11", "WAV"),
    (0, b".snd", "AU"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (0, b"\x0b\x77", "AC-3"),
    (0, b"\0\0\x01\xba", "MPEG"),
    (4, b"ftyp", "M4A"),
    (4, b"moov", "M4A"),
    (4, b"mdat", "M4A"),
    (4, b"wide", "M4A"),
)
"""Offset and bytes that identify each format; the lower-case riff is Sony Wave64."""

_DEMUXERS = {
    "AAC": "aac",
    "AC-3": "ac3",
    "AIFF": "aiff",
    "AMR": "amr",
    "AU": "au",
    "CAF": "caf",
    "M4A": "mov",
    "MP3": "mp3",
    "MPEG": "mpeg",
    "OGG": "ogg",
    "WAV": "wav",
    "WMA": "asf",
    "WebM": "matroska",
}
"""The only ffmpeg demuxer that may read each format. None reads playlists, which can name other files."""

_NEEDS_SEEKING = frozenset({"AIFF", "CAF", "M4A"})
"""Formats whose index may come after the sound."""


def format_of(head: bytes) -> str | None:
    """Return the audio format by a file's first bytes; None when unknown."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    found = next((kind for start, magic, kind in _SIGNATURES if head[start:].startswith(magic)), None)
    if found is None and len(head) > 1 and head[0] == 0xFF and head[1] & _FRAME_SYNC == _FRAME_SYNC:
        return "MP3" if head[1] & 0x06 else "AAC"
    return found


def _format_after_tags(path: str) -> str | None:
    """Return the format of the content after the ID3 tags at the beginning of a file; None when unknown."""
    with open(path, "rb") as file:
        for _ in range(_MAX_TAGS):
            head = file.read(12)
            if not head.startswith(b"ID3") or len(head) < 12:
                return format_of(head)
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            file.seek(size - 2 + (10 if head[5] & 0x10 else 0), os.SEEK_CUR)
    return None


def _in_process(path: str, name: str, kind: str, rate: int, longest: int) -> Samples:
    # Not at the top, since mlx-audio, which depends on miniaudio, may be absent.
    import miniaudio
    from mlx_audio.resample import resample_audio_chunks

    inspect, stream = {
        "WAV": (miniaudio.wav_get_file_info, miniaudio.wav_stream_file),
        "MP3": (miniaudio.mp3_get_file_info, miniaudio.mp3_stream_file),
        "FLAC": (miniaudio.flac_get_file_info, miniaudio.flac_stream_file),
    }[kind]
    damaged = f"The audio file is damaged, or not what it says it is: {name}"
    try:
        info = inspect(path)
        _require_supported(info.sample_rate, info.nchannels, rate, name)
        # These readers yield the channels unchanged; miniaudio's own mixing to mono reorders some layouts.
        weights = _mono_weights(path, kind, info.nchannels)
        chunks = (
            np.asarray(chunk, np.float32).reshape(-1, info.nchannels) @ weights
            for chunk in stream(path, min(info.sample_rate, _CHUNK_FRAMES))
        )
        limit = (longest + 1) * rate
        if info.sample_rate != rate:
            samples = resample_audio_chunks(chunks, info.sample_rate, rate, info.num_frames, max_output_frames=limit)
        else:
            samples = _first_samples(chunks, limit)
    except (miniaudio.MiniaudioError, ValueError, RuntimeError, ArithmeticError, EOFError, MemoryError) as error:
        raise ValidationError(damaged) from error
    return np.nan_to_num(np.asarray(samples, dtype=np.float32).reshape(-1))


def _require_supported(source_rate: int, channels: int, rate: int, name: str) -> None:
    filter_steps = max(source_rate, rate) // math.gcd(source_rate, rate)
    if source_rate < _MIN_SAMPLE_RATE or filter_steps > _MAX_FILTER_STEPS:
        raise ValidationError(f"The sample rate of {source_rate} Hz is not supported: {name}")
    if not 1 <= channels <= _MAX_CHANNELS:
        raise ValidationError(f"{channels} channels are not supported, at most {_MAX_CHANNELS} are: {name}")


def _first_samples(chunks: Iterable[Samples], limit: int) -> Samples:
    taken, count = [np.zeros(0, np.float32)], 0
    for chunk in chunks:
        taken.append(chunk)
        count += len(chunk)
        if count >= limit:
            break
    return np.concatenate(taken)[:limit]


_FRONT, _CENTER, _SURROUND = math.sqrt(0.5), 1.0, 0.5
_WEIGHTS = (
    *(_FRONT, _FRONT, _CENTER, 0.0, _SURROUND, _SURROUND),  # left, right, centre, low frequencies, back left and right
    *(_FRONT, _FRONT, _SURROUND, _SURROUND, _SURROUND),  # left and right of centre, back centre, side left and right
    *(0.0, _FRONT, 0.0, _FRONT),  # above: middle, front left, front centre, front right
)
"""Weight of each speaker in the mono mix, in the order of a channel mask's bits; used weights are scaled to a sum of 1.

The ratios are those of ITU-R BS.775, so that a voice is equally loud in every layout.
"""

_MASKS = {2: 0x3, 3: 0xB, 4: 0x107, 5: 0x37, 6: 0x3F, 7: 0x70F, 8: 0x63F}
"""Channel masks by number of channels, for files that state none."""

_FLAC_MASKS = {**_MASKS, 3: 0x7, 4: 0x33}
"""The same as the FLAC format defines them."""

_STATED_MASK = re.compile(rb"WAVEFORMATEXTENSIBLE_CHANNEL_MASK=0x([0-9A-Fa-f]{1,8})", re.IGNORECASE)


def _mono_weights(path: str, kind: str, channels: int) -> Samples:
    """Return the weight of each channel in the mono mix, scaled from 16-bit samples to the range from -1 to 1."""
    mask = (_FLAC_MASKS if kind == "FLAC" else _MASKS).get(channels, 0)
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
    stated = _WavFormat.of(head).mask if kind == "WAV" else 0
    if kind == "FLAC" and (found := _STATED_MASK.search(head)):
        stated = int(found[1], 16)
    if stated.bit_count() == channels:
        mask = stated
    speakers = [bit for bit in range(mask.bit_length()) if mask >> bit & 1]
    weights = np.array([_WEIGHTS[bit] if bit < len(_WEIGHTS) else 0.0 for bit in speakers], np.float32)
    if not weights.any() or channels == 1:  # no known layout, or low frequencies only
        weights = np.ones(channels, np.float32)
    return np.asarray(weights / weights.sum() / np.float32(32768.0), np.float32)


@attrs.frozen
class _WavFormat:
    """Fields of a WAV file's ``fmt`` chunk."""

    tag: int = 0
    """The encoding; 0 without such a chunk."""
    mask: int = 0
    """The channel mask, one bit for the speaker of each channel; 0 where none is stated."""

    @classmethod
    def of(cls, head: bytes) -> "_WavFormat":
        """Parse the first bytes of a file."""
        start = head.find(b"fmt ")
        order: Literal["little", "big"] = "big" if head.startswith(b"RIFX") else "little"
        # Sony Wave64 has chunk identifiers of 16 bytes, and sizes of 8.
        begin = start + (24 if head.startswith(b"riff") else 8)
        body = head[begin : begin + 40] if start >= 0 else b""
        tag = int.from_bytes(body[:2], order)
        if tag != _EXTENSIBLE or len(body) < 26:
            return cls(tag)
        return cls(int.from_bytes(body[24:26], order), int.from_bytes(body[20:24], order))


def _with_ffmpeg(path: str, name: str, kind: str, rate: int, longest: int) -> Samples:
    program = shutil.which("ffmpeg")
    if program is None:
        raise _needs_ffmpeg(name, f"{kind} in this encoding" if kind in IN_PROCESS else kind)
    # Containers can refer to other files and addresses, so ffmpeg gets the bytes by a pipe and may open nothing else.
    # Formats that need seeking are cached by ffmpeg in a temporary file.
    protocols, source = ("cache,pipe", "cache:pipe:0") if kind in _NEEDS_SEEKING else ("pipe", "pipe:0")
    command = [program, "-nostdin", "-v", "error", "-timelimit", str(_FFMPEG_SECONDS), "-threads", "1"]
    command += ["-protocol_whitelist", protocols, "-f", _DEMUXERS[kind], "-i", source, "-map", "0:a:0", "-vn"]
    command += ["-t", str(longest + 1), "-fs", str((longest + 1) * rate * 2)]
    command += ["-f", "s16le", "-ac", "1", "-ar", str(rate), "pipe:1"]
    try:
        with open(path, "rb") as file:
            result = subprocess.run(command, stdin=file, capture_output=True, timeout=_FFMPEG_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValidationError(f"ffmpeg took longer than {_FFMPEG_SECONDS} s to decode: {name}") from error
    except OSError as error:
        raise BackendNotInstalledError(f"The program ffmpeg cannot be run: {error.strerror}.") from error
    if result.returncode != 0 and not result.stdout:
        raise ValidationError(f"The audio file is damaged, or not what it says it is: {name}")
    whole_samples = result.stdout[: len(result.stdout) // 2 * 2]
    return np.frombuffer(whole_samples, dtype="<i2").astype(np.float32) / 32768.0


def _needs_ffmpeg(name: str, kind: str) -> BackendNotInstalledError:
    message = f"Reading {kind} needs the program ffmpeg, which is not installed: {name}"
    return BackendNotInstalledError(
        message,
        detail={"problems": [{"param": "file", "message": message}]},
        hint="Install it (macOS: brew install ffmpeg; Debian: apt install ffmpeg), or convert the file to WAV.",
    )


class MlxAudioDecoder(AudioDecoder):
    """Decodes with mlx-audio's readers, and formats that they do not support with ffmpeg."""

    def decode(self, path: str, name: str) -> DecodedAudio:
        if importlib.util.find_spec("mlx_audio") is None:
            raise BackendNotInstalledError("Reading sound needs mlx-audio.", hint="Install it: pip install mlx-audio")
        samples = read_audio(path, name, AUDIO_RATE).samples.astype("<f4").tobytes()
        return DecodedAudio(samples, hashlib.sha256(samples).hexdigest())
