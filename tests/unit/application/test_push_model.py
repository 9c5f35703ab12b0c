"""Pushing, decided on doubles: what goes, who may see it, what stops it."""

import attrs
import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.model_cache import InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_publisher import InMemoryModelPublisher
from doubles.progress import InMemoryProgress
from doubles.publication_folder import InMemoryPublicationFolder
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.push_model import PushExtent, PushModel, PushRequest, PushResult, Visibility
from mlxk.domain.errors import (
    AccessDeniedError,
    AmbiguousModelError,
    ModelNotFoundError,
    RevisionNotFoundError,
    SecretsFoundError,
    ValidationError,
)
from mlxk.domain.models.model import Workspace

WORK = "/home/me/work"
FILES = {"config.json": b'{"model_type": "x"}', "model.safetensors": b"\x02\0\0\0\0\0\0\0{}", "README.md": b"hello"}


@attrs.define(slots=False)
class World:
    """A folder and a hub."""

    files: dict[str, bytes] = attrs.field(factory=lambda: dict(FILES))
    links: tuple[str, ...] = ()
    token: bool = True

    def __attrs_post_init__(self) -> None:
        self.folder = InMemoryPublicationFolder({WORK: self.files}, {WORK: self.links})
        self.publisher = InMemoryModelPublisher(self.folder, token=self.token)
        homes = {f"/home/me/models/{name}": Workspace(managed=True) for name in ("one", "two")}
        self.store = InMemoryWorkspaceStore({WORK: Workspace(managed=True), **homes}, home="/home/me/models")

    def push(
        self, folder: str = "./work", visibility: Visibility | None = Visibility.PRIVATE, **options: object
    ) -> PushResult:
        listed = InMemoryModelFiles({WORK: self.folder.folders[WORK]})
        describe = DescribeModel(
            listed, self.store, InMemoryBackendRegistry(), InMemoryModelCache(), default_owner="mlx-community"
        )
        push = PushModel(self.folder, self.store, self.publisher, describe, "/home/me")
        return push(PushRequest(folder, "me/tiny", visibility, **options), InMemoryProgress())  # type: ignore[arg-type]


def test_a_new_repository_gets_everything_in_one_commit_and_is_private() -> None:
    there = World()
    result = there.push(create=True, message="First")
    repository = there.publisher.repositories["me/tiny"]
    assert (repository.private, repository.messages) == (True, ["First"])
    assert repository.branches["main"] == {".gitattributes": b"", **FILES}
    assert (result.created_repository, result.health.healthy) == (True, True)


def test_only_what_differs_by_content_goes_up_and_nothing_means_no_commit() -> None:
    there = World()
    there.push(create=True)
    there.folder.folders[WORK]["README.md"] = b"HELLO"
    result = there.push()
    assert result.changes is not None
    assert result.changes.uploads == ("README.md",)
    again = there.push()
    assert (again.published, bool(again.changes)) == (None, False)
    assert len(there.publisher.repositories["me/tiny"].messages) == 2


def test_a_dry_run_says_the_same_as_the_push_and_changes_nothing() -> None:
    there = World()
    said = there.push(create=True, extent=PushExtent.DRY_RUN)
    assert there.publisher.repositories == {}
    done = there.push(create=True)
    assert said.changes == done.changes
    del there.folder.folders[WORK]["README.md"]
    said = there.push(delete=True, extent=PushExtent.DRY_RUN)
    assert said.changes is not None
    assert said.changes.deleted == ("README.md",)
    assert there.push(delete=True).changes == said.changes
    assert set(there.publisher.repositories["me/tiny"].branches["main"]) == {
        ".gitattributes",
        "config.json",
        "model.safetensors",
    }


def test_what_everybody_can_see_needs_to_be_said_aloud() -> None:
    there = World()
    there.publisher.create("me/tiny", private=False)
    for extent in (PushExtent.ALL, PushExtent.DRY_RUN):
        with pytest.raises(ValidationError, match="exists and is public"):
            there.push(extent=extent)
        with pytest.raises(ValidationError, match="private or public"):
            there.push(visibility=None, extent=extent)
    assert there.publisher.repositories["me/tiny"].messages == []
    assert there.push(visibility=Visibility.PUBLIC).published is not None


def test_a_bare_name_means_the_workspace_of_the_home() -> None:
    there = World()
    there.folder.folders["/home/me/models/one"] = {"README.md": b"one"}
    there.push("one", create=True)
    assert set(there.publisher.repositories["me/tiny"].branches["main"]) == {".gitattributes", "README.md"}


def test_repositories_and_branches_are_created_only_when_asked_for() -> None:
    there = World()
    with pytest.raises(ModelNotFoundError):
        there.push()
    there.publisher.create("me/tiny", private=True)
    with pytest.raises(RevisionNotFoundError):
        there.push(branch="dev")
    assert there.push(branch="dev", create=True).created_branch
    repository = there.publisher.repositories["me/tiny"]
    assert set(repository.branches["main"]) == {".gitattributes"}
    there.push()
    commits = list(repository.messages)
    same = there.push(branch="same", create=True)
    assert (same.created_branch, same.published, repository.messages) == (True, None, commits)
    assert repository.branches["same"] == repository.branches["main"]


@pytest.mark.parametrize(
    ("path", "content"),
    [("id_rsa", b"x"), ("notes.txt", b"hf_" + b"aB3dE5gH7j" * 4), ("README.md", b"see /home/me/work/x")],
)
def test_secrets_stop_everything_until_they_are_allowed_by_name(path: str, content: bytes) -> None:
    for extent in PushExtent:
        there = World(files={**FILES, path: content})
        with pytest.raises(SecretsFoundError) as failure:
            there.push(create=True, extent=extent)
        assert content.decode() not in failure.value.message
        assert there.publisher.repositories == {}
        assert there.push(create=True, extent=extent, allowed=(path,)) is not None
        with pytest.raises(SecretsFoundError):
            there.push(create=True, extent=extent, allowed=("other",))


def test_links_out_of_the_folder_and_empty_folders_are_refused() -> None:
    with pytest.raises(ValidationError, match="a link out of the folder"):
        World(links=("weights",)).push(create=True)
    with pytest.raises(ValidationError, match="nothing to upload"):
        World(files={".git/config": b""}).push(create=True)


def test_checking_only_needs_no_token_and_reports_an_incomplete_model() -> None:
    there = World(files={"config.json": b"{}"}, token=False)
    result = there.push(visibility=None, extent=PushExtent.CHECK_ONLY)
    assert (result.state, result.changes, result.health.healthy) == (None, None, False)
    with pytest.raises(AccessDeniedError):
        there.push()


def test_a_folder_is_found_by_path_by_beginning_or_by_its_name_in_the_home() -> None:
    there = World()
    assert there.push("./wor", extent=PushExtent.CHECK_ONLY).directory == WORK
    assert there.push("/home/me/work", extent=PushExtent.CHECK_ONLY).directory == WORK
    with pytest.raises(ModelNotFoundError):
        there.push("./none")
    with pytest.raises(AmbiguousModelError):
        there.push("/home/me/models/")
    for name in ("", "  "):
        with pytest.raises(ValidationError):
            there.push(name)
