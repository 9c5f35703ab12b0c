"""The contract of the sound encoder, held by every adapter; that of ffmpeg with a program in its place."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from doubles.sound_encoder import InMemorySoundEncoder

from mlxk.adapters.sound_encoding import FfmpegSoundEncoder
from mlxk.application.ports.media import SoundEncoder
from mlxk.domain.errors import BackendNotInstalledError, ExecutionError

KINDS = ("mp3", "opus", "aac", "flac")

Install = Callable[[str], None]

ECHO = "import sys; sys.stdout.buffer.write(b'encoded ' + sys.stdin.buffer.read())"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a program of Python where ffmpeg is looked for; there is none before."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(code: str) -> None:
        program = tmp_path / "ffmpeg"
        program.write_text(f"#!{sys.executable}\n{code}\n")
        program.chmod(0o755)

    return write


@pytest.fixture(params=["ffmpeg", "in_memory"])
def encoder(request: pytest.FixtureRequest, install: Install) -> SoundEncoder:
    """Return each adapter, able to encode."""
    if request.param == "in_memory":
        return InMemorySoundEncoder(KINDS)
    install(ECHO)
    return FfmpegSoundEncoder()


@pytest.fixture(params=["ffmpeg", "in_memory"])
def without(request: pytest.FixtureRequest, install: Install) -> SoundEncoder:
    """Return each adapter, unable to encode."""
    return InMemorySoundEncoder() if request.param == "in_memory" else FfmpegSoundEncoder()


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_encoder_every_format_is_refused_by_name(without: SoundEncoder, kind: str) -> None:
    assert without.problem(kind)
    with pytest.raises(BackendNotInstalledError, match=kind):
        without.encode(b"\0\0", 24_000, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_format_without_a_problem_is_encoded(encoder: SoundEncoder, kind: str) -> None:
    assert encoder.problem(kind) is None
    assert encoder.encode(b"\1\2" * 100, 24_000, kind).endswith(b"\1\2" * 100)


def test_ffmpeg_gets_the_samples_alone_and_limits(install: Install) -> None:
    install("import sys; sys.stdin.buffer.read(); print(sys.argv[1:])")
    said = FfmpegSoundEncoder().encode(b"\0\0", 16_000, "flac").decode()
    assert "'-protocol_whitelist', 'pipe'" in said
    assert "'-timelimit'" in said
    assert "'-f', 's16le', '-ar', '16000', '-ac', '1', '-i', 'pipe:0'" in said


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("import sys; sys.exit(\"Unknown encoder 'libmp3lame'\")", BackendNotInstalledError, "has no encoder for mp3"),
        ("import sys; sys.exit(3)", ExecutionError, "status 3"),
        ("", ExecutionError, "could not encode mp3"),
    ],
    ids=["no encoder", "failure", "nothing"],
)
def test_what_ffmpeg_cannot_do_is_said(code: str, error: type[Exception], words: str, install: Install) -> None:
    install(code)
    with pytest.raises(error, match=words):
        FfmpegSoundEncoder().encode(bytes(os.urandom(2000)), 24_000, "mp3")


def test_an_ffmpeg_that_cannot_be_run_and_a_format_that_nobody_knows_are_said(install: Install, tmp_path: Path) -> None:
    install("")
    (tmp_path / "ffmpeg").write_text("#!/no/such/interpreter\n")
    encoder = FfmpegSoundEncoder()
    with pytest.raises(
        BackendNotInstalledError, match=r"^The program ffmpeg cannot be run: No such file or directory\.$"
    ):
        encoder.encode(b"\0\0", 24_000, "mp3")
    assert encoder.problem("wma") == "'wma' is not known"
    with pytest.raises(BackendNotInstalledError, match=r"^Sound as wma: 'wma' is not known\.$"):
        encoder.encode(b"\0\0", 24_000, "wma")
