"""Training examples: recordings drawn at random, as padded spectrograms and the tokens that transcribe them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlx_audio.stt.models.whisper.audio import N_FRAMES
from phrases import Utterance
from recordings import MEL_BANDS, Recording, Samples, spectrogram, string_together
from tokenizer import END_OF_TEXT, timestamp
from tokenizers import Tokenizer

_PARTS, _PARTS_WEIGHTS = (1, 2, 3), (5, 3, 2)
_WINDOWS = (400, 600, 900, 1300)
"""Frames of shortened windows: the same task for a fraction of the work."""
_FRAMES_A_BATCH = 9600
_FULL_BATCH = 6


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains on."""

    spectrograms: np.ndarray[Any, np.dtype[np.float32]]
    """Recordings by frames by bands."""
    tokens: np.ndarray[Any, np.dtype[np.int32]]
    weights: np.ndarray[Any, np.dtype[np.float32]]
    """1 for every token to be learnt, 0 for the start token and the padding."""


class ExampleStream:
    """Draws recordings of one to three phrases, with pauses, volumes and noise of their own.

    Args:
        voiced: The utterances to choose from, synthesized.
        tokenizer: Of the model.
        seed: Of every choice.
    """

    def __init__(self, voiced: dict[Utterance, Samples], tokenizer: Tokenizer, seed: int) -> None:
        self._voiced = list(voiced.items())
        self._tokenizer = tokenizer
        self._chance = random.Random(seed)
        self._noise = np.random.default_rng(seed)

    def batches(self, *, short: int, full: int) -> Iterator[Batch]:
        """Yield batches of shortened windows, then of whole ones.

        Args:
            short: How many of shortened windows.
            full: How many of 30 seconds.
        """
        for _ in range(short):
            frames = self._chance.choice(_WINDOWS)
            yield self._batch(frames, _FRAMES_A_BATCH // frames)
        for _ in range(full):
            yield self._batch(N_FRAMES, _FULL_BATCH)

    def _batch(self, frames: int, size: int) -> Batch:
        drawn = [self._draw(frames) for _ in range(size)]
        sequences = [self._tokens(recording) for recording in drawn]
        longest = max(len(sequence) for sequence in sequences)
        spectrograms = np.zeros((size, frames, MEL_BANDS), np.float32)
        tokens = np.full((size, longest), self._tokenizer.token_to_id(END_OF_TEXT), np.int32)
        weights = np.zeros((size, longest), np.float32)
        for row, (recording, sequence) in enumerate(zip(drawn, sequences, strict=True)):
            bands = spectrogram(recording)
            spectrograms[row, : len(bands)] = bands
            tokens[row, : len(sequence)] = sequence
            weights[row, 1 : len(sequence)] = 1
        return Batch(spectrograms, tokens, weights)

    def _draw(self, frames: int) -> Recording:
        """Draw a recording that fits into so many frames."""
        while True:
            count = self._chance.choices(_PARTS, _PARTS_WEIGHTS)[0]
            parts = self._chance.choices(self._voiced, k=count)
            between = [self._chance.uniform(0.3, 0.9) for _ in range(count - 1)]
            pauses = [self._chance.uniform(0, 0.4), *between, self._chance.uniform(0, 0.5)]
            recording = string_together(parts, pauses)
            if recording.frames <= frames:
                return self._disturbed(recording)

    def _disturbed(self, recording: Recording) -> Recording:
        """Change the volume, and add noise that is hardly heard."""
        gain = np.float32(self._chance.uniform(0.4, 1.4))
        noise = self._noise.standard_normal(len(recording.samples), dtype=np.float32)
        level = np.float32(self._chance.choice((0.0, 10 ** self._chance.uniform(-4, -2.2))))
        return Recording(recording.samples * gain + noise * level, recording.spoken)

    def _tokens(self, recording: Recording) -> list[int]:
        """Return what the model is to write: with or without timestamps."""
        timed = self._chance.random() < 0.75
        text = [] if timed else ["<|notimestamps|>"]
        ids = [self._id("<|startoftranscript|>"), *(self._id(token) for token in text)]
        for said in recording.spoken:
            words = self._tokenizer.encode(f" {said.text}", add_special_tokens=False).ids
            ids += [self._id(timestamp(said.start)), *words, self._id(timestamp(said.end))] if timed else words
        return [*ids, self._id(END_OF_TEXT)]

    def _id(self, token: str) -> int:
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            raise KeyError(token)
        return found
