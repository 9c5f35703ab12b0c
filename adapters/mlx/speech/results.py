"""What the families of speech models return, as one kind of value.

Text, segments as dictionaries with several spellings, sentences of timed tokens, languages as codes, names or lists:
all of it is looked at by name, and what is missing is left out.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from mlxk.domain.speech import Segment, TimedWord, finite


@attrs.frozen
class PieceResult:
    """What was heard in one piece; times count from the piece's beginning."""

    text: str
    segments: tuple[Segment, ...]
    language: str | None


def piece_result(returned: object, seconds: float) -> PieceResult:
    """Understand what a model's ``generate`` returned.

    Args:
        returned: A text, or an object with ``text`` and perhaps segments, sentences and language, or a list of one.
        seconds: Length of the piece; segments that the model did not time have it.
    """
    if isinstance(returned, (list, tuple)) and returned:
        returned = returned[0]
    text = returned if isinstance(returned, str) else str(getattr(returned, "text", "") or "")
    sentences = getattr(returned, "sentences", None)
    found = sentences if sentences else getattr(returned, "segments", None)
    segments = tuple(_segment(each, seconds) for each in found or ())
    segments = tuple(segment for segment in segments if segment.text.strip())
    if not segments and text.strip():
        segments = (Segment(text.strip(), 0.0, seconds),)
    language = _language(getattr(returned, "language", None))
    return PieceResult(
        text.strip(), segments, language or next((each.language for each in segments if each.language), None)
    )


def moved(segment: Segment, seconds: float) -> Segment:
    """Return a segment as it is in a recording whose piece begins so much later."""
    words = tuple(attrs.evolve(word, start=word.start + seconds, end=word.end + seconds) for word in segment.words)
    return attrs.evolve(segment, start=segment.start + seconds, end=segment.end + seconds, words=words)


def _segment(found: object, seconds: float) -> Segment:
    entries = _entries(found)
    start, end = _number(entries, "start", "start_time"), _number(entries, "end", "end_time")
    if start is None or end is None or end <= start:
        start, end = 0.0, seconds
    speaker = _first(entries, "speaker", "speaker_id")
    return Segment(
        text=str(_first(entries, "text", "content") or "").strip(),
        start=min(max(start, 0.0), seconds),
        end=min(end, seconds),
        words=_words(entries),
        speaker=None if speaker is None else str(speaker),
        language=_language(entries.get("language")),
        mean_logprob=_number(entries, "avg_logprob"),
        compression_ratio=_number(entries, "compression_ratio"),
        silence_probability=_number(entries, "no_speech_prob"),
    )


def _words(entries: Mapping[str, Any]) -> tuple[TimedWord, ...]:
    timed = entries.get("words")
    if timed:
        return tuple(word for each in timed if (word := _word(each)) is not None)
    tokens = entries.get("tokens") or ()
    return tuple(_joined(each for each in map(_word, tokens) if each is not None))


def _word(found: object) -> TimedWord | None:
    """Return a timed word or token; None for anything else, such as the number of a token."""
    entries = _entries(found)
    text = _first(entries, "word", "text")
    start, end = _number(entries, "start", "start_time"), _number(entries, "end", "end_time")
    if not isinstance(text, str) or start is None or end is None:
        return None
    return TimedWord(text, start, end, _number(entries, "probability", "confidence"))


def _joined(tokens: Iterable[TimedWord]) -> list[TimedWord]:
    """Join tokens to words; a token that begins with a space begins a word."""
    words: list[TimedWord] = []
    for token in tokens:
        if words and not token.text.startswith((" ", "▁")):
            words[-1] = attrs.evolve(words[-1], text=words[-1].text + token.text, end=token.end)
        else:
            words.append(attrs.evolve(token, text=token.text.replace("▁", " ")))
    return [word for word in words if word.text.strip()]


def _entries(found: object) -> Mapping[str, Any]:
    """Return what a dictionary or an object holds, by name; nothing for a plain value."""
    return found if isinstance(found, Mapping) else getattr(found, "__dict__", {})


def _language(found: object) -> str | None:
    if isinstance(found, (list, tuple)):
        found = next((each for each in found if each), None)
    if not isinstance(found, str) or found.strip().lower() in {"", "auto", "unknown", "none"}:
        return None
    return found.strip()


def _first(entries: Mapping[str, Any], *names: str) -> object:
    return next((entries[name] for name in names if entries.get(name) is not None), None)


def _number(entries: Mapping[str, Any], *names: str) -> float | None:
    found = _first(entries, *names)
    if isinstance(found, str):
        try:
            found = float(found)
        except ValueError:
            return None
    return finite(found.item() if hasattr(found, "item") else found)
