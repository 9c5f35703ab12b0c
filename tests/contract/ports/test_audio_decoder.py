"""The contract of decoding sound for prompts, held by every adapter."""

from pathlib import Path

import pytest
from doubles.audio_decoder import InMemoryAudioDecoder
from models.pictures import as_wav, tone

from mlxk.adapters.mlx.audio_file import MlxAudioDecoder
from mlxk.application.ports.media import AudioDecoder
from mlxk.domain.errors import ValidationError


@pytest.fixture(params=["mlx", "in_memory"])
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> AudioDecoder:
    """Return a decoder that finds two files, of half a second and of 40 seconds."""
    sounds = {str(tmp_path / "short.wav"): tone(440, 0.5), str(tmp_path / "long.wav"): tone(220, 40)}
    if request.param == "in_memory":
        return InMemoryAudioDecoder(sounds)
    for path, sound in sounds.items():
        Path(path).write_bytes(as_wav(sound))
    return MlxAudioDecoder()


class TestSoundDecoder:
    def test_a_file_is_decoded_to_its_end(self, decoder: AudioDecoder, tmp_path: Path) -> None:
        assert decoder.decode(str(tmp_path / "short.wav"), "short.wav").seconds == 0.5
        assert decoder.decode(str(tmp_path / "long.wav"), "long.wav").seconds == 40

    def test_the_same_file_gives_the_same_sound(self, decoder: AudioDecoder, tmp_path: Path) -> None:
        short = decoder.decode(str(tmp_path / "short.wav"), "short.wav")
        assert decoder.decode(str(tmp_path / "short.wav"), "again.wav") == short
        assert decoder.decode(str(tmp_path / "long.wav"), "long.wav").digest != short.digest

    def test_a_missing_file_is_named_as_the_user_named_it(self, decoder: AudioDecoder, tmp_path: Path) -> None:
        with pytest.raises(ValidationError, match=r"Audio file not found: talk\.wav"):
            decoder.decode(str(tmp_path / "nowhere.wav"), "talk.wav")
