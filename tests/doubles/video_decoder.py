"""In-memory double of the video decoder.

decoder = InMemoryVideoDecoder(damaged={digest}, frames=30)
"""

from collections.abc import Collection

from mlxk.application.ports.media import VideoDecoder
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import DecodedImage, DecodedVideo, VideoFrame
from mlxk.domain.generation.media_facts import ImageFacts, ReadVideo, VideoFacts
from mlxk.domain.generation.video import EncodedVideo, frame_digest


class InMemoryVideoDecoder(VideoDecoder):
    """Decodes every clip into frames of one pixel, whose colours are derived from digest and frame index.

    Args:
        damaged: The digests of clips that cannot be decoded.
        frames: Number of frames of every clip.
        rate: Frames per second of every clip.
        recorded: Recording metadata of every clip.
    """

    def __init__(
        self,
        damaged: Collection[str] = (),
        frames: int = 30,
        rate: float = 10.0,
        recorded: ImageFacts | None = None,
    ) -> None:
        self._damaged = damaged
        self._frames = frames
        self._rate = rate
        self._recorded = recorded or ImageFacts()

    def decode(self, video: EncodedVideo) -> ReadVideo:
        video.sampling.validate()
        if video.digest in self._damaged:
            raise video.refused(
                ValidationError, f"is damaged, or no {video.container.name} with frames that can be decoded"
            )
        frames = tuple(self._frame(video, index) for index in video.sampling.indices(self._frames, self._rate))
        facts = VideoFacts(1, 1, self._frames / self._rate, "h264", self._recorded)
        return ReadVideo(DecodedVideo(frames, self._frames, self._rate), facts)

    def _frame(self, video: EncodedVideo, index: int) -> VideoFrame:
        digest = frame_digest(video, index, 1, 1)
        return VideoFrame(index, index / self._rate, DecodedImage(1, 1, bytes.fromhex(digest[:6]), digest))
