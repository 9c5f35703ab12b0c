"""Whisper: log-mel spectrogram in blocks of bounded memory, and decoding of 30-second windows."""

from collections.abc import Generator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_audio.stt.models.whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, N_FFT, N_FRAMES, N_SAMPLES, SAMPLE_RATE
from mlx_audio.stt.models.whisper.decoding import DecodingOptions, DecodingResult
from mlx_audio.stt.models.whisper.timing import add_word_timestamps
from mlx_audio.stt.models.whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE
from mlx_audio.stt.models.whisper.whisper import MultiHeadAttention
from mlx_audio.utils import hanning, mel_filters, stft

from mlxk.adapters.mlx.audio_file import AudioSamples, Samples
from mlxk.adapters.mlx.speech.speech_model import SpeechDecoder
from mlxk.domain.errors import CapabilityError, UnhealthyModelError
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

_HALF = N_FFT // 2
_MIN_POWER = 1e-10
_RANGE = 8.0
"""Dynamic range of the spectrogram: powers of ten below its maximum."""


class EncoderAttention(MultiHeadAttention):  # type: ignore[misc]
    """Attention of the encoder in 32 bits on a CPU, with NumPy for the exponentials.

    A window of 30 seconds has 1,500 by 1,500 exponentials for every head; on a CPU, MLX takes 16 times as long.
    """

    def qkv_attention(
        self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Return the output and the unnormalized weights; queries, keys, values and output have shape [B, L, H]."""
        if mask is not None or q.dtype != mx.float32:
            result: tuple[mx.array, mx.array] = super().qkv_attention(q, k, v, mask)
            return result
        q, k, v = (each.reshape(*each.shape[:2], self.n_head, -1).swapaxes(1, 2) for each in (q, k, v))
        weights = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)
        mx.eval(weights)
        numbers = np.asarray(weights)  # shares the memory, which nothing else reads before the product below
        numbers -= numbers.max(axis=-1, keepdims=True)
        np.exp(numbers, out=numbers)
        out = (weights @ v) / mx.array(numbers.sum(axis=-1, keepdims=True))
        return out.swapaxes(1, 2).flatten(-2), weights


def compute_on_cpu(network: nn.Module) -> None:
    """Replace the encoder's attention in a Whisper in 32 bits by ``EncoderAttention``."""
    for block in network.encoder.blocks:
        if type(block.attn) is MultiHeadAttention:
            block.attn.__class__ = EncoderAttention


class Spectrum:
    """The log-mel spectrogram of one recording.

    Args:
        samples: At 16 kHz.
        bands: Mel bands of the model.
    """

    def __init__(self, samples: Samples, bands: int) -> None:
        self.frames = len(samples) // HOP_LENGTH
        """Frames of the recording without padding, 10 ms each."""
        # Language detection needs a full window: a short recording is padded with silence.
        count = max(self.frames, N_FRAMES)
        padded = _padded(samples, count)
        filters = mel_filters(SAMPLE_RATE, N_FFT, bands, norm="slaney", mel_scale=None).T
        blocks = [
            _log_powers(padded[first * HOP_LENGTH : (min(first + N_FRAMES, count) - 1) * HOP_LENGTH + N_FFT], filters)
            for first in range(0, count, N_FRAMES)
        ]
        self._values = np.concatenate(blocks)
        self._floor = float(self._values.max()) - _RANGE

    def window(self, first: int, frames: int, dtype: mx.Dtype) -> mx.array:
        """Return a range of frames, padded with zeros to a full window.

        Args:
            first: Index of the first frame.
            frames: Number of frames, at most ``N_FRAMES``.
            dtype: Data type of the model.
        """
        values = np.maximum(self._values[first : first + frames], np.float32(self._floor))
        padded = np.zeros((N_FRAMES, values.shape[1]), np.float32)
        padded[: len(values)] = (values + np.float32(4.0)) / np.float32(4.0)
        return mx.array(padded).astype(dtype)


def _padded(samples: Samples, frames: int) -> Samples:
    """Return the samples padded for the Fourier transform: reflected at the beginning, zeros at the end."""
    padded = np.zeros(_HALF + max(len(samples), frames * HOP_LENGTH) + N_SAMPLES, np.float32)
    padded[_HALF : _HALF + len(samples)] = samples
    padded[:_HALF] = padded[_HALF + 1 : N_FFT + 1][::-1]
    return padded


def _log_powers(samples: Samples, filters: mx.array) -> Samples:
    spectrum = stft(
        mx.array(samples), window=hanning(N_FFT, periodic=True), n_fft=N_FFT, hop_length=HOP_LENGTH, center=False
    )
    powers = spectrum.abs().square() @ filters
    return np.array(mx.maximum(powers, _MIN_POWER).log10())


_SILENCE_PROBABILITY = 0.6
"""A window with a higher ``no_speech_prob`` is silence, unless its text is likely."""
_LIKELY_LOGPROB = -1.0
"""Mean log probability of the tokens above which a text is likely."""


_BEFORE_TIMESTAMPS = "<|notimestamps|>"
"""The token before the timestamps in the vocabulary of every Whisper."""
_TIMESTAMPS = tuple(f"<|{index * 0.02:.2f}|>" for index in range(1501))


class WhisperDecoder(SpeechDecoder):
    """Transcribes audio with one Whisper model.

    Args:
        network: mlx-audio's model.
        name: The model's name.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        self._network = network
        self._name = name

    def decode(self, audio: AudioSamples, settings: TranscriptionSettings) -> Generator[TranscriptEvent, None, None]:
        """Transcribe a recording; each step of the generator is one window.

        Raises:
            CapabilityError: The model does not know the language, or does not translate.
            UnhealthyModelError: Files of its tokenizer are missing, or its timestamp tokens cannot be determined.
        """
        language = self._require(settings)
        self._complete_timestamps()
        network = self._network
        spectrum = Spectrum(audio.samples, network.dims.n_mels)
        language = language or network._detect_language(spectrum.window(0, N_FRAMES, network.dtype))
        yield TranscriptionProgress(0.0, audio.seconds)
        run = _WhisperRun(network, spectrum, language, settings)
        segments: list[Segment] = []
        while not run.ended:
            fresh = tuple(map(_segment, run.window()))
            segments.extend(fresh)
            yield TranscriptionProgress(min(run.position / FRAMES_PER_SECOND, audio.seconds), audio.seconds, fresh)
        mx.clear_cache()
        yield Transcript(run.text.strip(), audio.seconds, language, tuple(segments))

    def _require(self, settings: TranscriptionSettings) -> str | None:
        """Refuse settings that the model does not support; return the language as ``_language``."""
        if getattr(self._network, "_processor", None) is None:
            raise UnhealthyModelError(
                f"'{self._name}' lacks files of its tokenizer or preprocessor.",
                hint="Use a version of the model with tokenizer.json and preprocessor_config.json.",
            )
        language = self._language(settings)
        if settings.task is SpeechTask.TRANSLATE and not self._network.is_multilingual:
            raise CapabilityError(f"Model '{self._name}' knows English only, so it does not translate.")
        return language

    def _complete_timestamps(self) -> None:
        """Add the timestamp tokens to a tokenizer without them, as in the files of many early models.

        Raises:
            UnhealthyModelError: They would get other ids than those of the network's training.
        """
        tokenizer = self._network._processor.tokenizer
        vocabulary = tokenizer.get_vocab()
        if _TIMESTAMPS[0] in vocabulary:
            return
        first = vocabulary.get(_BEFORE_TIMESTAMPS, -1) + 1
        if not first or first != len(tokenizer) or first + len(_TIMESTAMPS) > self._network.dims.n_vocab:
            raise UnhealthyModelError(
                f"The tokenizer of '{self._name}' has no timestamps, and it cannot be told where they belong.",
                hint="Use a version of the model whose tokenizer.json has the tokens <|0.00|> to <|30.00|>.",
            )
        tokenizer.add_tokens(list(_TIMESTAMPS))

    def _language(self, settings: TranscriptionSettings) -> str | None:
        """Return the code of the requested language; "en" for a model that supports English only.

        Raises:
            CapabilityError: The model does not support it.
        """
        requested = settings.language
        code = language_code(requested, TO_LANGUAGE_CODE) if requested else None
        if not self._network.is_multilingual:
            if code not in (None, "en"):
                raise CapabilityError.in_field(
                    "language", f"model '{self._name}' knows English only (got '{requested}')."
                )
            return "en"
        known = list(LANGUAGES)[: self._network.num_languages]
        if code is not None and code not in known:
            raise CapabilityError.in_field("language", f"model '{self._name}' does not know '{requested}'.")
        return code


class _WhisperRun:
    """The transcription of one recording."""

    def __init__(self, network: nn.Module, spectrum: Spectrum, language: str, settings: TranscriptionSettings) -> None:
        self._network = network
        self._spectrum = spectrum
        self._settings = settings
        self._task = settings.task.value
        self._language = language
        self._tokenizer = network.get_tokenizer(language=language, task=self._task)
        # Each window is decoded with the earlier text as context; a hint counts as earlier text.
        self._tokens: list[int] = self._tokenizer.encode(f" {settings.hint.strip()}") if settings.hint else []
        self._hint_length = len(self._tokens)
        self._context_start = 0
        self._last_word_at = 0.0
        self._wordless_frames = 0
        self._frames_a_token = N_FRAMES // network.dims.n_audio_ctx
        self.position = 0
        """The next frame to decode."""

    @property
    def ended(self) -> bool:
        """Whether everything was decoded."""
        return bool(self.position >= self._spectrum.frames)

    @property
    def text(self) -> str:
        """The text so far."""
        text: str = self._tokenizer.decode(self._tokens[self._hint_length :])
        return text

    def window(self) -> list[dict[str, Any]]:
        """Decode the next window, at most 30 seconds; return the segments that ended in it."""
        begin = self.position
        frames = min(N_FRAMES, self._spectrum.frames - begin)
        window = self._spectrum.window(begin, frames, self._network.dtype)
        result = self._network.decode(window, self._options())
        if _is_silence(result):
            self.position += frames
            return []
        segments, covered, complete = self._split(result, begin, frames)
        # Without progress, as when the last timestamp is 0, the same window would be decoded forever.
        self.position += covered if covered > 0 else frames
        if self._settings.words:
            self._time_words(segments, window, frames)
            ends = [word["end"] for segment in segments for word in segment["words"]]
            self._last_word_at = ends[-1] if ends else segments[-1]["end"]
            if not complete and round(self._last_word_at * FRAMES_PER_SECOND) > begin:
                # The end of the last word is more precise than that of its segment.
                self.position = round(self._last_word_at * FRAMES_PER_SECOND)
        for segment in segments:
            if segment["start"] == segment["end"] or not segment["text"].strip():
                segment.update(text="", tokens=[], words=[])
            self._tokens.extend(segment["tokens"])
        if result.temperature > 0.5:
            self._context_start = len(self._tokens)
        worded = [segment for segment in segments if segment["text"]]
        self._skip_silence(begin, frames, has_words=bool(worded))
        return worded

    def _skip_silence(self, begin: int, frames: int, *, has_words: bool) -> None:
        """Advance in growing steps while no words are found, since models may move through silence in tiny ones.

        Args:
            begin: First frame of the decoded window.
            frames: Number of frames in it.
            has_words: Whether it contains words.
        """
        if has_words:
            self._wordless_frames = 0
            return
        self.position = max(self.position, begin + min(self._wordless_frames, frames))
        self._wordless_frames += self.position - begin

    def _options(self) -> DecodingOptions:
        return DecodingOptions(
            fp16=self._network.dtype == mx.float16,
            task=self._task,
            language=self._language,
            temperature=self._settings.temperature,
            prompt=self._tokens[self._context_start :],
        )

    def _split(self, result: DecodingResult, begin: int, frames: int) -> tuple[list[dict[str, Any]], int, bool]:
        """Split the decoded tokens at pairs of timestamps.

        Returns:
            The segments, the number of frames to advance, and whether a final timestamp marks the end of speech.
        """
        first = self._tokenizer.timestamp_begin
        tokens: list[int] = result.tokens
        timed = [token >= first for token in tokens]
        borders = [index for index in range(1, len(tokens)) if timed[index - 1] and timed[index]]
        ends_with_timestamp = timed[-2:] == [False, True]
        if not borders:
            timestamps = [token - first for token in tokens if token >= first]
            covered = timestamps[-1] * self._frames_a_token if timestamps and timestamps[-1] else frames
            return [self._part(result, tokens, begin, begin + covered)], frames, ends_with_timestamp
        slices = [*borders, len(tokens)] if ends_with_timestamp else borders
        parts = [tokens[start:end] for start, end in zip([0, *slices], slices, strict=False)]
        segments = [self._part(result, part, begin + self._at(part[0]), begin + self._at(part[-1])) for part in parts]
        # Without a final timestamp the window ends in mid-speech: decoding continues after the last complete segment.
        return segments, frames if ends_with_timestamp else self._at(tokens[slices[-1] - 1]), ends_with_timestamp

    def _at(self, token: int) -> int:
        """Return the frame within the window that a timestamp token denotes."""
        return int((token - self._tokenizer.timestamp_begin) * self._frames_a_token)

    def _part(self, result: DecodingResult, tokens: list[int], start: int, end: int) -> dict[str, Any]:
        """Return a segment in the form that mlx-audio's ``add_word_timestamps`` takes."""
        return {
            "seek": self.position,
            "start": start * HOP_LENGTH / SAMPLE_RATE,
            "end": end * HOP_LENGTH / SAMPLE_RATE,
            "text": self._tokenizer.decode([token for token in tokens if token < self._tokenizer.eot]),
            "tokens": list(tokens),
            "temperature": result.temperature,
            "avg_logprob": result.avg_logprob,
            "compression_ratio": result.compression_ratio,
            "no_speech_prob": result.no_speech_prob,
        }

    def _time_words(self, segments: list[dict[str, Any]], window: mx.array, frames: int) -> None:
        try:
            add_word_timestamps(
                segments=segments,
                model=self._network,
                tokenizer=self._tokenizer,
                mel=window,
                num_frames=frames,
                last_speech_timestamp=self._last_word_at,
            )
        except (ValueError, IndexError):  # the alignment finds no path through the attention weights
            for segment in segments:
                segment["words"] = []


def _is_silence(result: DecodingResult) -> bool:
    return bool(result.no_speech_prob > _SILENCE_PROBABILITY and not result.avg_logprob > _LIKELY_LOGPROB)


def _segment(segment: dict[str, Any]) -> Segment:
    words = (
        TimedWord(str(word["word"]), float(word["start"]), float(word["end"]), finite(float(word["probability"])))
        for word in segment.get("words", ())
    )
    return Segment(
        text=segment["text"],
        start=float(segment["start"]),
        end=max(float(segment["start"]), float(segment["end"])),
        words=tuple(words),
        tokens=tuple(int(token) for token in segment["tokens"]),
        offset=int(segment["seek"]),
        temperature=finite(float(segment["temperature"])),
        mean_logprob=finite(float(segment["avg_logprob"])),
        compression_ratio=finite(float(segment["compression_ratio"])),
        silence_probability=finite(float(segment["no_speech_prob"])),
    )
