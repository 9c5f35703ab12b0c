"""The environment, read once into a frozen value."""

import os

import pytest
from environment_variables import VARIABLES

from mlxk.domain.errors import ValidationError
from mlxk.entrypoints.settings import read_settings, temporary_environment


def test_variables_that_are_set_for_a_library_give_way_to_the_users_own_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_RANK", "7")
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)
    with temporary_environment({"MLX_RANK": "0", "MLX_HOSTFILE": "/hosts"}):
        assert (os.environ["MLX_RANK"], os.environ["MLX_HOSTFILE"]) == ("0", "/hosts")
    assert os.environ["MLX_RANK"] == "7"
    assert "MLX_HOSTFILE" not in os.environ


def test_the_cache_is_below_the_home_directory_by_default() -> None:
    assert read_settings({"HOME": "/home/ada"}).hub_cache == "/home/ada/.cache/huggingface/hub"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HF_HOME": "/hf"}, "/hf/hub"),
        ({"HF_HUB_CACHE": "/c"}, "/c"),
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/hf"}, "/c"),
        ({"HF_HOME": "~/models"}, "/home/ada/models/hub"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/huggingface/hub"),
        ({"HF_HOME": "", "HF_HUB_CACHE": ""}, "/home/ada/.cache/huggingface/hub"),
    ],
)
def test_both_cache_variables_are_honoured_and_empty_counts_as_unset(environ: dict[str, str], expected: str) -> None:
    assert read_settings({"HOME": "/home/ada", **environ}).hub_cache == expected


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("ON", True), ("0", False), ("no", False)]
)
def test_a_switch_is_on_for_the_usual_words(value: str, expected: bool) -> None:
    assert read_settings({"HOME": "/h", "MLXK2_AUDIO_SEGMENTS": value}).audio_segments is expected


def test_a_value_outside_its_closed_set_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"MLXK2_LOG_LEVEL must be one of .* \(got 'loud'\)"):
        read_settings({"HOME": "/h", "MLXK2_LOG_LEVEL": "loud"})


@pytest.mark.parametrize(
    "address",
    ["hub.example", "ftp://hub.example", "https://", "http:///x", "http://:80", "http://hub:x", "/hub", "http://a\nb"],
)
def test_an_address_without_a_host_is_refused_by_name(address: str) -> None:
    with pytest.raises(ValidationError, match="HF_ENDPOINT must begin with http:// or https://"):
        read_settings({"HOME": "/h", "HF_ENDPOINT": address})
    assert read_settings({"HOME": "/h", "HF_ENDPOINT": " https://hub.example/ "}).hub_endpoint == "https://hub.example"


def test_every_variable_is_described_once() -> None:
    names = [variable.name for variable in VARIABLES]
    assert len(names) == len(set(names))
