"""Settings and names as ``config``, ``alias`` and the completion of a shell show them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving.settings_home import Machine

COMMIT = "0123456789abcdef0123456789abcdef01234567"
POET = '[models.poet]\nmodel = "demo"\nstop = ["a \\"b\\""]\ntemperature = 0.5\n'


@pytest.fixture
def mlxk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path / "home", capsys)


def rows(text: str) -> dict[str, list[str]]:
    """Return value and source of each setting of a table."""
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.count("|") == 2]
    return {name: rest for name, *rest in cells}


def test_without_a_file_the_command_that_makes_one_is_named(mlxk: Machine) -> None:
    done = mlxk("config")
    assert done.status == 0
    assert done.err == "There is no ~/.config/mlxk/config.toml; make it with: mlxk config edit\n"
    assert not mlxk.file.exists()


def test_names_stand_below_the_settings_as_in_the_file(mlxk: Machine) -> None:
    mlxk.write(POET + '[models."new one"]\nmodel = "demo-vision"\n')
    done = mlxk("config")
    table, _, names = done.out.partition("\n\n")
    assert rows(table)["run.temperature"][-1] == "default"
    assert names.replace("\n\n", "\n") == (POET + '[models."new one"]\nmodel = "demo-vision"\n')
    assert done.err == ""


@pytest.mark.parametrize(
    ("text", "variables", "shown"),
    [
        ("", {}, ["true", "default"]),
        ("color = false\n", {}, ["false", "file"]),
        ("color = false\n", {"TERM": "dumb"}, ["false", "file"]),
        ("color = true\n", {"TERM": "dumb"}, ["false", "environment (TERM)"]),
        ("", {"TERM": "dumb"}, ["false", "environment (TERM)"]),
        ("color = true\n", {"NO_COLOR": "1", "TERM": "dumb"}, ["false", "environment (NO_COLOR)"]),
    ],
)
def test_what_decides_about_colours_is_said(
    mlxk: Machine, text: str, variables: dict[str, str], shown: list[str]
) -> None:
    mlxk.write(text)
    assert rows(mlxk("config", **variables).out)["color"] == shown


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("serve 'x", "--for: No closing quotation"),
        ("mlxk", "--for: 'mlxk' does not begin with a command"),
        ("nosuch x", "--for: 'nosuch x' does not begin with a command"),
    ],
)
def test_a_line_that_is_no_command_line_is_refused(mlxk: Machine, line: str, said: str) -> None:
    done = mlxk("config", "--for", line)
    assert (done.status, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize(
    "words", [("alias", "fast", "demo"), ("alias", "rm", "fast"), ("profile", "fast", "--seed", "1")]
)
def test_a_file_that_is_not_toml_is_not_written_over(mlxk: Machine, words: tuple[str, ...]) -> None:
    mlxk.write("[serve\n")
    done = mlxk(*words)
    assert (done.status, done.out) == (1, "")
    assert "~/.config/mlxk/config.toml: line 1: " in done.err
    assert mlxk.file.read_text() == "[serve\n"
    assert os.listdir(mlxk.file.parent) == ["config.toml"]


def test_a_name_that_hides_a_cached_model_says_which(mlxk: Machine) -> None:
    model = mlxk.home / ".cache" / "huggingface" / "hub" / "models--org--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    (model / "snapshots" / COMMIT / "config.json").write_text("{}")
    hidden = mlxk("alias", "tiny", "demo")
    assert (hidden.status, hidden.out) == (0, "tiny = demo\n")
    assert hidden.err == "[tiny now means demo; the model of that name is org/tiny]\n"
    assert mlxk("alias", "tiny", "org/tiny").err == ""
    assert mlxk("alias", "small", "org/tiny").err == ""
    missing = mlxk("alias", "later", "org/nosuch")
    assert (missing.status, missing.out) == (0, "later = org/nosuch\n")
    assert missing.err.endswith("; the name works when there is one]\n")


def test_what_was_removed_is_said(mlxk: Machine) -> None:
    mlxk.write(POET + '[models.odd]\nmodel = "demo"\nsedd = 1\n')
    removed = mlxk("alias", "rm", "POET", "--json").data
    assert removed == {
        "path": str(mlxk.file),
        "names": [{"name": "poet", "values": {"model": "demo", "stop": ['a "b"'], "temperature": 0.5}}],
        "changed": True,
    }
    assert mlxk("alias", "rm", "odd", "--json").data["names"] == []  # its faults kept it from being read
    assert "models." not in mlxk.file.read_text()
    absent = mlxk("alias", "rm", "poet")
    assert (absent.status, absent.err.splitlines()[-1]) == (1, "See all names: mlxk alias")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mlxk alias ", {"poet", "proud", "list", "rm"}),
        ("mlxk alias p", {"poet", "proud"}),
        ("mlxk alias rm po", {"poet"}),
        ("mlxk alias rm l", set()),
        ("mlxk alias new demo-v", {"demo-vision"}),
        ("mlxk profile new d", set()),
        ("mlxk chats rm 2026-0", {"2026-01-02-030405", "2026-03-02-030405"}),
        ("mlxk chats rm 2026-03", {"2026-03-02-030405"}),
    ],
)
def test_a_shell_is_offered_names_where_names_are_typed(
    program_environment: dict[str, str], mlxk: Machine, line: str, offered: set[str]
) -> None:
    mlxk.write(POET + '[models.proud]\nmodel = "demo"\n')
    chats = mlxk.home / ".local" / "state" / "mlxk" / "chats"
    chats.mkdir(parents=True)
    for name in ("2026-01-02-030405", "2026-03-02-030405"):
        (chats / f"{name}.json").touch()
    typed = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    done = subprocess.run(
        f'exec 8>&1; "{sys.executable}" -m mlxk',
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
        env={**program_environment, **typed, "_ARGCOMPLETE_IFS": "\n"},
    )
    assert {each.strip() for each in done.stdout.splitlines()} == offered
