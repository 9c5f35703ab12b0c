"""``mlxk search`` against the loopback hub: what is found, in which order, what fits, and what is asked of the hub."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hub.server import LoopbackHub

from mlxk.adapters.system import system_memory_probe

Command = Callable[..., dict[str, Any]]


@pytest.fixture
def catalogue(hub: LoopbackHub) -> LoopbackHub:
    """Return a hub with 200 models, every tenth for MLX, and some oddities."""
    for number in range(200):
        tags = ("mlx", "license:mit") if number % 10 == 0 else ("license:apache-2.0",)
        parameters = {"U32": 1000 * (number + 1), "BF16": 500} if number % 3 else None
        hub.add(f"org/model-{number}-chat", tags=tags, downloads=number * 7 % 200, parameters=parameters)
    hub.add("meta/gated-chat", gated="manual", downloads=10**6)
    hub.add("me/private-chat", private=True)
    hub.add("gpt2-chat-old", downloads=10**7)
    hub.forget()
    return hub


def results(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["data"]["results"]
    return found


def test_models_for_mlx_come_first_and_then_the_most_downloaded(catalogue: LoopbackHub, command: Command) -> None:
    found = results(command("search", "CHAT", "model", "--limit", "40"))
    assert len(found) == 40
    assert [each["mlx"] for each in found] == [True] * 20 + [False] * 20
    for part in (found[:20], found[20:]):
        downloads = [each["downloads"] for each in part]
        assert downloads == sorted(downloads, reverse=True)
    assert {each["license"] for each in found[:20]} == {"mit"}


def test_nothing_but_the_search_is_asked_of_the_hub(catalogue: LoopbackHub, command: Command) -> None:
    command("search", "chat", "--limit", "10")
    assert [(call.method, call.path, call.query["filter"]) for call in catalogue.calls()] == [
        ("GET", "/api/models", "mlx")
    ]
    catalogue.forget()
    command("search", "chat")
    command("search", "chat", "--mlx", "--limit", "100")
    assert {call.path for call in catalogue.calls()} == {"/api/models"}
    assert [call.query.get("filter") for call in catalogue.calls()] == ["mlx", "mlx"]


def test_the_size_is_that_of_the_weights_and_unknown_where_it_is_not_stated(
    catalogue: LoopbackHub, command: Command
) -> None:
    (one,) = results(command("search", "model-10-chat"))
    assert (one["model"], one["weights_bytes"], one["fit"]) == ("org/model-10-chat", 11_000 * 4 + 500 * 2, "fits")
    (other,) = results(command("search", "model-9-chat"))
    assert (other["weights_bytes"], other["fit"]) == (None, "unknown")


def test_what_this_machine_cannot_hold_is_said(hub: LoopbackHub, command: Command) -> None:
    reading = system_memory_probe(sys.platform).read()
    assert reading is not None
    hub.add("org/huge", tags=("mlx",), parameters={"BF16": reading.budget})
    hub.add("org/small", tags=("mlx",), parameters={"BF16": 1})
    hub.add("org/strange", tags=("mlx",), parameters={"NEW8": 1})
    fits = {each["model"]: each["fit"] for each in results(command("search", "org/"))}
    assert fits["org/huge"] == "exceeds"
    assert fits["org/small"] in {"fits", "tight"}
    assert fits["org/strange"] == "unknown"


def test_gated_models_are_named_as_such_and_private_ones_only_shown_to_their_owner(
    catalogue: LoopbackHub, command: Command
) -> None:
    assert [each["gated"] for each in results(command("search", "gated-chat"))] == [True]
    assert results(command("search", "private-chat")) == []
    assert len(results(command("search", "private-chat", HF_TOKEN="hf_read"))) == 1
    assert command("search", "chat", HF_TOKEN="hf_wrong")["error"]["type"] == "access_denied"


def test_a_name_without_an_owner_cannot_be_pulled_and_is_left_out(catalogue: LoopbackHub, command: Command) -> None:
    assert results(command("search", "gpt2-chat-old")) == []


def test_offline_nothing_is_asked(catalogue: LoopbackHub, command: Command) -> None:
    error = command("search", "chat", HF_HUB_OFFLINE="1")["error"]
    assert (error["type"], catalogue.calls()) == ("network_error", [])


def test_a_hub_that_limits_requests_is_waited_for_shortly_and_then_named(
    catalogue: LoopbackHub, command: Command
) -> None:
    catalogue.fault("^/api/models$", status=429, headers={"Retry-After": "1"})
    assert len(results(command("search", "chat"))) == 20
    catalogue.fault("^/api/models$", status=429, headers={"Retry-After": "300"}, times=-1)
    catalogue.forget()
    error = command("search", "chat")["error"]
    assert (error["type"], "limits requests" in error["message"], "300 seconds" in error["hint"]) == (
        "network_error",
        True,
        True,
    )
    assert len(catalogue.calls()) == 1


@pytest.mark.parametrize("answer", [{}, [1], [{"id": 7}], "text"])
def test_an_answer_that_is_no_listing_is_refused(hub: LoopbackHub, command: Command, answer: object) -> None:
    hub.listing = answer
    assert command("search", "chat")["error"]["type"] == "download_failed"


def test_odd_facts_of_a_listing_are_taken_as_not_stated(hub: LoopbackHub, command: Command) -> None:
    odd = {"id": "org/m", "downloads": "many", "tags": [1, "license:"], "safetensors": {"parameters": {"BF16": -1}}}
    hub.listing = [odd, {"id": "org/n", "safetensors": [], "tags": 5, "library_name": 3}]
    for found in results(command("search", "org")):
        assert (found["downloads"], found["license"], found["weights_bytes"]) == (0, None, None)


@pytest.mark.parametrize(
    ("stated", "mlx"),
    [
        ({}, False),
        ({"library_name": "mlx"}, True),
        ({"library_name": "transformers"}, False),
        ({"library_name": ["mlx"]}, False),
        ({"tags": ["mlx"]}, True),
        ({"tags": ["other"], "library_name": "mlx"}, True),
        ({"tags": "mlx"}, False),
    ],
)
def test_a_model_is_for_mlx_by_its_library_or_a_tag(
    hub: LoopbackHub, command: Command, stated: dict[str, object], mlx: bool
) -> None:
    hub.listing = [{"id": "org/chat", **stated}]
    assert {found["mlx"] for found in results(command("search", "chat"))} == {mlx}


def test_people_get_a_table_and_the_next_command(
    catalogue: LoopbackHub, mlxk: Callable[..., Any], hub_variables: dict[str, str]
) -> None:
    found = mlxk("search", "model-10-chat", "--limit", "5", **hub_variables)
    assert found.returncode == 0
    header, _, row = found.stdout.splitlines()
    assert [cell.strip() for cell in header.split("|")] == ["Name", "MLX", "Size", "Fits", "Downloads", "License"]
    assert [cell.strip() for cell in row.split("|")][:4] == ["org/model-10-chat", "yes", "45.0KB", "yes"]
    assert "mlxk pull org/model-10-chat" in found.stderr
    nothing = mlxk("search", "nosuch", **hub_variables)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "no model with 'nosuch'" in nothing.stderr
