"""Settings of transcription and who may be asked for what."""

import math

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.model import Capability
from mlxk.domain.transcription import (
    MAX_HINT_CHARACTERS,
    Segment,
    SpeechTask,
    TimedWord,
    Transcript,
    TranscriptionSettings,
    finite,
    language_code,
)


def test_settings_in_range_are_accepted() -> None:
    TranscriptionSettings().validate()
    TranscriptionSettings(language="de", hint="names", temperature=1.0, words=True).validate()
    TranscriptionSettings(language="Haitian Creole").validate()


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        *[
            (each, "en")
            for each in ("en", "EN", "en-US", "en_GB", "En-us", "eng", "English", "ENGLISH", "english (US)")
        ],
        *[
            (each, "pt")
            for each in ("pt_BR", "pt-PT", "PT-br", "por", "pt_BR.UTF-8", "Portuguese", "Portuguese (Brazil)")
        ],
        *[(each, "zh") for each in ("zh-Hans", "zh-Hant-TW", "zh_CN.utf8", "cmn-Hans-CN", "Mandarin")],
        *[("nb-NO", "no"), ("de_DE@euro", "de"), ("es-419", "es"), ("haw", "haw"), ("yue-HK", "yue"), (" fr ", "fr")],
        *[("Haitian Creole", "ht"), ("klingon", "klingon"), ("xx-YY", "xx")],
    ],
)
def test_a_language_is_known_by_code_locale_and_name(asked: str, code: str) -> None:
    names = {"english": "en", "portuguese": "pt", "mandarin": "zh", "haitian creole": "ht"}
    assert language_code(asked, names) == code
    TranscriptionSettings(language=asked.strip()).validate()


def test_every_setting_out_of_range_is_named_at_once() -> None:
    settings = TranscriptionSettings(language="d€", hint="x" * (MAX_HINT_CHARACTERS + 1), temperature=2.0)
    with pytest.raises(ValidationError) as caught:
        settings.validate()
    assert all(name in caught.value.message for name in ("language", "prompt", "temperature"))


@pytest.mark.parametrize("temperature", [-0.1, 1.1, math.nan, math.inf])
def test_a_temperature_that_is_no_share_is_refused(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        TranscriptionSettings(temperature=temperature).validate()


def test_a_refusal_does_not_repeat_the_hint() -> None:
    with pytest.raises(ValidationError) as caught:
        TranscriptionSettings(hint="secret " * MAX_HINT_CHARACTERS).validate()
    assert "secret" not in caught.value.message


def test_writing_down_needs_a_model_that_listens_and_translating_one_that_translates() -> None:
    assert SpeechTask.TRANSCRIBE.capability is Capability.AUDIO
    assert SpeechTask.TRANSLATE.capability is Capability.AUDIO_TRANSLATE_EN


def test_a_transcript_knows_the_words_of_all_its_segments() -> None:
    words = [TimedWord(text, start, start + 1) for start, text in enumerate("abc")]
    transcript = Transcript(
        "a b c", 3.0, "en", (Segment("a b", 0, 2, tuple(words[:2])), Segment("c", 2, 3, (words[2],)))
    )
    assert list(transcript.words) == words


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, True, [1]])
def test_what_json_cannot_hold_as_a_number_is_left_out(value: object) -> None:
    assert finite(value) is None


def test_numbers_stay_what_they_are() -> None:
    assert (finite(1), finite(-0.5)) == (1.0, -0.5)
