"""Sound for prompts: files decoded as for speech models, at the rate that models which also write text hear."""

import hashlib
import importlib.util

from mlxk.application.ports.sound_decoder import SoundDecoder
from mlxk.domain.errors import BackendNotInstalledError
from mlxk.domain.sound import SOUND_RATE, DecodedSound


class MlxSoundDecoder(SoundDecoder):
    """Decodes with mlx-audio's reader, and with ffmpeg what that does not read."""

    def decode(self, path: str, name: str) -> DecodedSound:
        """Decode a file; see the port."""
        from mlxk.adapters.mlx.speech.sound import read_sound

        if importlib.util.find_spec("mlx_audio") is None:
            raise BackendNotInstalledError("Reading sound needs mlx-audio.", hint="Install it: pip install mlx-audio")
        samples = read_sound(path, name, SOUND_RATE).samples.astype("<f4").tobytes()
        return DecodedSound(samples, hashlib.sha256(samples).hexdigest())
