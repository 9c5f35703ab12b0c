"""``mlxk rm`` on caches that were pulled from the loopback hub: what goes, what stays, and what is freed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hub.models import share_content, small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]
MEGABYTE = 1024 * 1024


def test_removing_a_revision_leaves_the_hub_client_a_sound_cache(
    hub: LoopbackHub, command: Command, cache: Path
) -> None:
    from huggingface_hub import scan_cache_dir

    repository = hub.add("org/m", small_model(MEGABYTE, seed=1))
    old = repository.head()
    command("pull", f"org/m@{old}")
    new = hub.change(repository, {"config.json": b'{"model_type": "llama", "x": 1}'})
    command("pull", "org/m")
    removed = command("rm", f"org/m@{old[:8]}")["data"]
    assert (removed["commit_hash"], removed["freed_bytes"]) == (old, len(small_model()["config.json"]))
    assert not (cache / "models--org--m" / "trees" / f"{old}.json").exists()
    scan = scan_cache_dir(cache)
    assert scan.warnings == []
    assert [revision.commit_hash for repo in scan.repos for revision in repo.revisions] == [new]
    before = sum(
        path.stat().st_size
        for path in (cache / "models--org--m").rglob("*")
        if not path.is_symlink() and path.is_file()
    )
    assert command("rm", "org/m", "--dry-run")["data"]["freed_bytes"] == before
    assert command("rm", "org/m")["data"]["freed_bytes"] == before
    assert scan_cache_dir(cache).repos == frozenset()


def test_locks_that_nobody_holds_do_not_block_a_removal(hub: LoopbackHub, command: Command, cache: Path) -> None:
    hub.add("org/m", small_model())
    command("pull", "org/m")
    leftovers = cache / ".locks" / "models--org--m"
    assert len(list(leftovers.iterdir())) > 1
    data = command("rm", "org/m")["data"]
    assert data["lock_files_cleaned"] > 0
    assert not leftovers.exists()


def test_a_content_that_models_share_stays_until_the_last_of_them_goes(command: Command, cache: Path) -> None:
    store = share_content(cache, b"shared" * 1000)
    assert command("rm", "org/a")["data"]["freed_bytes"] == 0
    assert store.exists()
    assert command("rm", "org/b")["data"]["freed_bytes"] == 6000
    assert not store.exists()
