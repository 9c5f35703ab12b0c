"""The closed sets of values that variables take: every member, and nothing else."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.entrypoints.setting_table import TABLES, Setting
from mlxk.entrypoints.settings import read_settings
from mlxk.entrypoints.settings_file import check

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


def test_a_variable_of_thousands_of_digits_is_refused_like_any_other() -> None:
    with pytest.raises(ValidationError, match="MLXK2_PORT must be a whole number"):
        read_settings({"HOME": "/h", "MLXK2_PORT": "9" * 5000})


HUGE = {
    "decimal": "1" + "0" * 400,
    "negative": "-1" + "0" * 400,
    "hexadecimal": f"0x{'f' * 5000}",
    "float": "1e300",
    "infinite": "inf",
    "no number": "nan",
}
EVERY = [(table, setting) for table, settings in TABLES.items() for setting in settings]
NUMBERS = [pytest.param(*each, id=f"{each[0]}.{each[1].key}") for each in EVERY if "number" in each[1].kind.words]


@pytest.mark.parametrize("written", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize(("table", "setting"), NUMBERS)
def test_a_number_that_nothing_can_compute_with_is_a_fault_of_its_line(
    table: str, setting: Setting, written: str
) -> None:
    heading = f"[{table}]\n" if table else ""
    for text in (f"{heading}{setting.key} = {written}\n", f"{heading}{setting.key} = [{written}]\n"):
        (fault,) = check("/f", text.encode()).faults
        assert (fault.line, f"{setting.key} must be" in fault.message) == (1 + bool(table), True)
        assert len(fault.message) < 200


@pytest.mark.parametrize(("table", "setting"), [pytest.param(*each, id=f"{each[0]}.{each[1].key}") for each in EVERY])
def test_a_value_of_any_other_type_is_a_fault_of_its_line(table: str, setting: Setting) -> None:
    values = (f"0x{'f' * 5000}", "1979-05-27T07:32:00Z", "07:32:00", f"{'[' * 90}{']' * 90}", "{a = inf}")
    for value in (*values, f"{{{'a.' * 900}a = 1}}"):
        text = (f"[{table}]\n" if table else "") + f"{setting.key} = {value}\n"
        (fault,) = check("/f", text.encode()).faults
        assert fault.line == 1 + bool(table)


UNFIT = {name: text for name, text in HUGE.items() if name != "float"} | {
    "date": "1979-05-27",
    "lists": f"{'[' * 60}{']' * 60}",
    "tables": f"{{{'a.' * 40}a = 1}}",
    "many tables": f"{{{'a.' * 900}a = 1}}",
}


@pytest.mark.parametrize("value", UNFIT.values(), ids=UNFIT)
def test_a_variable_of_the_template_is_a_value_of_json(value: str) -> None:
    (fault,) = check("/f", f"[run]\ntemplate_option = {{x = {value}}}\n".encode()).faults
    assert "must be a table of JSON values" in fault.message


@pytest.mark.parametrize("depth", range(60, 1000, 7))
def test_a_file_nested_at_any_depth_has_a_fault(depth: int) -> None:
    for text in (f"x = {'[' * depth}{']' * depth}", f"[{'a.' * depth}a]", f"[run]\n{'a.' * depth}a = 1"):
        assert check("/f", text.encode()).faults


@pytest.mark.e2e
def test_every_command_names_a_huge_number_and_the_file(
    mlxk: Callable[..., "subprocess.CompletedProcess[str]"], program_environment: dict[str, str]
) -> None:
    file = Path(program_environment["HOME"]) / ".config" / "mlxk" / "config.toml"
    file.parent.mkdir(parents=True)
    for number in (HUGE["decimal"], HUGE["hexadecimal"]):
        file.write_text(f"[run]\nmax_tokens = {number}\n")
        listed = mlxk("list")
        assert (listed.returncode, "config.toml: line 2: [run] max_tokens must be at" in listed.stderr) == (0, True)
        refused = mlxk("run", "demo", "hi", "--json")
        assert "max_tokens must be at" in json.loads(refused.stdout)["error"]["message"]
        assert mlxk("config", "edit", EDITOR="sed -i -e 2d").returncode == 0
        assert file.read_text() == "[run]\n"
