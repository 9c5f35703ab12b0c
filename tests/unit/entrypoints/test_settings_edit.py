"""``mlxk config edit``: a real editor process on a copy, whose result is checked before it replaces the file."""

import json
import os
import stat
import sys
from pathlib import Path

import attrs
import pytest

from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.setting_table import TABLES
from mlxk.entrypoints.settings import read_settings
from mlxk.entrypoints.settings_edit import template
from mlxk.entrypoints.settings_file import check

EDITOR = """
import os, sys
path = sys.argv[-1]
text = open(path, encoding="utf-8").read()
text = {change}
open(path, "w", encoding="utf-8").write(text)
sys.exit({status})
"""


@attrs.define
class Machine:
    """A home with a settings file, and an editor."""

    home: Path
    capfd: pytest.CaptureFixture[str]

    @property
    def file(self) -> Path:
        """The settings file."""
        return self.home / ".config" / "mlxk" / "config.toml"

    def edit(self, change: str, *flags: str, status: int = 0, before: str = "") -> tuple[int, str, str]:
        """Run the command with an editor that changes ``text``, and return its status, output and messages."""
        script = self.home / "editor.py"
        script.write_text(before + EDITOR.format(change=change, status=status))
        settings = read_settings({"HOME": str(self.home), "EDITOR": "never", "VISUAL": f"{sys.executable} '{script}'"})

        def unused(*_: object) -> int:
            raise AssertionError("not needed to edit")

        done = run(["config", "edit", *flags], CommandContext(settings, unused, unused))
        printed = self.capfd.readouterr()
        return done, printed.out, printed.err

    def rest(self) -> list[str]:
        """Return what lies beside the file."""
        return sorted(each.name for each in self.file.parent.iterdir() if each != self.file)


@pytest.fixture
def machine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Machine:
    home = tmp_path / "my home"
    home.mkdir()
    return Machine(home, capfd)


def test_a_new_file_is_commented_and_for_this_user_only(machine: Machine) -> None:
    assert machine.edit("text") == (0, "~/.config/mlxk/config.toml is written\n", "")
    assert machine.file.read_text() == template()
    assert stat.S_IMODE(machine.file.stat().st_mode) == 0o600
    assert machine.rest() == []
    assert machine.edit("text")[1] == "~/.config/mlxk/config.toml is as it was\n"


def test_what_the_editor_writes_is_kept_byte_by_byte_with_the_mode(machine: Machine) -> None:
    machine.edit("text")
    machine.file.chmod(0o640)
    written = "# mine\r\ncolor = false   # no colours\r\n\r\n[serve]\r\nport = 1\r\n"
    assert machine.edit(repr(written), before="import io; _open = open\n")[0] == 0
    assert machine.file.read_bytes() == written.encode()
    assert stat.S_IMODE(machine.file.stat().st_mode) == 0o640
    assert not read_settings({"HOME": str(machine.home)}).color


def test_a_link_stays_and_leads_to_what_was_written(machine: Machine) -> None:
    dotfiles = machine.home / "dotfiles"
    dotfiles.mkdir()
    machine.file.parent.mkdir(parents=True)
    machine.file.symlink_to("../../dotfiles/mlxk.toml")
    for port in (1, 2):
        assert machine.edit(f"'[serve]\\nport = {port}\\n'")[0] == 0
        assert machine.file.is_symlink()
        assert (dotfiles / "mlxk.toml").read_text() == f"[serve]\nport = {port}\n"
    assert [each.name for each in dotfiles.iterdir()] == ["mlxk.toml"]


def test_a_result_with_faults_is_refused_with_their_lines_and_kept_beside(machine: Machine) -> None:
    machine.edit("'color = true\\n'")
    status, out, err = machine.edit("'color = true\\n[serve]\\nprot = 1\\n'")
    assert (status, out) == (1, "")
    assert "line 3: [serve] there is no setting 'prot'. Did you mean port?" in err
    assert machine.file.read_text() == "color = true\n"
    (draft,) = machine.rest()
    assert draft in err
    assert "prot" in (machine.file.parent / draft).read_text()


@pytest.mark.parametrize("content", [b"[serve\n", b"\xff\xfe", b"[serve]\nprot = 1\n"])
def test_a_broken_file_can_be_edited(machine: Machine, content: bytes) -> None:
    machine.file.parent.mkdir(parents=True)
    machine.file.write_bytes(content)
    replaced = machine.edit(
        "'color = true\\n'", before="import io\nopen = lambda *a, **k: io.open(*a, errors='replace', **k)\n"
    )
    assert replaced[0] == 0
    assert machine.file.read_text() == "color = true\n"


