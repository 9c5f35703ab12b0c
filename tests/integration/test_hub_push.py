"""``mlxk push`` against the loopback hub: what goes up, what never does, and who may see it."""

import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.models import safetensors, small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]
Push = Callable[..., dict[str, Any]]
Program = Callable[..., "subprocess.CompletedProcess[str]"]

# The hub client hands parts of files to its HTTP library in a way that the library is about to give up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

MEGABYTE = 1024 * 1024
TOKEN = "hf_" + "aBcDeFgHiJ" * 4


@pytest.fixture
def push(command: Command) -> Push:
    """Run ``mlxk push`` and return its envelope."""

    def run(*arguments: str, token: str = "hf_write") -> dict[str, Any]:
        return command("push", *arguments, **({"HF_TOKEN": token} if token else {}))

    return run


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Return a workspace with everything in it that must not be published."""
    folder = tmp_path / "work"
    files = {
        **small_model(),
        "sub/notes.json": b"{}",
        "draft/big.bin": b"\0" * 100,
        ".mlxk_workspace.json": json.dumps({"managed": True, "source_path": str(folder)}).encode(),
        ".hf_cache/hub/models--x/blobs/aa": str(folder).encode(),
        ".git/config": b"[core]",
        "__pycache__/a.pyc": b"\0",
        ".hfignore": b"# ours\ndraft/\n*.tmp\n!keep.tmp\n",
        "a.tmp": b"a",
        "keep.tmp": b"keep",
    }
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


PUBLISHED = {*small_model(), "sub/notes.json", "keep.tmp"}


def test_exactly_the_published_files_go_up_in_one_commit(
    hub: LoopbackHub, push: Push, workspace: Path, tmp_path: Path
) -> None:
    data = push("./work", "me/tiny", "--private", "--create")["data"]
    repository = hub.repositories["models", "me/tiny"]
    assert (repository.private, data["private"], data["created_repo"]) == (True, True, True)
    contents = hub.contents("me/tiny")
    assert set(contents) - {".gitattributes"} == PUBLISHED
    assert all(contents[path] == (workspace / path).read_bytes() for path in PUBLISHED)
    assert len(hub.calls(r"/commit/", "POST")) == 1
    assert data["commit_sha"] == repository.head()
    assert data["change_summary"] == {"added": len(PUBLISHED), "modified": 0, "deleted": 0}
    sent = b"".join(call.body for call in hub.calls() if call.method in {"POST", "PUT"})
    assert str(tmp_path).encode() not in sent
    assert not any(str(tmp_path).encode() in content for content in contents.values())


def test_pushing_the_same_again_makes_no_commit(hub: LoopbackHub, push: Push, workspace: Path) -> None:
    push("./work", "me/tiny", "--private", "--create")
    head = hub.repositories["models", "me/tiny"].head()
    data = push("./work", "me/tiny", "--private")["data"]
    assert (data["no_changes"], data["commit_sha"], data["commit_url"]) == (True, head, None)
    assert hub.repositories["models", "me/tiny"].head() == head


def test_a_dry_run_says_what_the_push_then_does(hub: LoopbackHub, push: Push, workspace: Path) -> None:
    push("./work", "me/tiny", "--private", "--create")
    (workspace / "README.md").write_text("changed")
    (workspace / "model.safetensors").write_bytes(safetensors("weight", 1000, seed=5))
    (workspace / "new.json").write_text("{}")
    (workspace / "tokenizer.json").unlink()
    head = hub.repositories["models", "me/tiny"].head()
    said = push("./work", "me/tiny", "--private", "--dry-run", "--delete")["data"]
    assert hub.repositories["models", "me/tiny"].head() == head
    assert said["added_files"] == ["new.json"]
    assert said["modified_files"] == ["README.md", "model.safetensors"]
    assert said["deleted_files"] == ["tokenizer.json"]
    done = push("./work", "me/tiny", "--private", "--delete")["data"]
    same = ("added_files", "modified_files", "deleted_files", "change_summary", "local_files_count")
    assert {field: done[field] for field in same} == {field: said[field] for field in same}
    contents = hub.contents("me/tiny")
    assert set(contents) == {".gitattributes", "new.json", *PUBLISHED} - {"tokenizer.json"}
    assert len(hub.calls(r"^/put/")) == 2


def test_files_that_the_folder_lacks_stay_unless_their_deletion_is_asked_for(
    hub: LoopbackHub, push: Push, workspace: Path
) -> None:
    push("./work", "me/tiny", "--private", "--create")
    (workspace / "tokenizer.json").unlink()
    assert push("./work", "me/tiny", "--private")["data"]["no_changes"] is True
    assert "tokenizer.json" in hub.contents("me/tiny")


def test_a_public_repository_needs_public_said_aloud(hub: LoopbackHub, push: Push, workspace: Path) -> None:
    hub.add("me/open")
    head = hub.repositories["models", "me/open"].head()
    assert "--private or --public" in push("./work", "me/open")["error"]["message"]
    refused = push("./work", "me/open", "--private")["error"]
    assert (refused["type"], refused["message"]) == ("validation_error", "--private: 'me/open' exists and is public")
    assert hub.repositories["models", "me/open"].head() == head
    assert hub.calls(r"/preupload/|/put/") == []
    assert push("./work", "me/open", "--public")["status"] == "success"


def test_nothing_is_created_without_being_asked_for(hub: LoopbackHub, push: Push, workspace: Path) -> None:
    assert push("./work", "me/none", "--private")["error"]["type"] == "model_not_found"
    assert push("./work", "me/none", "--private", "--dry-run")["data"]["created_repo"] is True
    hub.add("me/there", private=True)
    assert push("./work", "me/there", "--private", "--branch", "dev")["error"]["type"] == "hash_not_found"
    assert hub.calls(method="POST") == []
    data = push("./work", "me/there", "--private", "--branch", "dev", "--create", "--commit", "First try")["data"]
    repository = hub.repositories["models", "me/there"]
    assert (data["created_branch"], data["commit_sha"]) == (True, repository.head("dev"))
    assert repository.commits[repository.head("dev")].title == "First try"
    assert set(hub.contents("me/there", "main")) == {".gitattributes"}


@pytest.mark.parametrize(
    ("path", "content", "kind"),
    [
        (".env", "A=1", "a file that holds secrets, by its name"),
        ("keys/id_ed25519", "x", "a file that holds secrets, by its name"),
        ("notes.txt", f"line\nexport HF_TOKEN={TOKEN}\n", "a Hugging Face token"),
        ("sub/cert.txt", "-----BEGIN OPENSSH PRIVATE KEY-----\n", "a private key"),
        ("config.json", '{"_name_or_path": "HOME/models/x"}', "a path of this machine"),
        ("long.txt", "x" * 2_000_000 + " HOME/models", "a path of this machine"),
        ("2_Dense/model.safetensors", "HEADER", "a path of this machine"),
    ],
)
def test_a_secret_stops_the_push_and_is_not_repeated(
    hub: LoopbackHub,
    push: Push,
    workspace: Path,
    program_environment: dict[str, str],
    path: str,
    content: str,
    kind: str,
) -> None:
    (workspace / path).parent.mkdir(exist_ok=True)
    home = program_environment["HOME"]
    if content == "HEADER":
        (workspace / path).write_bytes(safetensors("linear.weight", MEGABYTE, metadata={"trained_in": f"{home}/runs"}))
    else:
        (workspace / path).write_text(content.replace("HOME", home))
    for more in ([], ["--dry-run"], ["--check-only"]):
        refused = push("./work", "me/tiny", "--private", "--create", *more)
        assert refused["error"]["type"] == "secrets_found"
        assert [(each["path"], each["kind"]) for each in refused["error"]["detail"]["findings"]] == [(path, kind)]
        assert TOKEN not in json.dumps(refused)
    assert hub.calls() == []
    assert push("./work", "me/tiny", "--private", "--create", "--allow", path)["status"] == "success"


def test_links_are_not_followed_out_of_the_folder(hub: LoopbackHub, push: Push, workspace: Path) -> None:
    (workspace / "alias.json").symlink_to("config.json")
    (workspace / "hosts.txt").symlink_to("/etc/hostname")
    refused = push("./work", "me/tiny", "--private", "--create")["error"]
    assert (refused["type"], refused["detail"]["links"]) == ("validation_error", ["hosts.txt"])
    (workspace / ".hfignore").write_text("hosts.txt\n")
    push("./work", "me/tiny", "--private", "--create")
    contents = hub.contents("me/tiny")
    assert "hosts.txt" not in contents
    assert contents["alias.json"] == contents["config.json"]


def test_check_only_asks_the_hub_nothing_and_needs_no_token(hub: LoopbackHub, push: Push, workspace: Path) -> None:
    (workspace / "model.safetensors").unlink()
    data = push("./work", "me/tiny", "--check-only", token="")["data"]
    assert data["workspace_health"]["healthy"] is False
    assert (data["check_only"], data["local_files_count"]) == (True, len(PUBLISHED) - 1)
    assert hub.calls() == []


def test_without_a_token_or_with_one_that_may_not_write_nothing_is_pushed(
    hub: LoopbackHub, push: Push, workspace: Path
) -> None:
    hub.add("me/tiny", private=True)
    assert push("./work", "me/tiny", "--private", token="")["error"]["type"] == "access_denied"
    assert push("./work", "me/tiny", "--private", token="hf_wrong")["error"]["type"] == "access_denied"
    assert push("./work", "me/tiny", "--private", token="hf_read")["error"]["type"] == "access_denied"
    assert set(hub.contents("me/tiny")) == {".gitattributes"}


def test_an_upload_that_failed_is_continued_and_a_lost_answer_makes_no_second_commit(
    hub: LoopbackHub, push: Push, workspace: Path
) -> None:
    for number in range(3):
        (workspace / f"model-{number}.safetensors").write_bytes(safetensors(f"w{number}", MEGABYTE, number))
    hub.add("me/tiny", private=True)
    hub.fault(r"/commit/", method="POST", status=400)
    assert push("./work", "me/tiny", "--private")["error"]["type"] == "upload_failed"
    uploaded = len(hub.calls(r"^/put/"))
    hub.fault(r"/commit/", method="POST", status=503)
    assert push("./work", "me/tiny", "--private")["status"] == "success"
    assert len(hub.calls(r"^/put/")) == uploaded == 4
    repository = hub.repositories["models", "me/tiny"]
    assert len(repository.commits) == 2


def test_a_branch_that_moved_is_not_overwritten(hub: LoopbackHub, push: Push, workspace: Path) -> None:
    repository = hub.add("me/tiny", private=True)
    push("./work", "me/tiny", "--private")
    (workspace / "new.json").write_text("{}")
    hub.on_call(r"/preupload/", lambda: hub.change(repository, {"theirs.json": b"{}"}))
    assert push("./work", "me/tiny", "--private")["error"]["type"] == "upload_failed"
    assert "new.json" not in hub.contents("me/tiny")
    assert push("./work", "me/tiny", "--private")["status"] == "success"
    assert {"new.json", "theirs.json"} <= set(hub.contents("me/tiny"))


def test_large_files_go_up_in_parts(hub: LoopbackHub, push: Push, workspace: Path) -> None:
    hub.multipart_at = hub.part_size = MEGABYTE
    (workspace / "model.safetensors").write_bytes(safetensors("weight", 3 * MEGABYTE))
    hub.add("me/tiny", private=True)
    assert push("./work", "me/tiny", "--private")["status"] == "success"
    assert len(hub.calls(r"^/put/")) == 4
    assert hub.contents("me/tiny")["model.safetensors"] == (workspace / "model.safetensors").read_bytes()


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: LoopbackHub, push: Push, workspace: Path) -> None:
    repository = hub.add("me/tiny", private=True)
    hub.lose_answer("/commit/")
    data = push("./work", "me/tiny", "--private")["data"]
    assert data["commit_sha"] == repository.head()
    assert len(repository.commits) == 2
    assert len(hub.calls("/commit/", "POST")) == 1


def test_what_the_hub_client_says_is_part_of_the_result_and_nothing_else_is_printed(
    hub: LoopbackHub, push: Push, workspace: Path
) -> None:
    hub.add("me/tiny", private=True)
    data = push("./work", "me/tiny", "--private")["data"]
    assert "Computing sha256 for 1 files." in data["hf_logs"]
    client = logging.getLogger("huggingface_hub")
    before = (client.level, client.propagate, client.handlers[:])
    hub.fault(r"/commit/", method="POST", status=400)
    (workspace / "new.json").write_text("{}")
    assert push("./work", "me/tiny", "--private")["error"]["type"] == "upload_failed"
    assert (client.level, client.propagate, client.handlers) == before


def test_a_push_says_what_it_did_and_with_verbose_what_went_up(
    hub: LoopbackHub, hub_variables: dict[str, str], workspace: Path, mlxk_here: Program
) -> None:
    variables = {**hub_variables, "HF_TOKEN": "hf_write"}
    words = ("push", "./work", "me/tiny", "--private")
    checked = mlxk_here(*words, "--check-only", "--verbose", **variables).stdout.splitlines()
    assert checked[0].startswith(f"push: me/tiny@main — Check only: {len(PUBLISHED)} files, ")
    assert {line.split("  ")[1] for line in checked[1:]} == PUBLISHED
    planned = mlxk_here(*words, "--create", "--dry-run", **variables).stdout.splitlines()
    assert planned[1:] == [f"  + {path}" for path in sorted(PUBLISHED)]
    first, address, *rest = mlxk_here(*words, "--create", **variables).stdout.splitlines()
    assert (first.startswith("push: me/tiny@main — "), "/me/tiny" in address, rest) == (True, True, [])
    (workspace / "README.md").write_text("changed")
    assert "\n  ~ README.md\n" in mlxk_here(*words, "--verbose", **variables).stdout
    hub.add("me/other", private=True)
    to_another = mlxk_here("push", "./work", "me/other", "--private", "--verbose", **variables).stdout
    assert "\n  hub: Computing sha256 for 1 files.\n" in to_another
    assert mlxk_here(*words, **variables).stdout == "push: me/tiny@main — No changes\n"
    branch = (*words, "--branch", "v2")
    would = "push: me/tiny@v2 — Dry run: would create the branch (with --create), no changes\n"
    assert mlxk_here(*branch, "--dry-run", **variables).stdout == would
    made = "push: me/tiny@v2 — Created the branch; it holds what the folder holds\n"
    assert mlxk_here(*branch, "--create", **variables).stdout == made


def test_a_new_branch_that_needs_no_change_gets_no_commit(hub: LoopbackHub, push: Push, workspace: Path) -> None:
    push("./work", "me/tiny", "--private", "--create")
    repository = hub.repositories["models", "me/tiny"]
    commits = len(repository.commits)
    said = push("./work", "me/tiny", "--private", "--branch", "same", "--dry-run")["data"]
    assert said["message"] == "Dry run: would create the branch (with --create), no changes"
    assert "same" not in repository.branches
    done = push("./work", "me/tiny", "--private", "--branch", "same", "--create")["data"]
    assert (done["created_branch"], done["no_changes"], done["commit_url"]) == (True, True, None)
    assert done["commit_sha"] == repository.head("same") == repository.head()
    assert len(repository.commits) == commits
