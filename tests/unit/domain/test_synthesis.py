"""The pieces of a spoken text, the choice of a voice, and the header of a WAV file."""

import io
import re
import struct
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.synthesis import (
    PIECE_CHARACTERS,
    SynthesisRequest,
    SynthesisSettings,
    chosen_voice,
    pieces_of,
    wav_header,
)

SENTENCE = "This is a sentence of some length, number {}."


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello.", ["Hello."]),
        ("  Hello\n\n  there  ", ["Hello there"]),
        ("Yes. No. Maybe.", ["Yes. No. Maybe."]),
        (" ".join(map(SENTENCE.format, "12")), list(map(SENTENCE.format, "12"))),
        ("\n".join(map(SENTENCE.format, "12")), list(map(SENTENCE.format, "12"))),
        (
            "Ask Dr. Smith about it, e.g. on the 3. of May. " + SENTENCE,
            ["Ask Dr. Smith about it, e.g. on the 3. of May.", SENTENCE],
        ),
        (
            'He said: "Come here, my friend, at once!" And so I came to see him, at last.',
            ['He said: "Come here, my friend, at once!"', "And so I came to see him, at last."],
        ),
        (f"{SENTENCE} Then.", [f"{SENTENCE} Then."]),
        ("...", []),
        ("--- *** ---", []),
        ("", []),
    ],
)
def test_sentences_are_pieces_and_short_ones_are_spoken_together(text: str, pieces: list[str]) -> None:
    assert list(pieces_of(text)) == pieces


def test_sentences_without_spaces_between_them_are_pieces() -> None:
    one, two = "今天天气很好" * 7 + "。", "我们去公园走走" * 6 + "\uff1f"
    assert pieces_of(one + two) == (one, two)


@pytest.mark.parametrize("text", ["word " * 200, "x" * 1000, "a clause, " * 100, "one; two " * 150])
def test_no_piece_is_longer_than_models_speak_well(text: str) -> None:
    pieces = pieces_of(text)
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= PIECE_CHARACTERS
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", text)


@given(st.text(alphabet=st.sampled_from("ab1é好 .,!?;:-\n\"'()。、\u2014"), max_size=1500))
def test_no_letter_or_digit_is_lost(text: str) -> None:
    pieces = pieces_of(text)
    assert re.findall(r"\w", "".join(pieces)) == re.findall(r"\w", text)
    assert all(len(each) <= PIECE_CHARACTERS and re.search(r"\w", each) for each in pieces)


def test_a_voice_is_found_in_any_case_and_the_first_is_the_usual_one() -> None:
    voices = ("af_heart", "Bella")
    assert chosen_voice(None, voices, "m") == chosen_voice("Default", voices, "m") == "af_heart"
    assert chosen_voice(" default ", voices, "m") == "af_heart"
    assert chosen_voice("bella", voices, "m") == chosen_voice(" bella ", voices, "m") == "Bella"
    assert chosen_voice(None, (), "m") is None
    with pytest.raises(CapabilityError, match="'m' has no voice 'bob'; its voices are af_heart, Bella"):
        chosen_voice("bob", voices, "m")
    with pytest.raises(CapabilityError, match="it has one voice, without a name"):
        chosen_voice("bob", (), "m")


def test_an_empty_voice_is_refused_with_every_other_fault() -> None:
    settings = SynthesisSettings(voice=" ", speed=float("nan"))
    assert settings.faults() == {
        "voice": "is empty",
        "speed": "must be at least 0.25 and at most 4 (got nan)",
    }
    with pytest.raises(ValidationError) as refusal:
        SynthesisRequest(ModelHandle("m", "/m", Origin.CACHE), "...", settings).validate()
    for fault in ("input has no letter", "voice is empty", "speed must be"):
        assert fault in refusal.value.message.replace(":", "")


def test_a_wav_header_states_the_rate_and_the_length() -> None:
    with wave.open(io.BytesIO(wav_header(22_050, 200) + bytes(200))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()) == (22_050, 1, 2, 100)


@pytest.mark.parametrize("length", [None, 2**32 - 44, 2**40])
def test_a_wav_header_without_a_length_that_it_can_state_lets_the_sound_go_on_to_the_end(length: int | None) -> None:
    header = wav_header(24_000, length)
    assert len(header) == 44
    assert header[4:8] == header[-4:] == b"\xff" * 4


def test_a_wav_header_states_the_longest_length_that_fits() -> None:
    header = wav_header(24_000, 2**32 - 45)
    assert struct.unpack("<I", header[-4:])[0] == 2**32 - 45
    assert struct.unpack("<I", header[4:8])[0] == 2**32 - 9
