"""What a speech model is asked for: what its ``generate`` takes, and nothing else."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import mlx.nn as nn
import pytest

from mlxk.adapters.mlx.speech import speech_model
from mlxk.adapters.mlx.speech.chunked import ChunkedDecoder
from mlxk.domain.errors import CapabilityError
from mlxk.domain.transcription import TranscriptionSettings

pytestmark = pytest.mark.mlx


def plain(audio: str, **_: Any) -> None:
    """Take any keyword, and name none."""


def timed(audio: str, *, word_timestamps: bool = False, **_: Any) -> None:
    """Take times of words."""


def sampled(audio: str, *, max_tokens: int = 1, temperature: float = 0.0, **_: Any) -> None:
    """Take what steers sampling."""


def named(audio: str, *, language: str = "", **_: Any) -> None:
    """Take a language."""


def asked(generate: Callable[..., None], seconds: float = 2.5, **settings: Any) -> dict[str, Any]:
    network = cast(nn.Module, SimpleNamespace(generate=generate))
    return ChunkedDecoder(network, "m", "novel").arguments(TranscriptionSettings(**settings), seconds)


def test_times_of_words_are_asked_for_only_where_they_are_wanted_and_taken() -> None:
    assert asked(timed, words=True) == {"word_timestamps": True}
    assert asked(timed) == asked(plain, words=True) == asked(plain) == {}


def test_the_length_of_an_answer_grows_with_the_recording_where_it_can_be_told() -> None:
    per_second, more = speech_model.MAX_TOKENS_PER_SECOND, speech_model.EXTRA_TOKENS
    found = [asked(sampled, seconds)["max_tokens"] for seconds in (0.0, 1.0, 2.5)]
    assert found == [more, per_second + more, int(2.5 * per_second) + more]


def test_what_a_model_does_not_take_is_refused_by_its_field() -> None:
    assert asked(sampled, temperature=0.5)["temperature"] == 0.5
    assert asked(plain, temperature=0.0) == {}
    for field, settings in (
        ("temperature", {"temperature": 0.5}),
        ("language", {"language": "de"}),
        ("prompt", {"hint": "names"}),
    ):
        with pytest.raises(CapabilityError, match=f"^{field}: model 'm' "):
            asked(plain, **settings)
    assert list(asked(named, language="de")) == ["language"]
