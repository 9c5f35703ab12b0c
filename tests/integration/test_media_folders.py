"""Files that requests name: those below the folders that the operator allows, and nothing else of the machine."""

import os
import socket
import threading
from pathlib import Path

import pytest

from mlxk.adapters.filesystem.media_folders import FolderMediaSource
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import IMAGES

SECRET = b"secret"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder with one to allow and a secret beside it."""
    (tmp_path / "allowed" / "deep").mkdir(parents=True)
    (tmp_path / "allowed" / "a b%20.png").write_bytes(b"A")
    (tmp_path / "allowed" / "deep" / "b.png").write_bytes(b"B")
    (tmp_path / "allowed-too.png").write_bytes(SECRET)
    (tmp_path / "secret.png").write_bytes(SECRET)
    return tmp_path


def read(home: Path, reference: str, max_bytes: int = 100) -> bytes:
    return FolderMediaSource([str(home / "allowed")]).read(reference, IMAGES, max_bytes, 0)


def test_files_are_named_by_path_and_by_url(home: Path) -> None:
    assert read(home, f"{home}/allowed/deep/b.png") == b"B"
    assert read(home, f"{home}/allowed//deep/../deep/./b.png") == b"B"
    assert read(home, f"file://{home}/allowed/a%20b%2520.png") == b"A"
    assert read(home, f"FILE://localhost{home}/allowed/deep/b.png") == b"B"


def test_links_lead_to_places_below_the_folder_alone(home: Path) -> None:
    folder = home / "allowed"
    (folder / "near.png").symlink_to("deep/b.png")
    (folder / "nearby").symlink_to(folder / "deep")
    (folder / "far.png").symlink_to(home / "secret.png")
    (folder / "up").symlink_to("..")
    (folder / "round").symlink_to("round")
    assert read(home, f"{folder}/near.png") == b"B"
    assert read(home, f"{folder}/nearby/b.png") == b"B"
    for name in ("far.png", "up/secret.png", "round/b.png"):
        with pytest.raises(ValidationError):
            read(home, f"{folder}/{name}")
    (home / "entry").symlink_to(folder)
    assert FolderMediaSource([f"{home}/entry/"]).read(f"{home}/entry/deep/b.png", IMAGES, 9, 0) == b"B"
    assert FolderMediaSource([f"{home}/entry"]).read(f"{folder}/deep/b.png", IMAGES, 9, 0) == b"B"


@pytest.mark.parametrize(
    "reference",
    [
        "{home}/secret.png",
        "{home}/absent.png",
        "{home}/allowed-too.png",
        "{home}/allowed/../secret.png",
        "{home}/allowed/deep/../../secret.png",
        "file://{home}/allowed/%2e%2e/secret.png",
        "file://{home}/allowed/..%2Fsecret.png",
        "/etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
    ],
)
def test_what_is_elsewhere_is_refused_in_the_same_words_whether_it_is_there(home: Path, reference: str) -> None:
    with pytest.raises(ValidationError) as refused:
        read(home, reference.format(home=home))
    assert refused.value.message == "is not below a folder from which this server reads media"


@pytest.mark.parametrize(
    "reference", ["file://else{home}/allowed/deep/b.png", "file:b.png", "file:///allowed/%00", "file://["]
)
def test_urls_of_files_that_are_none_are_refused(home: Path, reference: str) -> None:
    with pytest.raises(ValidationError, match=r"must be file:///|is not the path"):
        read(home, reference.format(home=home))


def test_only_regular_files_are_read_and_never_waited_for(home: Path) -> None:
    folder = home / "allowed"
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket has few characters
        try:
            listening.bind("socket.png")
        finally:
            os.chdir(here)
        for name, said in (
            ("pipe.png", "regular"),
            ("socket.png", "regular"),
            ("deep", "folder"),
            ("no.png", "no such"),
        ):
            with pytest.raises(ValidationError, match=said):
                read(home, f"{folder}/{name}")
    with pytest.raises(ValidationError, match="not below"):
        read(home, str(folder))
    with pytest.raises(ValidationError, match=r"no such|NotADirectory"):
        read(home, f"{folder}/deep/b.png/c.png")
    (folder / "long.png").write_bytes(bytes(101))
    os.truncate(folder / "long.png", 2**40)
    with pytest.raises(ValidationError, match="has more than"):
        read(home, f"{folder}/long.png")


def test_a_place_that_changes_while_it_is_opened_leads_nowhere_else(home: Path) -> None:
    folder = home / "allowed"
    names = ("swap", "deep")
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for target in (home, folder / "deep"):
                (folder / "new").symlink_to(target)
                os.replace(folder / "new", folder / names[0])

    (home / "b.png").write_bytes(SECRET)
    changer = threading.Thread(target=change)
    changer.start()
    found = set()
    try:
        for _ in range(2000):
            try:
                found.add(read(home, f"{folder}/swap/b.png"))
            except ValidationError:
                continue
    finally:
        done.set()
        changer.join()
    assert SECRET not in found
