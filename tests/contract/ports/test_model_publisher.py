"""The contract of publishing, held by every adapter."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from doubles.model_publisher import InMemoryModelPublisher
from doubles.progress import InMemoryProgress
from doubles.publication_folder import InMemoryPublicationFolder
from hub.server import LoopbackHub

from mlxk.adapters.huggingface.client import HubAccess, HubClient, RetryPolicy
from mlxk.adapters.huggingface.publisher import HuggingFaceModelPublisher
from mlxk.application.ports.hub import ModelPublisher, Publication
from mlxk.domain.errors import AccessDeniedError, UploadFailedError
from mlxk.domain.publication import ChangeSet, RemoteState

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
FILES = {"config.json": b"{}", "model.safetensors": bytes(2000), "old.json": b"1"}
Build = Callable[[bool], tuple[ModelPublisher, str]]


@pytest.fixture(params=["huggingface", "in_memory"])
def build(request: pytest.FixtureRequest, hub: LoopbackHub, tmp_path: Path) -> Build:
    directory = tmp_path / "work"
    write(directory, FILES)

    def on_loopback(token: bool) -> tuple[ModelPublisher, str]:
        access = HubAccess(hub.url, "hf_write" if token else None, retry_policy=RetryPolicy(retries=1, first_wait=0.01))
        return HuggingFaceModelPublisher(HubClient(access)), str(directory)

    def in_memory(token: bool) -> tuple[ModelPublisher, str]:
        folder = InMemoryPublicationFolder({str(directory): FILES})
        return InMemoryModelPublisher(folder, token=token), str(directory)

    return on_loopback if request.param == "huggingface" else in_memory


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    directory.mkdir()
    for path, content in files.items():
        (directory / path).write_bytes(content)


def paths(state: RemoteState) -> set[str]:
    return {file.path for file in state.files} - {".gitattributes"}


def test_a_repository_is_created_once_and_seen_as_it_is(build: Build) -> None:
    publisher, _ = build(True)
    assert publisher.state("me/tiny", "main") == RemoteState()
    publisher.create("me/tiny", private=True)
    publisher.create("me/tiny", private=False)
    state = publisher.state("me/tiny", "main")
    assert (state.exists, state.private, state.branch_exists, paths(state)) == (True, True, True, set())
    assert publisher.url("me/tiny").endswith("/me/tiny")


def test_a_commit_adds_and_deletes_on_its_branch_only(build: Build) -> None:
    publisher, directory = build(True)
    publisher.create("me/tiny", private=True)
    assert not publisher.state("me/tiny", "dev").branch_exists
    publisher.create_branch("me/tiny", "dev")
    state = publisher.state("me/tiny", "dev")
    everything = ChangeSet(added=tuple(FILES))
    first = publisher.publish(
        Publication("me/tiny", "dev", directory, everything, "First", state.commit), InMemoryProgress()
    )
    assert publisher.state("me/tiny", "dev").commit == first.commit
    assert first.url.endswith(first.commit)
    without = ChangeSet(deleted=("old.json",))
    publisher.publish(Publication("me/tiny", "dev", directory, without, "Second", first.commit), InMemoryProgress())
    assert paths(publisher.state("me/tiny", "dev")) == {"config.json", "model.safetensors"}
    assert paths(publisher.state("me/tiny", "main")) == set()


def test_a_branch_that_has_moved_is_not_written_to(build: Build) -> None:
    publisher, directory = build(True)
    publisher.create("me/tiny", private=True)
    before = publisher.state("me/tiny", "main").commit
    one = Publication("me/tiny", "main", directory, ChangeSet(added=("config.json",)), "One", before)
    other = Publication("me/tiny", "main", directory, ChangeSet(added=("old.json",)), "Other", before)
    publisher.publish(one, InMemoryProgress())
    with pytest.raises(UploadFailedError):
        publisher.publish(other, InMemoryProgress())
    assert paths(publisher.state("me/tiny", "main")) == {"config.json"}


def test_a_file_that_was_deleted_meanwhile_is_an_upload_error(tmp_path: Path) -> None:
    publisher = HuggingFaceModelPublisher(HubClient(HubAccess("http://127.0.0.1:1", "hf_write")))
    gone = Publication("me/tiny", "main", str(tmp_path), ChangeSet(added=("config.json",)), "One", None)
    with pytest.raises(UploadFailedError, match=r"config\.json"):
        publisher.publish(gone, InMemoryProgress())


def test_without_a_token_nothing_is_asked_or_written(build: Build) -> None:
    publisher, _ = build(False)
    with pytest.raises(AccessDeniedError):
        publisher.state("me/tiny", "main")
    with pytest.raises(AccessDeniedError):
        publisher.create("me/tiny", private=True)
