"""``mlxk outdated`` against the loopback hub: which cached models have moved, and what is asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.models import small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]


@pytest.fixture
def moved(hub: LoopbackHub, command: Command, cache: Path) -> LoopbackHub:
    """Return a hub on which one of three pulled models has a new commit, and one has gone."""
    for name in ("org/moved", "org/same", "org/gone"):
        hub.add(name, small_model())
        command("pull", name)
    hub.change(hub.repositories["models", "org/moved"], {"config.json": b"{}"})
    hub.change(hub.repositories["models", "org/same"], {"config.json": b"{}"}, branch="dev")
    del hub.repositories["models", "org/gone"]
    hub.forget()
    return hub


def statuses(document: dict[str, Any]) -> dict[str, str]:
    return {model["model"]: model["status"] for model in document["data"]["models"]}


def test_a_model_is_outdated_when_its_default_branch_has_moved(moved: LoopbackHub, command: Command) -> None:
    document = command("outdated")
    assert statuses(document) == {"org/gone": "unknown", "org/moved": "outdated", "org/same": "current"}
    model = document["data"]["models"][1]
    assert model["newest_commit"] == moved.repositories["models", "org/moved"].head() != model["commit_hash"]
    command("pull", "org/moved@main")
    assert statuses(command("outdated", "MOVED")) == {"org/moved": "current"}


def test_one_request_a_model_and_no_file_is_asked_for(moved: LoopbackHub, command: Command) -> None:
    command("outdated")
    assert sorted(call.path for call in moved.calls()) == [
        f"/api/models/org/{each}" for each in ("gone", "moved", "same")
    ]


def test_a_partial_model_and_one_without_an_owner_are_not_known(
    hub: LoopbackHub, command: Command, program_environment: dict[str, str]
) -> None:
    place = Path(program_environment["HF_HOME"]) / "hub"
    (place / "models--org--half" / "blobs").mkdir(parents=True)
    (place / "models--bare" / "snapshots" / ("a" * 40)).mkdir(parents=True)
    document = command("outdated")
    assert statuses(document) == {"bare": "unknown", "org/half": "unknown"}
    assert all(model["reason"] for model in document["data"]["models"])
    assert hub.calls() == []


def test_a_gated_model_can_be_compared_without_access(hub: LoopbackHub, command: Command, cache: Path) -> None:
    repository = hub.add("org/m", small_model())
    command("pull", "org/m")
    repository.gated = "manual"
    assert statuses(command("outdated")) == {"org/m": "current"}


def test_offline_or_without_a_hub_it_fails(moved: LoopbackHub, command: Command) -> None:
    assert command("outdated", HF_HUB_OFFLINE="1")["error"]["type"] == "network_error"
    assert moved.calls() == []
    moved.fault("^/api/models/", status=429, headers={"Retry-After": "300"}, times=-1)
    assert command("outdated")["error"]["type"] == "network_error"
    assert command("outdated", "nosuch")["error"]["type"] == "model_not_found"


def test_a_proxy_that_cannot_be_used_is_an_error_and_no_property_of_a_model(
    moved: LoopbackHub, mlxk: Callable[..., Any], hub_variables: dict[str, str]
) -> None:
    refused = mlxk("outdated", "--json", **hub_variables, ALL_PROXY="foo://127.0.0.1:9")
    error = json.loads(refused.stdout)["error"]
    assert (error["type"], "ALL_PROXY" in error["message"]) == ("validation_error", True), error
    assert moved.calls() == []


def test_people_see_what_moved_and_how_to_fetch_it(
    moved: LoopbackHub, mlxk: Callable[..., Any], hub_variables: dict[str, str]
) -> None:
    printed = mlxk("outdated", **hub_variables)
    assert [line.split("|")[0].strip() for line in printed.stdout.splitlines()[2:]][:1] == ["org/gone"]
    assert "org/moved" in printed.stdout
    assert "org/same" not in printed.stdout
    assert "org/same" in mlxk("outdated", "--all", **hub_variables).stdout
    assert "mlxk pull org/moved@main" in printed.stderr
