"""Sound encoding by the program ffmpeg, which reads samples from a pipe, writes to a pipe, and opens nothing else."""

import shutil
import subprocess

from mlxk.application.ports.media import SoundEncoder
from mlxk.domain.errors import BackendNotInstalledError, ExecutionError

_SECONDS = 300
"""Limit of ffmpeg, in wall-clock and in processor time."""

_OPTIONS = {
    "mp3": ("-c:a", "libmp3lame", "-q:a", "2", "-f", "mp3"),
    "opus": ("-c:a", "libopus", "-b:a", "48k", "-f", "ogg"),
    "aac": ("-c:a", "aac", "-b:a", "96k", "-f", "adts"),
    "flac": ("-c:a", "flac", "-f", "flac"),
}
"""Arguments for encoder and container, by format."""


class FfmpegSoundEncoder(SoundEncoder):
    """Encodes with the ffmpeg of this machine, if it is installed."""

    def problem(self, kind: str) -> str | None:
        if kind not in _OPTIONS:
            return f"'{kind}' is not known"
        return None if shutil.which("ffmpeg") else "it needs the program ffmpeg, which is not installed"

    def encode(self, pcm: bytes, sample_rate: int, kind: str) -> bytes:
        program = shutil.which("ffmpeg")
        if program is None or kind not in _OPTIONS:
            raise BackendNotInstalledError(
                f"Sound as {kind}: {self.problem(kind)}.",
                hint="Install it (macOS: brew install ffmpeg; Debian: apt install ffmpeg), or ask for wav.",
            )
        command = [program, "-nostdin", "-v", "error", "-timelimit", str(_SECONDS), "-threads", "1"]
        command += ["-protocol_whitelist", "pipe", "-f", "s16le", "-ar", str(sample_rate), "-ac", "1", "-i", "pipe:0"]
        command += ["-map_metadata", "-1", "-fflags", "+bitexact", *_OPTIONS[kind], "pipe:1"]
        try:
            done = subprocess.run(command, input=pcm, capture_output=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ExecutionError(f"ffmpeg took longer than {_SECONDS} s to encode {kind}.") from error
        except OSError as error:
            raise BackendNotInstalledError(f"The program ffmpeg cannot be run: {error.strerror}.") from error
        if done.returncode != 0 or not done.stdout:
            message = done.stderr.decode("utf-8", "replace")
            if "ncoder" in message:  # "Unknown encoder 'libmp3lame'", in either case
                raise BackendNotInstalledError(
                    f"The ffmpeg of this machine has no encoder for {kind}.",
                    hint="Install a complete one, or ask for wav.",
                )
            raise ExecutionError(f"ffmpeg could not encode {kind} (status {done.returncode}).")
        return done.stdout
