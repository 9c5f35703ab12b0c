"""The contract of the video decoder, run on every adapter."""

import pytest
from doubles.video_decoder import InMemoryVideoDecoder
from models.clips import encoded, greys, written

from mlxk.adapters.opencv.video_decoder import OpenCvVideoDecoder
from mlxk.application.ports.media import VideoDecoder
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.video import VideoSampling

CLIP = written(greys(30), "mp4", 10.0)
"""Three seconds."""

CUT = CLIP[:40]


@pytest.fixture(params=["opencv", "in_memory"])
def decoder(request: pytest.FixtureRequest) -> VideoDecoder:
    """Return a decoder for which ``CLIP`` has thirty frames in three seconds and ``CUT`` is damaged."""
    return OpenCvVideoDecoder() if request.param == "opencv" else InMemoryVideoDecoder({encoded(CUT).digest})


class TestDecode:
    def test_frames_are_spread_over_the_clip(self, decoder: VideoDecoder) -> None:
        found = decoder.decode(encoded(CLIP, VideoSampling(fps=2, max_frames=16)))
        assert [frame.index for frame in found.video.frames] == [0, 6, 12, 17, 23, 29]
        assert [frame.seconds for frame in found.video.frames] == pytest.approx([0.0, 0.6, 1.2, 1.7, 2.3, 2.9])
        assert (found.video.total_frames, found.video.rate, found.facts.seconds) == (30, 10.0, 3.0)

    def test_there_are_no_more_frames_than_asked_for(self, decoder: VideoDecoder) -> None:
        assert len(decoder.decode(encoded(CLIP, VideoSampling(fps=10, max_frames=4))).video.frames) == 4

    def test_the_same_clip_gives_the_same_frames(self, decoder: VideoDecoder) -> None:
        assert decoder.decode(encoded(CLIP)) == decoder.decode(encoded(CLIP))

    def test_other_frames_have_another_digest(self, decoder: VideoDecoder) -> None:
        once, again = (decoder.decode(encoded(CLIP, VideoSampling(fps=fps))).video for fps in (2, 5))
        assert once.digest != again.digest

    def test_a_sampling_out_of_range_is_refused_by_its_field(self, decoder: VideoDecoder) -> None:
        with pytest.raises(ValidationError, match="fps: must be above 0"):
            decoder.decode(encoded(CLIP, VideoSampling(fps=0)))

    def test_a_damaged_clip_is_refused_by_name(self, decoder: VideoDecoder) -> None:
        with pytest.raises(ValidationError, match=r"'clip\.mp4' is damaged, or no MP4"):
            decoder.decode(encoded(CUT))
