"""``mlxk recommend``: the list, its sources, what fits, and what is asked of the hub."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
from doubles.memory_probe import InMemoryMemoryProbe
from hub.server import LoopbackHub
from syrupy.assertion import SnapshotAssertion

from mlxk.adapters.builtin.lists import recommendations
from mlxk.adapters.system import system_memory_probe
from mlxk.application.use_cases.browse_hub import RecommendModels
from mlxk.domain.hub import Purpose
from mlxk.domain.models.footprint import MemoryReading
from mlxk.entrypoints.cli.render.remote_models import recommend_table

Command = Callable[..., dict[str, Any]]
GIB = 1024**3


def results(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["data"]["results"]
    return found


def test_every_figure_has_a_source_and_a_date_and_every_size_is_stated_or_computed(command: Command) -> None:
    found = results(command("recommend"))
    assert len(found) == len({each["model"] for each in found}) >= 15
    for each in found:
        sources = {source["field"]: source for source in each["sources"]}
        stated = {field for field in ("parameters", "context_length", "license") if each[field] is not None}
        stated |= set() if each["weights_computed"] else {"weights_bytes"}
        assert set(sources) == stated, each["model"]
        assert all(source["url"].startswith("https://") for source in sources.values())
        assert {source["date"] for source in sources.values()} <= {"2026-11-29"}
        if each["weights_computed"]:
            assert each["parameters"] is not None, each["model"]


def test_a_computed_size_counts_the_scales_of_the_quantization(command: Command) -> None:
    sizes = {each["model"]: each["weights_bytes"] for each in results(command("recommend"))}
    # A conversion of the same model and kind is listed with 4.28 GB on the hub.
    assert sizes["mlx-community/Qwen2.5-Coder-7B-Instruct-4bit"] == 7_610_000_000 * 4.5 / 8
    assert sizes["mlx-community/Qwen3-Embedding-0.6B-8bit"] == 595_776_512 * 8.5 / 8
    assert sizes["openai/whisper-tiny"] == 39_000_000 * 4


@pytest.mark.parametrize("purpose", [each.value for each in Purpose])
def test_a_purpose_lists_its_models_the_best_for_this_machine_first(command: Command, purpose: str) -> None:
    document = command("recommend", "--for", purpose)
    found = results(document)
    assert {each["for"] for each in found} == {document["data"]["for"]} == {purpose}
    reading = system_memory_probe(sys.platform).read()
    assert reading is not None
    assert document["data"]["memory_total_bytes"] == reading.total
    order = ["fits", "tight", "exceeds"]
    assert [each["fit"] for each in found] == sorted((each["fit"] for each in found), key=order.index)
    fitting = [each["weights_bytes"] for each in found if each["fit"] == "fits"]
    assert fitting == sorted(fitting, reverse=True)
    assert all(
        each["weights_bytes"] < document["data"]["memory_budget_bytes"] for each in found if each["fit"] == "fits"
    )


@pytest.mark.parametrize("gib", [8, 16, 64])
def test_the_best_differs_with_the_memory(gib: int, snapshot: SnapshotAssertion) -> None:
    recommend = RecommendModels(recommendations(), InMemoryMemoryProbe(MemoryReading(gib * GIB, gib * GIB)))
    assert [(each.model.name, each.fit.value) for each in recommend()] == snapshot


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_the_table_is_readable(columns: int, snapshot: SnapshotAssertion) -> None:
    recommend = RecommendModels(recommendations(), InMemoryMemoryProbe(MemoryReading(16 * GIB, 8 * GIB)))
    text = recommend_table(recommend(), columns)
    assert max(map(len, text.splitlines())) <= columns
    assert text == snapshot


def test_nothing_is_asked_of_the_hub_unless_it_is_wanted(hub: LoopbackHub, command: Command) -> None:
    for number in range(200):
        hub.add(f"org/coder-instruct-{number}", tags=("mlx",), downloads=number, parameters={"BF16": 1000})
    hub.add("mlx-community/Qwen2.5-Coder-7B-Instruct-4bit", tags=("mlx",), downloads=10**6)
    assert command("recommend", "--for", "code")["data"]["hub"] is None
    assert hub.calls() == []
    found = command("recommend", "--for", "code", "--online")["data"]["hub"]
    assert {call.path for call in hub.calls()} == {"/api/models"}
    names = [each["model"] for each in found]
    assert names == [f"org/coder-instruct-{number}" for number in range(199, 190, -1)], "and none of the list again"
    hub.forget()
    command("recommend", "--online")
    assert len(hub.calls()) == len(Purpose)


def test_what_the_hub_has_besides_stands_in_a_table_below(
    hub: LoopbackHub, mlxk_here: Callable[..., Any], hub_variables: dict[str, str]
) -> None:
    hub.add("org/coder-instruct", tags=("mlx", "license:mit"), downloads=1234, parameters={"BF16": 1000})
    ours, _, theirs = mlxk_here("recommend", "--for", "code", "--online", **hub_variables).stdout.partition("\n\n")
    assert ours == mlxk_here("recommend", "--for", "code", **hub_variables).stdout.rstrip("\n")
    header, _, row = ([cell.strip() for cell in line.split("|")] for line in theirs.splitlines())
    assert header == ["Name", "MLX", "Size", "Fits", "Downloads", "License"]
    assert row == ["org/coder-instruct", "yes", "2.0KB", "yes", "1.2k", "mit"]


def test_a_hub_that_is_not_asked_or_limits_requests_is_an_error_with_online_only(
    hub: LoopbackHub, command: Command
) -> None:
    assert command("recommend", HF_HUB_OFFLINE="1")["status"] == "success"
    assert command("recommend", "--online", HF_HUB_OFFLINE="1")["error"]["type"] == "network_error"
    hub.fault("^/api/models$", status=429, headers={"Retry-After": "300"}, times=-1)
    error = command("recommend", "--online")["error"]
    assert (error["type"], "300 seconds" in error["hint"]) == ("network_error", True)


def test_people_get_a_table_what_the_sizes_mean_and_the_next_command(mlxk: Callable[..., Any]) -> None:
    shown = mlxk("recommend", "--for", "embed")
    header, _, *rows = shown.stdout.splitlines()
    assert [cell.strip() for cell in header.split("|")] == ["Name", "For", "Size", "Fits", "Why"]
    assert len(rows) == 2
    assert "computed from parameters and bits" in shown.stderr
    assert "Fetch it: mlxk pull mlx-community/Qwen3-Embedding-0.6B-8bit" in shown.stderr
    wrong = mlxk("recommend", "--for", "coding")
    assert (wrong.returncode, wrong.stderr.splitlines()[-1]) == (2, "Did you mean code?")
