"""The contract of reading a folder that is to be published, held by every adapter."""

import hashlib
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from doubles.publication_folder import InMemoryPublicationFolder
from hub.storage import git_sha1

from mlxk.adapters.filesystem.publication_folder import FilesystemPublicationFolder
from mlxk.application.ports.hub import PublicationFolder
from mlxk.domain.errors import StorageError, ValidationError

Build = Callable[[Mapping[str, bytes]], tuple[PublicationFolder, str]]

RULES = b"# rules\n*.log\n!keep.log\n/top.txt\nbuild/\nsub/*.bin\n**/deep.json\n\\#name\nspaced\\ \npart\x0c*.json\n\n"
PATHS = [
    "a.log", "keep.log", "sub/b.log", "top.txt", "sub/top.txt", "build/x.json", "sub/build/y.json", "sub/w.bin",
    "w.bin", "deep.json", "a/b/deep.json", "#name", "spaced ", "config.json", "build.json", "x/keep.log", "sub/x/w.bin",
]  # fmt: skip


@pytest.fixture(params=["filesystem", "in_memory"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    directory = tmp_path / "work"

    def on_disk(files: Mapping[str, bytes]) -> tuple[PublicationFolder, str]:
        for path, content in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)
        return FilesystemPublicationFolder(), str(directory)

    def in_memory(files: Mapping[str, bytes]) -> tuple[PublicationFolder, str]:
        return InMemoryPublicationFolder({str(directory): files}), str(directory)

    return on_disk if request.param == "filesystem" else in_memory


def published(folder: PublicationFolder, directory: str) -> list[str]:
    return [file.path for file in folder.scan(directory).files]


def test_ignore_rules_mean_what_they_mean_to_git(build: Build, tmp_path: Path) -> None:
    folder, directory = build({**dict.fromkeys(PATHS, b"x"), ".hfignore": RULES})
    oracle = tmp_path / "oracle"
    oracle.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=oracle, check=True)
    (oracle / ".gitignore").write_bytes(RULES)
    asked = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin", "-z"],
        input="\0".join(PATHS).encode(), cwd=oracle, capture_output=True, check=False,
    )  # fmt: skip
    ignored = set(asked.stdout.decode().split("\0"))
    assert published(folder, directory) == sorted(path for path in PATHS if path not in ignored)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (b"*.log\n!\n", ".hfignore has a rule that cannot be understood: Invalid git pattern: '!'"),
        (b"[z-a]\n", ".hfignore has a rule that cannot be understood: bad character range z-a"),
        (b"gr\xfcn\n", ".hfignore is not UTF-8"),
    ],
)
def test_rules_that_cannot_be_understood_stop_the_publication(build: Build, rules: bytes, said: str) -> None:
    folder, directory = build({".hfignore": rules, "secret.log": b""})
    with pytest.raises(ValidationError) as caught:
        folder.scan(directory)
    assert caught.value.message.startswith(said)


def test_rules_that_cannot_be_read_stop_the_publication(tmp_path: Path) -> None:
    (tmp_path / ".hfignore").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        FilesystemPublicationFolder().scan(str(tmp_path))


def test_no_more_than_the_limit_is_unpacked_from_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "abc":
            archive.writestr(name, name * 600)
    text = FilesystemPublicationFolder().text(str(tmp_path), "all.zip", 1000)
    assert text == "a" * 600 + "\n" + "b" * 400


def test_what_is_only_true_here_is_never_published_whatever_the_rules_say(build: Build) -> None:
    rules = b"!.mlxk_workspace.json\n!.hf_cache/\n!.git/\n!.DS_Store\n"
    local = [".mlxk_workspace.json", ".hf_cache/a", ".git/config", "sub/.git/x", ".cache/huggingface/y"]
    folder, directory = build({".hfignore": rules, ".DS_Store": b"", "a.json": b"", **dict.fromkeys(local, b"")})
    assert published(folder, directory) == [".DS_Store", "a.json"]


def test_files_are_listed_with_their_sizes_and_hashed_as_the_hub_does(build: Build) -> None:
    content = bytes(range(256)) * 9000
    folder, directory = build({"big.bin": content, "empty": b""})
    scan = folder.scan(directory)
    assert [(file.path, file.size_bytes) for file in scan.files] == [("big.bin", len(content)), ("empty", 0)]
    assert (scan.size_bytes, scan.outward_links) == (len(content), ())
    told: list[int] = []
    digests = folder.digests(directory, "big.bin", told.append)
    assert digests.sha256 == hashlib.sha256(content).hexdigest()
    assert digests.blob_id == git_sha1(content)
    assert told[-1] == len(content)


def test_text_is_read_whole_or_not_at_all(build: Build) -> None:
    folder, directory = build({"a.txt": "grün".encode(), "b.bin": b"a\0b", "odd.txt": b"\xff"})
    assert folder.text(directory, "a.txt", 5) == "grün"
    assert folder.text(directory, "a.txt", 4) is None
    assert folder.text(directory, "b.bin", 100) is None
    assert folder.text(directory, "odd.txt", 100) == "�"


def test_a_folder_or_file_that_is_not_there_is_not_found(build: Build) -> None:
    folder, directory = build({"a": b""})
    assert folder.find(directory) == directory
    assert folder.find(directory + "/none") is None
    assert folder.find(directory + "\0") is None
    with pytest.raises(StorageError):
        folder.scan(directory + "/none")
    with pytest.raises(StorageError):
        folder.text(directory, "none", 10)
    with pytest.raises(StorageError):
        folder.digests(directory, "none", lambda count: None)


def test_the_text_of_weights_is_their_header(build: Build) -> None:
    header = b'{"__metadata__": {"made_in": "/home/ada"}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(5000)
    folder, directory = build({"model.safetensors": weights, "sub/short.safetensors": b"\x01"})
    assert folder.text(directory, "model.safetensors", 1000) == header.decode()
    assert folder.text(directory, "model.safetensors", 10) is None
    assert folder.text(directory, "sub/short.safetensors", 1000) == ""
