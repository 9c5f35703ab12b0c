"""Sizes of a form with a recording, at their bounds."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving.forms import FormPart, post_form, uploads_left_behind
from serving.parts import SPEECH_MODEL, Parts
from serving.running import RunningServer

from mlxk.domain.generation.media import MAX_AUDIO_BYTES
from mlxk.entrypoints.http.server.server import ServerLimits

SOUND = ("hello.wav", b"RIFF....WAVE")
FORM: list[FormPart] = [("file", SOUND), ("model", SPEECH_MODEL)]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer(Parts(), ServerLimits(max_body_bytes=100 * 2**20)) as running:
        yield running


def status_of(server: RunningServer, parts: list[FormPart]) -> int:
    status, _ = post_form(server, "/v1/audio/transcriptions", parts)
    assert uploads_left_behind() == []
    return status


def test_a_recording_may_be_as_large_as_the_limit_and_no_larger(server: RunningServer) -> None:
    largest = bytes(MAX_AUDIO_BYTES)
    assert status_of(server, [("file", ("a.wav", largest)), ("model", SPEECH_MODEL)]) != 413
    assert status_of(server, [("file", ("a.wav", largest + b"\0")), ("model", SPEECH_MODEL)]) == 413


def test_a_recording_that_has_no_place_to_be_stored_in_is_told_so(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    status, body = post_form(server, "/v1/audio/transcriptions", FORM)
    assert (status, body["error"]["type"]) == (500, "storage_error")
    assert body["error"]["message"] == "The recording cannot be stored: No such file or directory."
    assert body["error"]["hint"] == "The server needs space in its folder for temporary files; see TMPDIR."


def test_a_field_may_have_64_kib_and_no_more(server: RunningServer) -> None:
    assert status_of(server, [*FORM, ("prompt", "x" * 65_536)]) != 413
    assert status_of(server, [*FORM, ("prompt", "x" * 65_537)]) == 413


def test_a_form_may_have_32_fields_and_no_more(server: RunningServer) -> None:
    assert status_of(server, [*FORM, *[("x", "y")] * 30]) != 413
    assert status_of(server, [*FORM, *[("x", "y")] * 31]) == 413
