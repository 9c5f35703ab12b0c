"""Values and files that cannot be written: every command that changes the settings file says so, and leaves it."""

import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxk.entrypoints.setting_kinds import TEXTS
from mlxk.entrypoints.setting_table import ENTRY, Setting

pytestmark = pytest.mark.e2e
Program = Callable[..., "subprocess.CompletedProcess[str]"]
TEXT = "[models.other]\nmodel = 'demo'\n"
WRITTEN = [each for each in ENTRY if each.kind.words.startswith(("a text", "a list of texts", "a path"))]


@pytest.fixture
def file(program_environment: dict[str, str]) -> Path:
    """The settings file, with one name."""
    path = Path(program_environment["HOME"]) / ".config" / "mlxk" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(TEXT)
    return path


def refused(done: "subprocess.CompletedProcess[str]", file: Path, *said: str) -> bool:
    """Whether a command named what is wrong, and left the file alone."""
    assert file.read_text() == TEXT
    assert os.listdir(file.parent) == [file.name]
    assert done.returncode == 1, done
    assert all(word in done.stderr for word in said), done
    return "fault of mlxk" not in done.stderr


@pytest.mark.parametrize("setting", [pytest.param(each, id=each.key) for each in WRITTEN])
def test_text_that_is_not_unicode_is_refused_by_its_flag(mlxk: Program, file: Path, setting: Setting) -> None:
    flag = f"--{setting.key.replace('_', '-')}"
    model = [] if setting.key == "model" else ["--model", "demo"]
    values = ["/a\udcff"] + (["\udcff"] if setting.kind is TEXTS else [])
    for value in values:
        assert refused(mlxk("profile", "poet", *model, f"{flag}={value}"), file, flag, "UTF-8")


@pytest.mark.parametrize(
    "option",
    [
        *("a=\udcff", "\udcff=1", r'a="\ud800"', r'a={"\udfff": 1}', r'a=[["\ud800"]]', "a=null", "a=[null]", "a=NaN"),
        *("a=1e999", f"a={'[' * 60}{']' * 60}", f"a={'[' * 900}{']' * 900}", f"a=1{'0' * 400}"),
    ],
    ids=lambda option: ascii(option)[:20],
)
def test_a_variable_of_the_template_that_toml_cannot_hold_is_refused(mlxk: Program, file: Path, option: str) -> None:
    done = mlxk("profile", "poet", "--model", "demo", "--template-option", option)
    assert refused(done, file, "null cannot be written" if "null" in option else "template")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("temperature", "nan"), ("keep-alive", "inf"), ("keep-alive", "1e300"), ("max-tokens", "1" + "0" * 400)],
)
def test_a_number_that_is_none_is_refused_by_its_name(mlxk: Program, file: Path, flag: str, value: str) -> None:
    done = mlxk("profile", "poet", "--model", "demo", f"--{flag}", value)
    assert refused(done, file, f"[models.poet] {flag.replace('-', '_')} must be")


def test_an_alias_that_is_not_unicode_is_refused(mlxk: Program, file: Path) -> None:
    for words in (("\udcff", "demo"), ("poet", "org/\udcff"), ("poet", "/\udcff")):
        assert refused(mlxk("alias", *words), file)


def test_a_pipe_in_place_of_the_file_is_not_waited_for(mlxk: Program, file: Path) -> None:
    file.unlink()
    os.mkfifo(file)
    for line in (["alias", "poet", "demo"], ["alias", "rm", "poet"], ["profile", "poet", "--seed", "1"]):
        assert "no regular file" in mlxk(*line).stderr
    edited = mlxk("config", "edit", EDITOR="true")
    assert (edited.returncode, "no regular file" in edited.stderr) == (1, True)
    assert stat.S_ISFIFO(file.stat().st_mode)


def test_a_file_without_end_is_not_read_to_its_end(mlxk: Program, file: Path) -> None:
    os.truncate(file, 2**40)
    edited = mlxk("config", "edit", EDITOR="true")
    assert (edited.returncode, "larger than" in edited.stderr) == (1, True)
    assert "larger than" in mlxk("alias", "poet", "demo").stderr


def test_a_file_that_is_too_large_can_be_edited(mlxk: Program, file: Path) -> None:
    file.write_text("#\n" * 200_000)
    assert mlxk("config", "edit", EDITOR="sed -i -e /#/d").returncode == 0
    assert file.read_text() == ""


def test_a_full_disk_leaves_the_file_and_nothing_beside_it(file: Path, program_environment: dict[str, str]) -> None:
    for line in (["alias", "poet", "demo"], ["profile", "poet", "--model", "demo"], ["config", "edit"]):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mlxk", *line],
            env=program_environment | {"EDITOR": "true", "PYTHONDONTWRITEBYTECODE": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused(done, file, "cannot be written")


def test_what_is_allowed_is_written_and_read_again(mlxk: Program, file: Path) -> None:
    option = {"a": [1, {"b": "\u007f😀\u0001"}], "c": True, "d": 0.5}
    flags = [f"--template-option={key}={json.dumps(value)}" for key, value in option.items()]
    done = mlxk("profile", "poet", "--model", "demo", "--system", 'a\t"b"\r\nc\\', *flags, "--json")
    values = json.loads(done.stdout)["data"]["names"][0]["values"]
    assert (values["system"], values["template_option"]) == ('a\t"b"\r\nc\\', option)
