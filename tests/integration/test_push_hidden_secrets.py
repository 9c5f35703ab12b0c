"""Secrets that ``push`` finds where they are not plain to see: encodings, archives, tokens without a known prefix."""

import bz2
import codecs
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.models import small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]
TOKEN = "hf_" + "Q9" * 17
JWT = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N"


def zipped(name: str, content: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return target.getvalue()


def tarred(name: str, content: bytes, mode: str = "w") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


PLAIN = f"first\nkey = {TOKEN}\n".encode()

HIDDEN: dict[str, tuple[str, bytes]] = {
    "utf-16": ("notes.txt", PLAIN.decode().encode("utf-16")),
    "utf-16-be with a mark": ("notes.txt", codecs.BOM_UTF16_BE + PLAIN.decode().encode("utf-16-be")),
    "utf-16-le without a mark": ("notes.txt", PLAIN.decode().encode("utf-16-le")),
    "utf-16-be without a mark": ("notes.json", PLAIN.decode().encode("utf-16-be")),
    "utf-32": ("notes.txt", PLAIN.decode().encode("utf-32")),
    "gzip": ("log.gz", gzip.compress(PLAIN)),
    "gzip under another name": ("log.dat", gzip.compress(PLAIN)),
    "bzip2": ("log.bz2", bz2.compress(PLAIN)),
    "xz": ("log.xz", lzma.compress(PLAIN)),
    "zip": ("all.zip", zipped("a/b.txt", PLAIN)),
    "tar": ("all.tar", tarred("a/b.txt", PLAIN)),
    "tar.gz": ("all.tar.gz", tarred("a/b.txt", PLAIN, "w:gz")),
    "zip in a zip": ("all.zip", zipped("in.zip", zipped("x.txt", PLAIN))),
    "gzip of utf-16": ("log.gz", gzip.compress(PLAIN.decode().encode("utf-16"))),
    "cut gzip": ("log.gz", gzip.compress(PLAIN + b"x" * 100_000)[:-4]),
    "JSON web token": ("a.txt", f"token: {JWT}".encode()),
    "bearer": ("a.txt", b"curl -H 'Authorization: Bearer 7f3a9c1e55d04b2a9f'"),
    "bearer in JSON": ("a.json", b'{"Authorization": "bearer abcdef0123456789abcdef"}'),
    "postgres": ("a.txt", b"postgres://user:pw@db.example/x"),
    "https": ("a.yaml", b"url: https://me:s3cret@example.com/repo.git"),
    "redis without a user": ("a.env.txt", b"redis://:hunter2@10.0.0.1:6379"),
    "bash history": (".bash_history", b"ls\n"),
    "zsh history": (".zsh_history", b"ls\n"),
    "python history": (".python_history", b"x\n"),
    "chat history": ("chat_history", b"hi\n"),
    "chat history in a folder": ("logs/chat_history.jsonl", b"{}\n"),
}
HARMLESS: dict[str, tuple[str, bytes]] = {
    "address": ("a.txt", b"https://example.com:8080/a@b and git@github.com:me/x http://[::1]:80/"),
    "address with a variable": ("a.txt", b"https://$USER:$PASSWORD@example.com https://{user}:{pw}@h <a>://<b>:<c>@d"),
    "bearer in words": ("a.txt", b"Authorization: Bearer YOUR_TOKEN_GOES_HERE; bearer authentication is used"),
    "eyJ": ("a.txt", b"eyJ is how they begin, as in eyJhbGciOiJIUzI1NiJ9 alone"),
    "binary": ("a.dat", bytes(range(256)) * 40 + PLAIN),
    "archive of a binary": ("a.zip", zipped("a.npy", b"\x93NUMPY" + bytes(2000) + PLAIN)),
    "damaged archive": ("a.zip", b"PK\x03\x04" + bytes(200)),
    "training history": ("training_history.json", b"{}"),
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Make a folder to publish."""
    directory = tmp_path / "work"
    directory.mkdir()
    for path, content in small_model().items():
        (directory / path).write_bytes(content)
    return directory


@pytest.mark.parametrize("kind", sorted(HIDDEN))
def test_a_hidden_secret_stops_the_push(hub: LoopbackHub, command: Command, work: Path, kind: str) -> None:
    path, content = HIDDEN[kind]
    (work / path).parent.mkdir(exist_ok=True)
    (work / path).write_bytes(content)
    refused = command("push", "./work", "me/m", "--private", "--create", HF_TOKEN="hf_write")
    assert refused["error"]["type"] == "secrets_found"
    assert refused["error"]["detail"]["findings"][0]["path"] == path
    assert TOKEN not in str(refused)
    assert hub.calls() == []
    arguments = ("push", "./work", "me/m", "--private", "--check-only", "--allow", path)
    assert command(*arguments)["status"] == "success"


@pytest.mark.parametrize("kind", sorted(HARMLESS))
def test_what_only_looks_alike_does_not(command: Command, work: Path, kind: str) -> None:
    path, content = HARMLESS[kind]
    (work / path).write_bytes(content)
    assert command("push", "./work", "me/m", "--private", "--check-only")["status"] == "success"


def test_an_archive_that_unpacks_without_end_is_read_within_bounds(command: Command, work: Path) -> None:
    bomb = gzip.compress(bytes(200_000_000), 9)
    (work / "bomb.gz").write_bytes(gzip.compress(bomb, 9))
    assert command("push", "./work", "me/m", "--private", "--check-only")["status"] == "success"
