"""Every family but Whisper: a recording is heard piece by piece through mlx-audio's ``generate``.

Which settings a model takes is read from the signature of its ``generate``; a setting that it does not take is refused,
never dropped. Used on the owner thread only.
"""

import inspect
import os
import tempfile
import wave
from collections.abc import Generator
from typing import Any

import attrs
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxk.adapters.mlx.speech import families
from mlxk.adapters.mlx.speech.listener import Listener
from mlxk.adapters.mlx.speech.pieces import Piece, divided
from mlxk.adapters.mlx.speech.results import PieceResult, moved, piece_result
from mlxk.adapters.mlx.speech.sound import Sound
from mlxk.domain.errors import CapabilityError, IncompatibleModelError
from mlxk.domain.speech import Heard, Segment, SpeechTask, Transcript, TranscriptEvent, TranscriptionSettings

_WITHOUT_SPACES = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x0E00, 0x0E7F))
"""Scripts that put no space between words: kana, Chinese characters, Thai."""


class PiecewiseListener(Listener):
    """Hears recordings with one model.

    Args:
        network: mlx-audio's model.
        name: What people call it.
        family: The ``model_type`` of its config.

    Raises:
        IncompatibleModelError: It has no ``generate`` that hears a recording.
    """

    def __init__(self, network: nn.Module, name: str, family: str) -> None:
        self._network = network
        self._name = name
        self._family = family
        generate = getattr(getattr(network, "_asr", network), "generate", None)
        keywords = frozenset(inspect.signature(generate).parameters) if callable(generate) else frozenset()
        if family in families.WORDLESS or not keywords or "text" in keywords:
            raise IncompatibleModelError(f"'{name}' ({family}) does not write down what it hears.")
        self._keywords = keywords

    def listen(self, sound: Sound, settings: TranscriptionSettings) -> Generator[TranscriptEvent, None, None]:
        """Hear a recording; each step is one piece.

        Raises:
            CapabilityError: As ``arguments``.
        """
        self.arguments(settings, 1.0)  # refuses before anything is heard
        yield Heard(0.0, sound.seconds)
        texts: list[str] = []
        segments: list[Segment] = []
        language: str | None = None
        for piece in divided(sound, families.piece_seconds_of(self._family)):
            result = self._hear(piece, settings)
            language = language or result.language
            fresh = [moved(segment, piece.start) for segment in result.segments]
            fresh = [_spaced(segment, first=not segments and index == 0) for index, segment in enumerate(fresh)]
            segments.extend(fresh)
            texts.append(result.text)
            yield Heard(piece.end, sound.seconds, tuple(fresh))
        mx.clear_cache()
        yield Transcript(_joined(texts), sound.seconds, self._code(language), tuple(segments))

    def _hear(self, piece: Piece, settings: TranscriptionSettings) -> PieceResult:
        arguments = self.arguments(settings, piece.sound.seconds)
        # A file is what every family takes, and what mlx-audio's own programs give them.
        with tempfile.TemporaryDirectory(prefix="mlxk-") as folder:
            path = os.path.join(folder, "piece.wav")
            _write(path, piece.sound)
            try:
                returned = self._network.generate(path, **arguments)
            except ValueError as error:
                if settings.language is not None and "language" in str(error).lower():
                    refused = f"model '{self._name}' does not know '{settings.language}'."
                    raise CapabilityError.in_field("language", refused) from error
                raise
            return piece_result(returned, piece.sound.seconds)

    def arguments(self, settings: TranscriptionSettings, seconds: float) -> dict[str, Any]:
        """Return the keyword arguments of ``generate``.

        Raises:
            CapabilityError: A setting that the model does not take.
        """
        arguments: dict[str, Any] = {}
        if settings.task is SpeechTask.TRANSLATE:
            raise CapabilityError(f"Model '{self._name}' does not translate.")
        if settings.words and "word_timestamps" in self._keywords:
            arguments["word_timestamps"] = True
        if "max_tokens" in self._keywords:
            arguments["max_tokens"] = int(seconds * families.TOKENS_A_SECOND) + families.SPARE_TOKENS
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
        keyword = families.LANGUAGE_KEYWORDS.get(self._family)
        if keyword is None and "language" not in self._keywords:
            raise CapabilityError.in_field("language", f"model '{self._name}' cannot be told what is spoken.")
        return keyword or "language"

    def _hint_keyword(self) -> str:
        keyword = next((each for each in families.HINT_KEYWORDS if each in self._keywords), None)
        if keyword is None:
            raise CapabilityError.in_field("prompt", f"model '{self._name}' takes no hint.")
        return keyword

    def _language(self, asked: str) -> str:
        from mlx_audio.stt.models.whisper.tokenizer import LANGUAGES

        code = self._code(asked) or asked
        wants_name = self._family in families.WANTS_LANGUAGE_NAMES
        return LANGUAGES.get(code, asked).title() if wants_name else code

    def _code(self, language: str | None) -> str | None:
        """Return the code of a language that may be given by its name."""
        from mlx_audio.stt.models.whisper.tokenizer import TO_LANGUAGE_CODE

        return TO_LANGUAGE_CODE.get(language.lower(), language.lower()) if language else None


def _write(path: str, sound: Sound) -> None:
    with wave.open(path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(np.clip(np.rint(sound.samples * 32768.0), -32768, 32767).astype("<i2").tobytes())


def _joined(texts: list[str]) -> str:
    """Join the texts of pieces, with a space where their script wants one."""
    whole = ""
    for text in filter(None, texts):
        whole += text if not whole or _touches(whole[-1], text[0]) else f" {text}"
    return whole


def _spaced(segment: Segment, first: bool) -> Segment:
    """Return a segment with the space before it that its script wants, so that segments can be joined to the text."""
    head = segment.text[:1]
    return segment if first or _touches(head, head) else attrs.evolve(segment, text=f" {segment.text}")


def _touches(left: str, right: str) -> bool:
    return all(any(low <= ord(each) <= high for low, high in _WITHOUT_SPACES) for each in (left, right) if each)
