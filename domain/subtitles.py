"""Transcripts as text files: SubRip, WebVTT, and the collapsible table that can follow a text.

Pure renderings of what ``speech`` owns.
"""

from collections.abc import Sequence

from mlxk.domain.speech import Segment, Transcript

_SHORTEST = 0.001
"""Seconds a cue lasts at least; players skip those that last no time."""


def srt(transcript: Transcript) -> str:
    """Return a SubRip file: numbered cues, a comma before the milliseconds."""
    cues = (
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_cues(transcript), start=1)
    )
    return "\n".join(cues)


def vtt(transcript: Transcript) -> str:
    """Return a WebVTT file; the characters that begin markup in it are written as references."""
    cues = (
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(text)}\n" for start, end, text in _cues(transcript)
    )
    return "\n".join(["WEBVTT\n", *cues])


def segments_table(segments: Sequence[Segment]) -> str:
    """Return the collapsible table of segments, in Markdown, without an end of line."""
    count = f"{len(segments)} segment{'' if len(segments) == 1 else 's'}"
    rows = (f"| {segment.start:.2f}s | {segment.end:.2f}s | {_cell(segment)} |" for segment in segments)
    lines = ("<details>", f"<summary>Audio Segments ({count})</summary>", "", "| Start | End | Text |")
    return "\n".join([*lines, "|-------|-----|------|", *rows, "", "</details>"])


def _cues(transcript: Transcript) -> list[tuple[float, float, str]]:
    """Return what is shown when: the segments, or the whole text for models that time none."""
    said = [(each.start, each.end, _one_paragraph(each.text)) for each in transcript.segments]
    if not transcript.segments:
        said = [(0.0, transcript.seconds, _one_paragraph(transcript.text))]
    return [(start, max(end, start + _SHORTEST), text) for start, end, text in said if text]


def _one_paragraph(text: str) -> str:
    """Return a text without the blank lines that would end a cue."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cell(segment: Segment) -> str:
    text = " ".join(segment.text.split()).replace("|", "\\|")
    return f"{segment.speaker}: {text}" if segment.speaker else text
