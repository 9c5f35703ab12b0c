"""``mlxk pull`` against the loopback hub: revisions, access, damage, and other clients of the cache."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from doubles.progress import InMemoryProgress
from hub.models import sharded_model, small_model
from hub.server import LoopbackHub
from models.tiny_embedding import build_bert
from models.tiny_rerankers import build_cross_encoder
from models.tiny_speech import build_whisper
from models.tiny_voices import build_soprano

from mlxk.adapters.huggingface.client import HubAccess, HubClient, RetryPolicy, parse_retry_after
from mlxk.adapters.huggingface.hub import HuggingFaceModelHub
from mlxk.domain.errors import DownloadFailedError, MlxkError, NetworkError
from mlxk.domain.hub import plan_download

Command = Callable[..., dict[str, Any]]
Program = Callable[..., "subprocess.CompletedProcess[str]"]
MEGABYTE = 1024 * 1024

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def source(hub: LoopbackHub, cache: Path) -> HuggingFaceModelHub:
    """Return the adapter that ``mlxk pull`` uses, with few retries."""
    access = HubAccess(hub.url, timeout=1, retry_policy=RetryPolicy(retries=2, first_wait=0.01, longest_wait=0.02))
    return HuggingFaceModelHub(HubClient(access), str(cache))


def snapshot(cache: Path, commit: str) -> dict[str, bytes]:
    """Return the files of a cached revision."""
    directory = cache / "models--org--m" / "snapshots" / commit
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_a_revision_is_the_one_that_was_asked_for(hub: LoopbackHub, command: Command, cache: Path) -> None:
    repository = hub.add("org/m", small_model(seed=1))
    old = repository.head()
    new = hub.change(repository, small_model(seed=2))
    dev = hub.change(repository, small_model(seed=3), branch="feature/x")
    assert command("pull", f"org/m@{old}")["data"]["commit_hash"] == old
    assert not (cache / "models--org--m" / "refs").exists()
    assert command("pull", "org/m")["data"]["commit_hash"] == new
    assert command("pull", "org/m@feature/x")["data"]["commit_hash"] == dev
    assert [snapshot(cache, commit) for commit in (old, new, dev)] == [small_model(seed=seed) for seed in (1, 2, 3)]
    assert (cache / "models--org--m" / "refs" / "feature" / "x").read_text() == dev
    assert len(hub.calls(r"/resolve/.*/tokenizer.json")) == 1
    assert command("pull", "org/m@nope")["error"]["type"] == "hash_not_found"


def test_the_default_owner_is_asked_for_a_bare_name(hub: LoopbackHub, command: Command) -> None:
    hub.add("mlx-community/Tiny", small_model())
    data = command("pull", "Tiny")["data"]
    assert (data["model"], data["expanded_name"]) == ("mlx-community/Tiny", "mlx-community/Tiny")


@pytest.mark.parametrize(
    ("build", "use"),
    [
        (build_whisper, "run org/m --audio FILE"),
        (build_bert, "embed org/m TEXT"),
        (partial(build_cross_encoder, kind="bert"), 'rerank org/m "QUERY" FILE'),
        (build_soprano, "say org/m TEXT"),
    ],
    ids=["audio", "embedding", "reranker", "voice"],
)
def test_a_pull_ends_with_the_command_for_its_kind_of_model(
    hub: LoopbackHub,
    mlxk: Program,
    hub_variables: dict[str, str],
    tmp_path: Path,
    build: Callable[[Path], object],
    use: str,
) -> None:
    build(tmp_path / "m")
    files = (path for path in (tmp_path / "m").rglob("*") if path.is_file())
    hub.add("org/m", {str(path.relative_to(tmp_path / "m")): path.read_bytes() for path in files})
    assert mlxk("pull", "org/m", **hub_variables).stderr.splitlines()[-1] == f"Use it: mlxk {use}"


def test_a_pull_of_what_does_not_run_here_ends_with_the_reason(
    hub: LoopbackHub, mlxk_here: Program, hub_variables: dict[str, str]
) -> None:
    hub.add("org/m", {**small_model(), "config.json": b'{"model_type": "nosuch_architecture"}'})
    pulled = mlxk_here("pull", "org/m", **hub_variables)
    known = mlxk_here("pull", "org/m", **hub_variables)
    reason = mlxk_here("show", "org/m", "--json", **hub_variables).stdout
    for done in (pulled, known):
        assert (done.returncode, done.stderr.splitlines()[-1]) == (
            0,
            f"It cannot run here: {json.loads(reason)['data']['model']['reason']}",
        )


@pytest.mark.parametrize(
    ("options", "token", "code"),
    [
        ({"gated": "manual"}, "", "access_denied"),
        ({"gated": "auto"}, "hf_other", "access_denied"),
        ({"private": True}, "", "model_not_found"),
        ({"private": True}, "hf_other", "model_not_found"),
        ({"disabled": True}, "", "access_denied"),
        ({}, "hf_wrong", "access_denied"),
        ({"gated": "manual", "readers": frozenset({"other"})}, "hf_other", None),
        ({"private": True, "readers": frozenset({"me"})}, "hf_read", None),
    ],
)
def test_access_is_settled_before_any_byte_is_fetched(
    hub: LoopbackHub, command: Command, cache: Path, options: dict[str, Any], token: str, code: str | None
) -> None:
    hub.add("org/m", small_model(), **options)
    envelope = command("pull", "org/m", **({"HUGGINGFACE_HUB_TOKEN": token} if token else {}))
    if code is None:
        assert envelope["data"]["download_status"] == "success"
        return
    assert envelope["error"]["type"] == code
    hint = envelope["error"].get("hint", "")
    assert ("set HF_TOKEN" in hint.replace("Set", "set")) == (not token and "disabled" not in options)
    assert ("token in HF_TOKEN" in hint or "account of HF_TOKEN" in hint) == bool(token)
    assert not token or token not in json.dumps(envelope)
    assert not (cache / "models--org--m").exists()
    assert all(call.method == "HEAD" for call in hub.calls("/resolve/"))


def test_a_stored_token_is_used_and_never_leaves_for_the_other_origin(
    hub: LoopbackHub, command: Command, program_environment: dict[str, str]
) -> None:
    stored = Path(program_environment["HF_HOME"]) / "token"
    stored.parent.mkdir(parents=True)
    stored.write_text("hf_read\n")
    hub.add("me/m", small_model(), private=True)
    assert command("pull", "me/m")["status"] == "success"
    assert all("authorization" in call.headers for call in hub.calls("/resolve/"))
    assert all("authorization" not in call.headers for call in hub.calls("^/cdn/"))


@pytest.mark.parametrize("token", ["hf_secret\nx", "hf_secret x", "hf_sécret"])
def test_a_token_that_no_request_can_carry_is_refused_and_not_repeated(
    hub: LoopbackHub, command: Command, token: str
) -> None:
    hub.add("org/m", small_model())
    error = command("pull", "org/m", HF_TOKEN=token)["error"]
    assert error["type"] == "access_denied"
    assert "cret" not in json.dumps(error)
    assert hub.calls() == []


def test_the_password_of_an_address_is_not_repeated(cache: Path) -> None:
    access = HubAccess("http://ada:secret@127.0.0.1:9", retry_policy=RetryPolicy(retries=0))
    with pytest.raises(NetworkError, match=r"the hub at http://127\.0\.0\.1:9 cannot be reached") as failure:
        HuggingFaceModelHub(HubClient(access), str(cache)).describe("org/m")
    assert "secret" not in failure.value.message


@pytest.mark.parametrize(
    ("address", "said"),
    [("http://mlxk.invalid", "its name is not known"), ("http://127.0.0.1:9", "connection refused")],
)
def test_why_the_hub_cannot_be_reached_is_said_in_words(address: str, said: str, cache: Path) -> None:
    access = HubAccess(address, retry_policy=RetryPolicy(retries=0))
    with pytest.raises(NetworkError, match=f"cannot be reached: {said}$"):
        HuggingFaceModelHub(HubClient(access), str(cache)).describe("org/m")


def test_a_pull_that_comes_to_nothing_leaves_nothing(hub: LoopbackHub, command: Command, cache: Path) -> None:
    hub.add("org/gated", small_model(), gated="manual")
    for name in ("org/none", "org/gated"):
        assert command("pull", name)["status"] == "error"
    assert [path for path in cache.rglob("*") if not path.is_dir() or path.name.startswith("models--")] == []


def test_a_commit_that_is_cached_may_be_shortened(hub: LoopbackHub, command: Command) -> None:
    commit = hub.add("org/m", small_model()).head()
    assert command("pull", f"org/m@{commit[:8]}")["error"]["hint"].endswith("whole commits of 40 digits.")
    command("pull", "org/m")
    hub.forget()
    assert command("pull", f"org/m@{commit[:8]}")["data"]["commit_hash"] == commit
    assert hub.calls() == []


def test_offline_the_cache_still_answers_and_the_hub_is_not_asked(hub: LoopbackHub, command: Command) -> None:
    hub.add("org/m", small_model())
    assert command("pull", "org/m", HF_HUB_OFFLINE="1")["error"]["type"] == "network_error"
    assert hub.calls() == []
    command("pull", "org/m")
    hub.forget()
    assert command("pull", "org/m", HF_HUB_OFFLINE="1")["data"]["download_status"] == "already_exists"
    assert hub.calls() == []


def test_pickles_and_programs_stay_on_the_hub_and_are_reported(hub: LoopbackHub, command: Command, cache: Path) -> None:
    repository = hub.add("org/m", {**small_model(), "pytorch_model.bin": b"\0", "modeling.py": b"1", "a.gguf": b"\0"})
    data = command("pull", "org/m")["data"]
    skipped = [file["path"] for file in data["skipped"]]
    assert skipped == [".gitattributes", "a.gguf", "modeling.py", "pytorch_model.bin"]
    assert set(snapshot(cache, repository.head())) == set(small_model())
    hub.add("org/only-pickles", {"config.json": b"{}", "pytorch_model.bin": b"\0"})
    assert command("pull", "org/only-pickles")["error"]["type"] == "incompatible_model"


def test_a_dry_run_changes_nothing(hub: LoopbackHub, command: Command, cache: Path) -> None:
    hub.add("org/m", small_model())
    data = command("pull", "org/m", "--dry-run")["data"]
    assert data["missing_bytes"] == data["size_bytes"] == sum(map(len, small_model().values()))
    assert hub.calls("/resolve/") == []
    assert not cache.exists()


def test_a_damaged_model_is_mended_by_fetching_what_is_damaged(hub: LoopbackHub, command: Command, cache: Path) -> None:
    files = sharded_model((MEGABYTE, MEGABYTE))
    repository = hub.add("org/m", files)
    command("pull", "org/m")
    directory = cache / "models--org--m" / "snapshots" / repository.head()
    (directory / "model-00001-of-00002.safetensors").resolve().write_bytes(b"short")
    (directory / "config.json").unlink()
    flipped = (directory / "model-00002-of-00002.safetensors").resolve()
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 0xFF
    flipped.write_bytes(content)
    assert command("pull", "org/m")["error"]["type"] == "requires_confirmation"
    hub.forget()
    assert command("pull", "org/m", "--force-resume")["data"]["health"] == "healthy"
    assert snapshot(cache, repository.head()) == files
    assert len(hub.calls("^/cdn/")) == 2


def test_an_update_keeps_the_old_revision_until_the_new_one_is_whole(
    hub: LoopbackHub, command: Command, source: HuggingFaceModelHub, cache: Path
) -> None:
    repository = hub.add("org/m", small_model(MEGABYTE, seed=1))
    old = repository.head()
    command("pull", "org/m")
    hub.change(repository, small_model(MEGABYTE, seed=2))
    hub.fault("^/cdn/", times=-1, drop_after=1000)
    with pytest.raises(NetworkError):
        source.fetch(plan_download(source.describe("org/m")), InMemoryProgress())
    assert (cache / "models--org--m" / "refs" / "main").read_text() == old
    assert command("show", "org/m")["data"]["model"]["hash"] == old
    assert command("pull", "org/m")["data"]["download_status"] == "already_exists"
    hub.heal()
    assert command("pull", "org/m@main")["data"]["commit_hash"] == repository.head()
    assert snapshot(cache, old) == small_model(MEGABYTE, seed=1)


@pytest.mark.parametrize(
    "fault",
    [
        {"times": 3, "status": 500},
        {"times": 3, "status": 429},
        {"times": 3, "reset": True, "drop_after": 10},
        {"times": 3, "drop_after": 0},
        {"times": 3, "stall_after": 10},
    ],
)
def test_a_network_that_keeps_failing_is_given_up_with_the_bytes_kept(
    hub: LoopbackHub, source: HuggingFaceModelHub, cache: Path, fault: dict[str, Any]
) -> None:
    hub.add("org/m", small_model(MEGABYTE))
    plan = plan_download(source.describe("org/m"))
    hub.fault("^/cdn/", drop_after=500_000)
    with pytest.raises(MlxkError):
        hub.fault("^/cdn/", **{**fault, "times": -1})
        source.fetch(plan, InMemoryProgress())
    assert source.missing_bytes(plan) <= plan.size_bytes - 400_000
    hub.heal()
    hub.forget()
    source.fetch(plan, InMemoryProgress())
    assert sum(call.sent for call in hub.calls("^/cdn/")) <= MEGABYTE - 400_000
    assert source.missing_bytes(plan) == 0


def test_a_server_that_ignores_ranges_is_coped_with(hub: LoopbackHub, source: HuggingFaceModelHub, cache: Path) -> None:
    files = small_model(MEGABYTE)
    repository = hub.add("org/m", files)
    hub.fault("^/cdn/", drop_after=500_000)
    hub.fault("^/cdn/", ignore_range=True)
    source.fetch(plan_download(source.describe("org/m")), InMemoryProgress())
    assert snapshot(cache, repository.head()) == files


def test_a_partial_file_that_is_wrong_or_too_long_is_thrown_away(
    hub: LoopbackHub, source: HuggingFaceModelHub, cache: Path
) -> None:
    files = small_model(MEGABYTE)
    repository = hub.add("org/m", files)
    plan = plan_download(source.describe("org/m"))
    weights = next(file for file in plan.files if file.path == "model.safetensors")
    partial = cache / "models--org--m" / "blobs" / f"{weights.digest}.mlxk.incomplete"
    for leftover in (b"nonsense" * 1000, bytes(2 * MEGABYTE)):
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.with_name(weights.digest).unlink(missing_ok=True)
        partial.write_bytes(leftover)
        source.fetch(plan, InMemoryProgress())
        assert snapshot(cache, repository.head()) == files
        assert not partial.exists()


def test_an_entity_tag_or_a_path_that_leads_elsewhere_writes_nothing(
    hub: LoopbackHub, source: HuggingFaceModelHub, cache: Path, tmp_path: Path
) -> None:
    import attrs

    repository = hub.add("org/m", small_model())
    files = repository.files()
    for path, blob in (("../../../../stolen.json", None), ("stolen.json", "../../../../stolen")):
        entry = files["config.json"]
        files[path] = attrs.evolve(entry, blob_id=blob) if blob else entry
        with pytest.raises(DownloadFailedError):
            source.describe("org/m")
        del files[path]
    assert list(tmp_path.rglob("stolen*")) == []


def test_every_request_has_a_time_limit(hub: LoopbackHub, source: HuggingFaceModelHub) -> None:
    hub.add("org/m", small_model())
    hub.fault("^/api/models/org/m$", delay=1.5)
    assert source.describe("org/m").name == "org/m"
    assert len(hub.calls("^/api/models/org/m$")) == 2


def test_pages_of_a_long_listing_are_put_together(hub: LoopbackHub, source: HuggingFaceModelHub) -> None:
    hub.page = 7
    hub.add("org/m", {**small_model(), **{f"many/{number}.json": b"%d" % number for number in range(40)}})
    assert len(source.describe("org/m").files) == 40 + len(small_model()) + 1


def test_the_hub_client_finds_a_pulled_model_whole_and_fetches_nothing(
    hub: LoopbackHub, command: Command, cache: Path, hub_variables: dict[str, str], program_environment: dict[str, str]
) -> None:
    files = {**sharded_model((20_000, 10_000)), "sub/x.json": b"{}"}
    repository = hub.add("org/m", files)
    command("pull", "org/m")
    hub.forget()
    program = (
        "import sys; from huggingface_hub import snapshot_download, HfApi\n"
        "print(snapshot_download('org/m', ignore_patterns=['.gitattributes']))\n"
        "found = HfApi().verify_repo_checksums('org/m')\n"
        "print(len(found.mismatches), found.checked_count, found.extra_paths or '')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**program_environment, **hub_variables},
        capture_output=True,
        text=True,
        check=True,
    )
    directory, verdict = done.stdout.splitlines()
    assert directory == str(cache / "models--org--m" / "snapshots" / repository.head())
    assert verdict.split()[:2] == ["0", str(len(files))]
    assert hub.calls("/resolve/|/cdn/") == []


def test_what_the_hub_client_began_is_completed_and_its_blobs_are_used(
    hub: LoopbackHub, command: Command, cache: Path, hub_variables: dict[str, str], program_environment: dict[str, str]
) -> None:
    hub.add("org/m", sharded_model((20_000, 10_000)))
    program = (
        "from huggingface_hub import hf_hub_download; hf_hub_download('org/m', 'model-00001-of-00002.safetensors')"
    )
    environment = {**program_environment, **hub_variables}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
    data = command("pull", "org/m", "--force-resume")["data"]
    assert (data["health"], data["missing_bytes"] < 20_000) == ("healthy", True)
    assert len(hub.calls("^/cdn/", "GET")) == 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        ("soon", None),
        ("²", None),
        ("9" * 400, None),
        ("Wed, 99 Nonsense", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_the_wait_that_a_hub_asks_for_is_understood(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


def test_patience_grows_and_has_an_end() -> None:
    policy = RetryPolicy(first_wait=1, longest_wait=5, longest_retry_after=60)
    waits = [policy.wait(failures) for failures in range(1, 8)]
    assert all(0.75 <= wait <= 5 for wait in waits)
    assert policy.wait(1, 3600) == 60
    assert policy.wait(1, 0) == 0
