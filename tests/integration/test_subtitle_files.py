"""Subtitles as a public parser of theirs reads them: what was said, when it was said, and nothing else."""

import pysubs2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.transcription import Segment, Transcript, srt, vtt

WRITERS = {"srt": srt, "vtt": vtt}
WORDS = st.text(st.characters(categories=("L", "N", "P"), exclude_characters="{}\\<>&"), min_size=1, max_size=30)


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    """Draw what a model may have heard: segments one after the other, to the millisecond."""
    moments = sorted(draw(st.lists(st.integers(0, 7_200_000), min_size=2, max_size=20, unique=True)))
    spans = list(zip(moments[::2], moments[1::2], strict=False))
    segments = tuple(Segment(f" {draw(WORDS)}", start / 1000, end / 1000) for start, end in spans)
    return Transcript("", 7200.0, "en", segments)


@pytest.mark.parametrize("form", WRITERS)
@given(transcript=transcripts())
def test_every_cue_is_found_with_its_text_and_its_times(form: str, transcript: Transcript) -> None:
    cues = pysubs2.SSAFile.from_string(WRITERS[form](transcript), format_=form)
    found = [(cue.start, cue.end, cue.plaintext) for cue in cues]
    assert found == [
        (round(each.start * 1000), round(each.end * 1000), each.text.strip()) for each in transcript.segments
    ]


@pytest.mark.parametrize("form", WRITERS)
def test_silence_has_no_cues(form: str) -> None:
    assert len(pysubs2.SSAFile.from_string(WRITERS[form](Transcript("", 2.5)), format_=form)) == 0
