"""The contract of the sources of named media, held by every adapter."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.media_source import InMemoryMediaSource
from serving.web import Web, answer

from mlxk.adapters.filesystem.media_folders import FolderMediaSource
from mlxk.adapters.remote_media import RemoteMediaSource
from mlxk.application.ports.media import MediaSource
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import IMAGES

CONTENT = b"\x89PNG and more"
Case = tuple[MediaSource, str, str]
"""A source, a reference to ``CONTENT``, and one to nothing."""


@pytest.fixture(params=["folders", "remote", "in_memory"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    there, absent = str(tmp_path / "there.png"), str(tmp_path / "absent.png")
    if request.param == "in_memory":
        yield InMemoryMediaSource({there: CONTENT}), there, absent
    elif request.param == "folders":
        Path(there).write_bytes(CONTENT)
        yield FolderMediaSource([str(tmp_path)]), there, absent
    else:
        with Web({"/there.png": answer(CONTENT)}) as web:
            source = RemoteMediaSource(web.resolve, web)
            yield source, "http://media.example/there.png", "http://media.example/absent.png"


class TestMediaSource:
    def test_a_file_comes_whole(self, case: Case) -> None:
        source, there, _ = case
        assert source.read(there, IMAGES, 100, 5) == CONTENT
        assert source.read(there, IMAGES, len(CONTENT), 5) == CONTENT

    def test_what_is_not_there_is_refused_without_naming_it(self, case: Case) -> None:
        source, _, absent = case
        with pytest.raises(ValidationError) as refused:
            source.read(absent, IMAGES, 100, 5)
        assert absent not in refused.value.message

    def test_what_is_too_large_is_refused_as_what_it_was_to_be(self, case: Case) -> None:
        source, there, _ = case
        with pytest.raises(ValidationError, match="the image "):
            source.read(there, IMAGES, len(CONTENT) - 1, 5)
