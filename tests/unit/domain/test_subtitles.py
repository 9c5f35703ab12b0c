"""Transcripts as subtitle files: what a player reads is what was said, when it was said."""

import re

from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.transcription import Segment, Transcript, segments_table, srt, vtt

TWO = Transcript("Hello. Bye.", 4.0, "en", (Segment(" Hello.", 0.0, 1.5), Segment(" Bye.", 3661.25, 3662.0)))

MOMENTS = st.floats(0, 100 * 3600, allow_nan=False)
SEGMENTS = st.lists(st.builds(Segment, text=st.text(), start=MOMENTS, end=MOMENTS), max_size=5).map(tuple)
CUE = re.compile(r"(\d\d+):([0-5]\d):([0-5]\d)([,.])(\d{3}) --> (\d\d+):([0-5]\d):([0-5]\d)[,.](\d{3})")


def test_subrip_numbers_its_cues_and_puts_a_comma_before_milliseconds() -> None:
    assert srt(TWO) == ("1\n00:00:00,000 --> 00:00:01,500\nHello.\n\n2\n01:01:01,250 --> 01:01:02,000\nBye.\n")


def test_webvtt_begins_with_its_name() -> None:
    assert vtt(TWO) == ("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello.\n\n01:01:01.250 --> 01:01:02.000\nBye.\n")


def test_what_begins_markup_in_webvtt_is_escaped() -> None:
    assert "a &lt; b &amp; c --&gt; d" in vtt(Transcript("", 1.0, segments=(Segment("a < b & c --> d", 0, 1),)))


def test_a_blank_line_in_a_text_does_not_end_its_cue() -> None:
    said = Transcript("", 2.0, segments=(Segment("one\n\n\ntwo", 0, 1), Segment("three", 1, 2)))
    assert srt(said).count("\n\n") == 1


def test_a_transcript_without_times_is_one_cue_as_long_as_the_recording() -> None:
    assert srt(Transcript("Hello.", 2.5)) == "1\n00:00:00,000 --> 00:00:02,500\nHello.\n"


def test_silence_makes_no_cue() -> None:
    assert srt(Transcript("", 2.5)) == ""
    assert vtt(Transcript("", 2.5)) == "WEBVTT\n"


@given(SEGMENTS)
def test_every_cue_is_well_formed_and_lasts(segments: tuple[Segment, ...]) -> None:
    for text in (srt(Transcript("", 1.0, segments=segments)), vtt(Transcript("", 1.0, segments=segments))):
        times = [line for line in text.splitlines() if re.match(r"\d\d+:\d\d:\d\d[,.]", line)]
        for line in times:
            found = CUE.fullmatch(line)
            assert found
            start, end = (
                tuple(int(part) for part in (*found.groups()[index : index + 3], found.groups()[index + 3 + shift]))
                for index, shift in ((0, 1), (5, 0))
            )
            assert start < end


def test_the_table_of_segments_reads_as_the_seeds_show_it() -> None:
    said = (Segment(" Hello", 0.0, 2.34), Segment(" a | b", 2.34, 3.0, speaker="S01"))
    assert segments_table(said) == (
        "<details>\n<summary>Audio Segments (2 segments)</summary>\n\n| Start | End | Text |\n|-------|-----|------|\n"
        "| 0.00s | 2.34s | Hello |\n| 2.34s | 3.00s | S01: a \\| b |\n\n</details>"
    )
    assert "(1 segment)" in segments_table(said[:1])