def test_an_editor_that_fails_changes_nothing(machine: Machine) -> None:
    status, _, err = machine.edit("'color = true\\n'", status=3)
    assert (status, "status 3" in err, machine.file.exists(), machine.rest()) == (1, True, False, [])


def test_a_file_that_someone_else_changes_meanwhile_is_not_overwritten(machine: Machine) -> None:
    machine.edit("'color = true\\n'")
    other = f"open({str(machine.file)!r}, 'w').write('color = false\\n')\n"
    status, _, err = machine.edit("text + '# mine\\n'", before=other)
    assert (status, "changed meanwhile" in err) == (1, True)
    assert machine.file.read_text() == "color = false\n"


def test_an_editor_that_cannot_be_used_or_fails_is_named(machine: Machine) -> None:
    def unused(*_: object) -> int:
        raise AssertionError

    for editor, said in (
        ("/nowhere/ed -w", "'/nowhere/ed -w' cannot be used"),
        ("'ed", "no command"),
        ("rm", "the editor has left no file; the settings file is as it was"),
        ("sh -c 'kill -9 $$'", "the editor ended by signal 9"),
    ):
        settings = read_settings({"HOME": str(machine.home), "EDITOR": editor})
        assert run(["config", "edit"], CommandContext(settings, unused, unused)) == 1
        assert said in machine.capfd.readouterr().err
    assert machine.rest() == []


def test_a_folder_that_cannot_be_written_is_named(machine: Machine) -> None:
    machine.file.parent.parent.write_text("in the way")
    status, _, err = machine.edit("text")
    assert (status, "cannot be written" in err or "cannot be read" in err) == (1, True)


def test_as_json_the_editor_keeps_away_from_standard_output(machine: Machine) -> None:
    status, out, _ = machine.edit("'color = true\\n'", "--json", before="print('an editor greets')\n")
    data = json.loads(out)["data"]
    assert (status, data) == (0, {"path": str(machine.file), "exists": True, "changed": True})
    assert os.path.exists(data["path"])


def test_the_new_file_lists_every_setting_and_is_right_in_every_line() -> None:
    text = template()
    assert check("/x", text.encode()).faults == ()
    for table, settings in TABLES.items():
        begin = text.index(f"# [{table}]\n") if table else 0
        for setting in settings:
            assert f"# {setting.key} = " in text[begin:]
    lines = [
        line.removeprefix("# ") for line in text.splitlines() if (" = " in line and "…" not in line) or "# [" in line
    ]
    assert check("/x", "\n".join(lines).encode()).faults == ()


WEIRD = (
    *("''", "' '", '"\\u0000"', "'/x'", "'http://'", "'http://h:0'", "'http://h:x'", "'~'", "-1", "0", "1e400", "nan"),
    *("9007199254740993", "99999999999999999999", "[]", "[1]", "['']", "{}", "true", "1979-05-27", "'a\u2028b'"),
)


@pytest.mark.parametrize("table", TABLES)
def test_no_content_of_the_file_keeps_the_program_from_starting(machine: Machine, table: str) -> None:
    machine.file.parent.mkdir(parents=True)
    for setting in TABLES[table]:
        for value in WEIRD:
            machine.file.write_text((f"[{table}]\n" if table else "") + f"{setting.key} = {value}\n")
            settings = read_settings({"HOME": str(machine.home)})
            assert settings.file.faults or settings.file.values(table), (setting.key, value)


def test_a_process_of_a_server_gets_what_was_read_and_does_not_read_again(machine: Machine) -> None:
    machine.file.parent.mkdir(parents=True)
    machine.file.write_text('exif_metadata = false\n[hub]\ncache = "/models"\n')
    first = read_settings({"HOME": str(machine.home)})
    machine.file.write_text("[broken\n")
    handed = tuple(json.loads(json.dumps(first.file_variables)))
    again = read_settings({"HOME": str(machine.home)}, handed)
    assert (again.hub_cache, again.exif_metadata, again.file.faults) == ("/models", False, ())
    assert read_settings({"HOME": str(machine.home), "HF_HUB_CACHE": "/c"}, handed).hub_cache == "/c"


def test_secrets_that_others_can_read_are_said_to_be_so(machine: Machine) -> None:
    machine.file.parent.mkdir(parents=True)
    machine.file.write_text('[serve]\napi_key = "sk-1"\n')

    def unused(*_: object) -> int:
        raise AssertionError

    said = []
    for mode in (0o644, 0o600):
        machine.file.chmod(mode)
        context = CommandContext(read_settings({"HOME": str(machine.home)}), unused, unused)
        assert run(["config"], context) == 0
        said.append("can read the secrets in ~/.config/mlxk/config.toml" in machine.capfd.readouterr().err)
    assert said == [True, False]
