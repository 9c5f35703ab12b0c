"""What a push changes: by content, in the way the branch knows it."""

from mlxk.domain.hub import RemoteFile
from mlxk.domain.publication import ChangeSet, ContentDigests, compare

ONE, TWO = ContentDigests("1" * 64, "1" * 40), ContentDigests("2" * 64, "2" * 40)
REMOTE = (
    RemoteFile(".gitattributes", 1, "9" * 40),
    RemoteFile("large", 1, "f" * 40, ONE.sha256),
    RemoteFile("small", 1, ONE.blob_id),
)


def test_equal_contents_are_no_change_whichever_way_they_are_kept() -> None:
    assert not compare({"large": ONE, "small": ONE}, REMOTE, delete=False)


def test_other_contents_and_those_that_were_not_hashed_are_modified() -> None:
    changes = compare({"large": TWO, "small": None}, REMOTE, delete=False)
    assert changes == ChangeSet(modified=("large", "small"))


def test_new_files_are_added_and_absent_ones_deleted_only_when_asked_for() -> None:
    local = {"b": None, "a": None, "small": ONE}
    assert compare(local, REMOTE, delete=False) == ChangeSet(added=("a", "b"))
    changes = compare(local, REMOTE, delete=True)
    assert changes == ChangeSet(added=("a", "b"), deleted=("large",))
    assert changes.uploads == ("a", "b")
