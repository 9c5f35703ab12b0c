"""Transcription with every family except Whisper: the recording is split into chunks at quiet points.

mlx-audio's ``generate`` transcribes each chunk; the results of all families are converted to one type.
"""

import inspect
import itertools
import os
import tempfile
import wave
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import attrs
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_audio.stt.models.whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

from mlxk.adapters.mlx.audio_file import AudioSamples
from mlxk.adapters.mlx.speech import speech_model
from mlxk.adapters.mlx.speech.speech_model import SpeechDecoder
from mlxk.domain.errors import CapabilityError, IncompatibleModelError
from mlxk.domain.transcription import (
    Segment,
    SpeechTask,
    TimedWord,
    Transcript,
    TranscriptEvent,
    TranscriptionProgress,
    TranscriptionSettings,
    finite,
    language_code,
)

_SEARCHED_SHARE = 0.2
"""Fraction at the end of a chunk in which the quietest interval is searched."""
_QUIET_SECONDS = 0.1


@attrs.frozen(eq=False)
class AudioChunk:
    """A part of a recording."""

    audio: AudioSamples
    start: float
    """Offset in the recording, seconds."""

    @property
    def end(self) -> float:
        """Offset of its end in the recording, seconds."""
        return self.start + self.audio.seconds


def split(audio: AudioSamples, max_seconds: float) -> list[AudioChunk]:
    """Split a recording into chunks of at most ``max_seconds``, without losing or repeating a sample."""
    limit, total, rate = int(max_seconds * audio.rate), len(audio.samples), audio.rate
    borders = [0]
    while total - borders[-1] > limit:
        borders.append(_quietest(audio, borders[-1] + int(limit * (1 - _SEARCHED_SHARE)), borders[-1] + limit))
    borders.append(total)
    return [
        AudioChunk(AudioSamples(audio.samples[start:end], rate), start / rate)
        for start, end in itertools.pairwise(borders)
    ]


def _quietest(audio: AudioSamples, first: int, last: int) -> int:
    """Return the middle of the quietest interval between two samples."""
    width = max(int(_QUIET_SECONDS * audio.rate), 1)
    count = (last - first) // width
    if count < 1:
        return last
    loudness = np.square(audio.samples[first : first + count * width]).reshape(count, width).sum(axis=1)
    # The last of several equally quiet intervals, so that silence is split no more than necessary.
    quietest = count - 1 - int(np.argmin(loudness[::-1]))
    return first + quietest * width + width // 2


@attrs.frozen
class ChunkResult:
    """The transcript of one chunk; times are relative to the chunk."""

    text: str
    segments: tuple[Segment, ...]
    language: str | None


def chunk_result(returned: object, seconds: float) -> ChunkResult:
    """Convert the result of a model's ``generate``.

    Args:
        returned: A text, an object with ``text`` and perhaps segments, sentences and language, or a list of one such.
        seconds: Length of the chunk; untimed segments span all of it.
    """
    if isinstance(returned, (list, tuple)) and returned:
        returned = returned[0]
    text = returned if isinstance(returned, str) else str(getattr(returned, "text", "") or "")
    parts = getattr(returned, "sentences", None) or getattr(returned, "segments", None) or ()
    segments = tuple(segment for segment in (_segment(part, seconds) for part in parts) if segment.text.strip())
    if not segments and text.strip():
        segments = (Segment(text.strip(), 0.0, seconds),)
    language = _language(getattr(returned, "language", None))
    return ChunkResult(
        text.strip(), segments, language or next((each.language for each in segments if each.language), None)
    )


def shifted(segment: Segment, seconds: float) -> Segment:
    """Return a segment with its times moved by a number of seconds."""
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
    return tuple(_join_words(each for each in map(_word, tokens) if each is not None))


def _word(found: object) -> TimedWord | None:
    """Return a timed word or token; None for anything else, such as a token id."""
    entries = _entries(found)
    text = _first(entries, "word", "text")
    start, end = _number(entries, "start", "start_time"), _number(entries, "end", "end_time")
    if not isinstance(text, str) or start is None or end is None:
        return None
    return TimedWord(text, start, end, _number(entries, "probability", "confidence"))


def _join_words(tokens: Iterable[TimedWord]) -> list[TimedWord]:
    """Join tokens to words; a token that begins with a space begins a word."""
    words: list[TimedWord] = []
    for token in tokens:
        if words and not token.text.startswith((" ", "▁")):
            words[-1] = attrs.evolve(words[-1], text=words[-1].text + token.text, end=token.end)
        else:
            words.append(attrs.evolve(token, text=token.text.replace("▁", " ")))
    return [word for word in words if word.text.strip()]


def _entries(found: object) -> Mapping[str, Any]:
    """Return the entries of a dictionary or the attributes of an object; empty for other values."""
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
    value = _first(entries, *names)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return finite(value.item() if hasattr(value, "item") else value)


_SCRIPTS_WITHOUT_SPACES = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x0E00, 0x0E7F))
"""Code points of scripts without spaces between words: kana, Chinese characters, Thai."""


