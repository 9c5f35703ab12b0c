"""The settings file and names in processes of their own: an editor in a pseudo-terminal, a chat, a shell's Tab."""

import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

pytestmark = pytest.mark.e2e

EDITOR = """
import sys
path = sys.argv[1]
text = open(path).read()
input("editing: ")
open(path, "w").write("color = false\\n" if "colour" in text else "color = false\\ncolour = 1\\n")
"""


def write(environment: dict[str, str], text: str) -> Path:
    """Write the settings file of an environment."""
    file = Path(environment["HOME"], ".config", "mlxk", "config.toml")
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


def test_a_fault_is_shown_and_edited_again_before_the_file_is_replaced(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    file = write(program_environment, "color = true\n")
    script = tmp_path / "editor.py"
    script.write_text(EDITOR)
    environment = {**program_environment, "VISUAL": f"{sys.executable} {script}", "TERM": "dumb"}
    terminal = pexpect.spawn(
        sys.executable, ["-m", "mlxk", "config", "edit"], env=environment, encoding="utf-8", timeout=60
    )
    terminal.expect_exact("editing: ")
    terminal.sendline("")
    terminal.expect_exact("line 2: there is no setting 'colour'")
    terminal.expect_exact("Edit it again? [Y/n]: ")
    assert file.read_text() == "color = true\n"
    terminal.sendline("")
    terminal.expect_exact("editing: ")
    terminal.sendline("")
    terminal.expect_exact("config.toml is written")
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0
    assert file.read_text() == "color = false\n"
    assert [each.name for each in file.parent.iterdir()] == ["config.toml"]


def test_a_chat_begins_with_the_system_prompt_of_a_name_until_the_user_takes_it_away(
    program_environment: dict[str, str],
) -> None:
    write(program_environment, '[models.poet]\nmodel = "demo"\nsystem = "Rhyme."\nmax_tokens = 2\ntemperature = 0\n')
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "mlxk", "run", "poet"],
        env={**program_environment, "TERM": "dumb"},
        encoding="utf-8",
        timeout=60,
    )
    for typed, shown in (
        ("/show", "system: Rhyme."),
        ("Hello!", "[Output cut at 2 tokens"),
        ("/system", "the system prompt is removed"),
        ("/system Be brief.", "the system prompt is set"),
        ("/show", "system: Be brief."),
        ("/bye", pexpect.EOF),
    ):
        terminal.expect_exact(">>> ")
        terminal.sendline(typed)
        terminal.expect_exact(shown)
    terminal.wait()
    assert terminal.exitstatus == 0


def test_a_shell_completes_names(program_environment: dict[str, str]) -> None:
    write(program_environment, '[models.poet]\nmodel = "demo"\n')
    line = "mlxk run po"
    variables = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE": "1"}
    with_descriptor = f"exec 8>&1; exec {sys.executable} -m mlxk"
    done = subprocess.run(
        ["bash", "-c", with_descriptor],
        env={**program_environment, **variables, "_ARGCOMPLETE_IFS": "\n"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split() == ["poet"]
