"""``mlxk show --remote`` against the loopback hub: facts and sizes before a download, and what is asked."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hub.models import CONFIG, small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]
TAGS = ("mlx", "license:mit", "base_model:org/big", "base_model:quantized:org/big")
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}


@pytest.fixture
def there(hub: LoopbackHub) -> LoopbackHub:
    """Return a hub with 200 models, among them an open and a gated one."""
    for number in range(200):
        hub.add(f"org/m{number}", tags=("mlx",))
    files = {**small_model(50_000), "config.json": json.dumps({**CONFIG, **SHAPE}).encode(), "own.py": b"1"}
    hub.add("org/m", files, tags=TAGS, downloads=1234, library_name="mlx")
    hub.add("org/gated", files, gated="manual")
    hub.add("org/gguf", {"model.gguf": b"GGUF"})
    hub.forget()
    return hub


def remote(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["data"]["remote"]
    return found


def test_facts_sizes_and_memory_are_told_before_a_download(there: LoopbackHub, command: Command) -> None:
    found = remote(command("show", "org/m", "--remote"))
    assert (found["model"], found["mlx"], found["license"], found["downloads"]) == ("org/m", True, "mit", 1234)
    assert (found["base_models"], found["library"], found["context_length"]) == (["org/big"], "mlx", 2048)
    weights = next(file["size_bytes"] for file in found["files"] if file["path"] == "model.safetensors")
    assert found["size_bytes"] == found["missing_bytes"] == sum(file["size_bytes"] for file in found["files"])
    assert [file["path"] for file in found["skipped"] if file["path"] == "own.py"] == ["own.py"]
    assert found["memory"]["weights_bytes"] == weights
    assert found["memory"]["cache_bytes_per_1k_tokens"] == 2 * 2 * 2 * 2 * 16 * 1000
    assert {call.path.rpartition("/")[2] for call in there.calls("/resolve/")} == {"config.json"}


def test_the_estimate_is_that_of_show_after_the_download(there: LoopbackHub, command: Command) -> None:
    before = remote(command("show", "org/m", "--remote"))
    command("pull", "org/m")
    after = command("show", "org/m")["data"]["memory"]
    for field in ("weights_bytes", "cache_bytes_per_1k_tokens", "needed_bytes"):
        assert before["memory"][field] == after[field]
    assert remote(command("show", "org/m", "--remote"))["missing_bytes"] == 0


def test_a_gated_model_is_described_without_its_files(there: LoopbackHub, command: Command) -> None:
    found = remote(command("show", "org/gated", "--remote"))
    assert (found["gated"], found["accessible"], found["context_length"]) == (True, False, None)
    assert found["size_bytes"] > 50_000
    assert there.calls("config.json") == []
    there.repositories["models", "org/gated"].readers = frozenset({"me"})
    assert remote(command("show", "org/gated", "--remote", HF_TOKEN="hf_read"))["context_length"] == 2048


def test_a_model_without_usable_weights_says_why(there: LoopbackHub, command: Command) -> None:
    found = remote(command("show", "org/gguf", "--remote"))
    assert (found["size_bytes"], found["memory"], bool(found["reason"])) == (None, None, True)


def test_a_bare_name_means_the_default_owner(hub: LoopbackHub, command: Command) -> None:
    hub.add("mlx-community/tiny", small_model())
    assert remote(command("show", "tiny", "--remote"))["model"] == "mlx-community/tiny"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["org/none"], "model_not_found"),
        (["org/m@nope"], "hash_not_found"),
        (["./here"], "validation_error"),
        (["org/m", "--format-report"], "usage_error"),
    ],
)
def test_what_cannot_be_shown_is_an_error(
    there: LoopbackHub, command: Command, arguments: list[str], code: str
) -> None:
    assert command("show", *arguments, "--remote")["error"]["type"] == code


def test_plain_show_asks_nothing_and_offline_remote_fails(there: LoopbackHub, command: Command) -> None:
    assert command("show", "org/m")["error"]["type"] == "model_not_found"
    assert command("show", "org/m", "--remote", HF_HUB_OFFLINE="1")["error"]["type"] == "network_error"
    assert there.calls() == []


def test_people_see_facts_files_and_the_next_command(
    there: LoopbackHub, mlxk: Callable[..., Any], hub_variables: dict[str, str]
) -> None:
    shown = mlxk("show", "org/m", "--remote", **hub_variables).stdout
    assert all(line in shown for line in ("License: mit", "Made from: org/big", "Memory:", "mlxk pull org/m"))
    assert "model.safetensors (" in mlxk("show", "org/m", "--remote", "--files", **hub_variables).stdout
    assert '"model_type": "llama"' in mlxk("show", "org/m", "--remote", "--config", **hub_variables).stdout
    gated = mlxk("show", "org/gated", "--remote", **hub_variables).stdout
    assert "accept its terms" in gated
    assert "mlxk pull" not in gated


def test_a_hub_that_limits_requests_is_named(there: LoopbackHub, command: Command) -> None:
    there.fault("^/api/models/org/m", status=429, headers={"Retry-After": "300"}, times=-1)
    error = command("show", "org/m", "--remote")["error"]
    assert (error["type"], "300 seconds" in error["hint"]) == ("network_error", True)