class ChunkedDecoder(SpeechDecoder):
    """Transcribes audio with one model.

    Args:
        network: mlx-audio's model.
        name: The model's name.
        family: The ``model_type`` of its config.

    Raises:
        IncompatibleModelError: It has no ``generate`` for audio.
    """

    def __init__(self, network: nn.Module, name: str, family: str) -> None:
        self._network = network
        self._name = name
        self._family = family
        generate = getattr(getattr(network, "_asr", network), "generate", None)
        keywords = frozenset(inspect.signature(generate).parameters) if callable(generate) else frozenset()
        if family in speech_model.TOKENS_ONLY or not keywords or "text" in keywords:
            raise IncompatibleModelError(f"'{name}' ({family}) does not transcribe speech.")
        self._keywords = keywords

    def decode(self, audio: AudioSamples, settings: TranscriptionSettings) -> Generator[TranscriptEvent, None, None]:
        """Transcribe a recording; each step of the generator is one chunk. Raises as ``arguments``."""
        self.arguments(settings, 1.0)  # raises before anything is computed
        yield TranscriptionProgress(0.0, audio.seconds)
        texts: list[str] = []
        segments: list[Segment] = []
        language: str | None = None
        for chunk in split(audio, speech_model.chunk_seconds_of(self._family)):
            result = self._transcribe(chunk, settings)
            language = language or result.language
            fresh = [shifted(segment, chunk.start) for segment in result.segments]
            fresh = [_spaced(segment, first=not segments and index == 0) for index, segment in enumerate(fresh)]
            segments.extend(fresh)
            texts.append(result.text)
            yield TranscriptionProgress(chunk.end, audio.seconds, tuple(fresh))
        mx.clear_cache()
        yield Transcript(_join_texts(texts), audio.seconds, self._code(language), tuple(segments))

    def _transcribe(self, chunk: AudioChunk, settings: TranscriptionSettings) -> ChunkResult:
        arguments = self.arguments(settings, chunk.audio.seconds)
        # All families accept the path of a file; few accept samples.
        with tempfile.TemporaryDirectory(prefix="mlxk-") as folder:
            path = os.path.join(folder, "chunk.wav")
            _write(path, chunk.audio)
            try:
                returned = self._network.generate(path, **arguments)
            except ValueError as error:
                if settings.language is not None and "language" in str(error).lower():
                    fault = f"model '{self._name}' does not know '{settings.language}'."
                    raise CapabilityError.in_field("language", fault) from error
                raise
            return chunk_result(returned, chunk.audio.seconds)

    def arguments(self, settings: TranscriptionSettings, seconds: float) -> dict[str, Any]:
        """Return the keyword arguments of ``generate``.

        Raises:
            CapabilityError: The model does not support a setting.
        """
        arguments: dict[str, Any] = {}
        if settings.task is SpeechTask.TRANSLATE:
            raise CapabilityError(f"Model '{self._name}' does not translate.")
        if settings.words and "word_timestamps" in self._keywords:
            arguments["word_timestamps"] = True
        if "max_tokens" in self._keywords:
            arguments["max_tokens"] = int(seconds * speech_model.MAX_TOKENS_PER_SECOND) + speech_model.EXTRA_TOKENS
        if "temperature" in self._keywords:
            arguments["temperature"] = settings.temperature
        elif settings.temperature:
            raise CapabilityError.in_field("temperature", f"model '{self._name}' always writes the likeliest text.")
        if settings.language is not None:
            arguments[self._language_keyword()] = self._language(settings.language)
        if settings.hint is not None:
            keyword = self._hint_keyword()
            arguments[keyword] = [settings.hint] if keyword == "hotwords" else settings.hint
        return arguments

    def _language_keyword(self) -> str:
        keyword = speech_model.LANGUAGE_KEYWORDS.get(self._family)
        if keyword is None and "language" not in self._keywords:
            raise CapabilityError.in_field("language", f"model '{self._name}' cannot be told what is spoken.")
        return keyword or "language"

    def _hint_keyword(self) -> str:
        keyword = next((each for each in speech_model.HINT_KEYWORDS if each in self._keywords), None)
        if keyword is None:
            raise CapabilityError.in_field("prompt", f"model '{self._name}' takes no hint.")
        return keyword

    def _language(self, requested: str) -> str:
        """Return a language as ``generate`` takes it: a code, an English name, or a key of the model's own."""
        code = self._code(requested) or requested
        keys = getattr(self._network, "prompt_dictionary", None)
        if isinstance(keys, dict) and keys:
            # For any other key such a model would silently use its default language.
            known = {str(key).lower(): str(key) for key in keys}
            key = known.get(requested.strip().lower().replace("_", "-")) or known.get(code)
            key = key or next((known[each] for each in known if each.startswith(f"{code}-")), None)
            if key is None:
                raise CapabilityError.in_field("language", f"model '{self._name}' does not know '{requested}'.")
            return key
        wants_name = self._family in speech_model.WANTS_LANGUAGE_NAMES
        return LANGUAGES.get(code, requested).title() if wants_name else code

    def _code(self, language: str | None) -> str | None:
        """Return the code of a language given by code or name."""
        return language_code(language, TO_LANGUAGE_CODE) if language else None


def _write(path: str, audio: AudioSamples) -> None:
    with wave.open(path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(audio.rate)
        file.writeframes(np.clip(np.rint(audio.samples * 32768.0), -32768, 32767).astype("<i2").tobytes())


def _join_texts(texts: list[str]) -> str:
    """Join the texts of chunks, with spaces between them except in scripts without spaces."""
    joined = ""
    for text in filter(None, texts):
        joined += text if not joined or _without_space(joined[-1], text[0]) else f" {text}"
    return joined


def _spaced(segment: Segment, first: bool) -> Segment:
    """Return a segment with a leading space, except in scripts without spaces, so that segments concatenate to text."""
    head = segment.text[:1]
    return segment if first or _without_space(head, head) else attrs.evolve(segment, text=f" {segment.text}")


def _without_space(left: str, right: str) -> bool:
    return all(any(low <= ord(each) <= high for low, high in _SCRIPTS_WITHOUT_SPACES) for each in (left, right) if each)
