"""The closed sets of values that variables take: every member, and nothing else."""

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.entrypoints.settings import read_settings

ON, OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
SWITCHES = {
    "HF_HUB_OFFLINE": "hub_offline",
    "MLXK2_ENABLE_ALPHA_FEATURES": "enable_alpha",
    "MLXK2_AUDIO_SEGMENTS": "audio_segments",
    "MLXK2_LOG_JSON": "log_json",
}
ON_BY_DEFAULT = {
    "MLXK2_ENABLE_PIPES": "enable_pipes",
    "MLXK2_EXIF_METADATA": "exif_metadata",
    "MLXK2_USE_SERVER": "use_server",
}


@pytest.mark.parametrize("word", [*ON, *OFF])
@pytest.mark.parametrize("name", SWITCHES)
def test_every_word_for_on_and_off_switches(name: str, word: str) -> None:
    for written in (word, word.upper(), f" {word} "):
        assert getattr(read_settings({"HOME": "/h", name: written}), SWITCHES[name]) is (word in ON)


@pytest.mark.parametrize("word", OFF)
@pytest.mark.parametrize("name", ON_BY_DEFAULT)
def test_every_word_for_off_switches_off_what_is_on_by_default(name: str, word: str) -> None:
    for written in (word, word.upper(), f" {word} "):
        assert not getattr(read_settings({"HOME": "/h", name: written}), ON_BY_DEFAULT[name])


@pytest.mark.parametrize("word", ["", *ON])
@pytest.mark.parametrize("name", ON_BY_DEFAULT)
def test_what_is_on_by_default_stays_on_by_every_word_for_on(name: str, word: str) -> None:
    assert getattr(read_settings({"HOME": "/h", name: word}), ON_BY_DEFAULT[name])


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_every_log_level_is_taken(level: str) -> None:
    assert read_settings({"HOME": "/h", "MLXK2_LOG_LEVEL": level}).log_level == level


@pytest.mark.parametrize(
    ("name", "field", "least", "most"),
    [
        ("MLXK2_PORT", "port", 0, 65535),
        ("MLXK2_VISION_CHUNK_SIZE", "chunk", 1, 5),
        ("MLXK2_MAX_TOKENS", "max_tokens", 1, 2**31 - 1),
    ],
)
def test_a_number_is_taken_within_its_bounds_and_refused_beyond(name: str, field: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(read_settings({"HOME": "/h", name: str(value)}).serve, field) == value
    for value in (least - 1, most + 1):
        with pytest.raises(ValidationError, match=name):
            read_settings({"HOME": "/h", name: str(value)})


def test_the_time_limit_of_the_hub_is_between_a_second_and_an_hour() -> None:
    assert [read_settings({"HOME": "/h", "HF_HUB_DOWNLOAD_TIMEOUT": value}).hub_timeout for value in ("1", "3600")] == [
        1,
        3600,
    ]
    for value in ("0", "3601", "soon"):
        with pytest.raises(ValidationError, match="HF_HUB_DOWNLOAD_TIMEOUT"):
            read_settings({"HOME": "/h", "HF_HUB_DOWNLOAD_TIMEOUT": value})
