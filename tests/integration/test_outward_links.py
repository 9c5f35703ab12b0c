"""Links that lead out of a workspace: clone, convert and push refuse them alike, and copy nothing of their target."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import tiny_models

Command = Callable[..., dict[str, Any]]
PRIVATE = "private text of this machine"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Make a runnable workspace, with private files beside it."""
    tiny_models.build(tmp_path / "work")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "notes.txt").write_text(PRIVATE)
    return tmp_path / "work"


COMMANDS = {
    "clone": ("clone", "./work", "./made"),
    "clone unchecked": ("clone", "./work", "./made", "--no-health-check"),
    "quantize": ("convert", "./work", "./made", "--quantize", "4"),
    "repair": ("convert", "./work", "./made", "--repair-index"),
    "push": ("push", "./work", "me/m", "--private", "--check-only"),
}
LINKS = {
    "file": ("notes.txt", "private/notes.txt"),
    "file in a folder": ("docs/notes.txt", "private/notes.txt"),
    "system file": ("host.txt", "/etc/hostname"),
    "folder": ("docs", "private"),
    "nowhere": ("gone.txt", "private/gone.txt"),
}


@pytest.mark.parametrize("link", sorted(LINKS))
@pytest.mark.parametrize("kind", sorted(COMMANDS))
def test_a_link_out_of_a_workspace_is_refused_and_its_target_not_copied(
    command: Command, workspace: Path, tmp_path: Path, kind: str, link: str
) -> None:
    path, target = LINKS[link]
    (workspace / path).parent.mkdir(exist_ok=True)
    (workspace / path).symlink_to(tmp_path / target)
    refused = command(*COMMANDS[kind])
    assert refused["status"] == "error", refused
    made = tmp_path / "made"
    assert not [each for each in made.rglob("*") if each.is_file() and PRIVATE.encode() in each.read_bytes()]
    if link != "nowhere":
        assert path in refused["error"]["message"]


@pytest.mark.parametrize("kind", sorted(COMMANDS))
def test_a_link_inside_a_workspace_is_kept_as_a_file(command: Command, workspace: Path, kind: str) -> None:
    (workspace / "alias.json").symlink_to("config.json")
    assert command(*COMMANDS[kind])["status"] == "success"
