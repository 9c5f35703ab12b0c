"""In-memory double of the sound encoder: a file consists of the format's name, the sample rate and the samples.

encoder = InMemorySoundEncoder({"mp3"})
encoder.encode(b"ab", 24_000, "mp3")    # b"mp3 24000 ab"
encoder.problem("flac")                 # "there is no encoder"
"""

from collections.abc import Collection

from mlxk.application.ports.media import SoundEncoder
from mlxk.domain.errors import BackendNotInstalledError


class InMemorySoundEncoder(SoundEncoder):
    """Encodes given formats.

    Args:
        kinds: The formats with an encoder.
    """

    def __init__(self, kinds: Collection[str] = ()) -> None:
        self.kinds = set(kinds)

    def problem(self, kind: str) -> str | None:
        return None if kind in self.kinds else "there is no encoder"

    def encode(self, pcm: bytes, sample_rate: int, kind: str) -> bytes:
        problem = self.problem(kind)
        if problem is not None:
            raise BackendNotInstalledError(f"Sound as {kind}: {problem}.")
        return f"{kind} {sample_rate} ".encode() + pcm
