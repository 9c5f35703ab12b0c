"""Has the trained model listen to what it was and was not trained on, and counts the exact transcripts.

Usage: ``python tools/demo_speech/check.py [MODEL]``

The exit status is 1 when a sample or a phrase in the untrained voice is not transcribed exactly. Needs espeak-ng.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import samples
from mlx_audio.stt.utils import load_model
from network import DEFAULT_OUT
from phrases import PHRASES, SEED, Utterance, utterances
from recordings import Recording, Samples, string_together, synthesize, voiced

_NEW_VOICES = (("en-gb+m7", 160), ("en-us+f4", 170), ("en-029", 150))
_CLOSE = 0.3
"""Seconds by which a timestamp may be off."""


@dataclass(frozen=True, slots=True)
class Score:
    """How one kind of recording was transcribed."""

    title: str
    exact: int
    timed: int
    """Of the exact ones, those with every timestamp close to the truth."""
    total: int

    def __str__(self) -> str:
        return f"{self.title}: {self.exact} of {self.total} exact, {self.timed} of them timed within {_CLOSE} s"


class Examination:
    """Plays recordings to one model."""

    def __init__(self, directory: Path, spoken: dict[Utterance, Samples]) -> None:
        """Load the model as mlx-audio does."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model = load_model(directory, model_name_parts=["whisper"])
        self._spoken = spoken

    def scores(self) -> list[Score]:
        """Play everything."""
        untrained = [each for each in self._spoken if not each.trained]
        chance = random.Random(SEED)
        pairs = [chance.sample(untrained, 2) for _ in PHRASES]
        triples = [chance.sample(untrained, 3) for _ in PHRASES]
        found = [
            self._score("samples", [samples.recording(each, self._spoken) for each in samples.SAMPLES]),
            self._score("untrained voice and speed", [self._said([each]) for each in untrained]),
            self._score("two phrases in it", [self._said(each) for each in pairs]),
            self._score("three phrases in it", [self._said(each) for each in triples]),
        ]
        for voice, speed in _NEW_VOICES:
            said = [Utterance(index, voice, speed) for index in range(len(PHRASES))]
            recordings = [string_together([(each, synthesize(each))], [0.1, 0.3]) for each in said]
            found.append(self._score(f"unknown voice {voice}", recordings))
        return found

    def _said(self, said: list[Utterance]) -> Recording:
        pauses = [0.1, *[0.6] * (len(said) - 1), 0.3]
        return string_together([(each, self._spoken[each]) for each in said], pauses)

    def _score(self, title: str, recordings: list[Recording]) -> Score:
        exact = timed = 0
        for recording in recordings:
            heard = self._model.generate(mx.array(recording.samples), temperature=0.0)
            if heard.text.strip() != " ".join(said.text for said in recording.spoken):
                continue
            exact += 1
            segments = [each for each in heard.segments if each["text"].strip()]
            timed += len(segments) == len(recording.spoken) and all(
                abs(each["start"] - said.start) < _CLOSE and abs(each["end"] - said.end) < _CLOSE
                for each, said in zip(segments, recording.spoken, strict=True)
            )
        return Score(title, exact, timed, len(recordings))


def main() -> int:
    """Run the examination and return the exit status."""
    parser = argparse.ArgumentParser(description="Check the transcripts of the built-in speech model.")
    parser.add_argument("model", nargs="?", type=Path, default=DEFAULT_OUT, help="directory of the model")
    arguments = parser.parse_args()
    scores = Examination(arguments.model, voiced(utterances(), SEED)).scores()
    print("\n".join(map(str, scores)))
    return 0 if all(score.exact == score.total for score in scores[:2]) else 1


if __name__ == "__main__":
    sys.exit(main())
