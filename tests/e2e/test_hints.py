"""Hints about names: what they tell the user to type exists, and is taken."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub.models import small_model
from hub.server import LoopbackHub
from models.cached_models import WITHOUT_WEIGHTS, put

Program = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.e2e
NAMED = "Models of the hub are named like mlx-community/Llama-3.2-1B-Instruct-4bit."
LIST = "See what is here: mlxk list --all"


@pytest.fixture
def home(program_environment: dict[str, str]) -> Path:
    """Return a home whose cache has three models."""
    place = Path(program_environment["HOME"])
    for name in ("mlx-community/Tiny-4bit", "mlx-community/Big-1B-4bit", "acme/Beta-2B-chat"):
        put(place, name)
    return place


def hint(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the last line of a failure."""
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


def test_the_hub_is_not_asked_about_what_comes_with_the_program(
    mlxk_here: Program, hub: LoopbackHub, hub_variables: dict[str, str]
) -> None:
    assert hint(mlxk_here("show", "demo", "--remote", **hub_variables)) == "Show it: mlxk show demo"
    assert not hub.calls("")


@pytest.mark.usefixtures("home")
def test_a_pattern_that_fits_nothing_is_no_empty_cache(mlxk_here: Program) -> None:
    assert mlxk_here("du", "nosuch").stdout.startswith("No cached model fits 'nosuch'")


def test_a_name_of_one_s_own_is_cloned_as_its_model_and_the_hub_never_hears_it(
    mlxk_here: Program, hub: LoopbackHub, hub_variables: dict[str, str], tmp_path: Path
) -> None:
    hub.add("org/whole", small_model())
    for name, model in (("mine", "demo"), ("theirs", "org/whole")):
        mlxk_here("alias", name, model)
        done = mlxk_here("clone", name, f"./{name}", "--no-health-check", **hub_variables)
        assert (done.returncode, (tmp_path / name / "config.json").exists()) == (0, True), done.stderr
    assert not hub.calls("mine|theirs")


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("show Tny-4bit", "Did you mean mlx-community/Tiny-4bit? Otherwise fetch it: mlxk pull Tny-4bit"),
        ("rm Tny-4bit", f"Did you mean mlx-community/Tiny-4bit? {LIST}"),
        ("rm nothing-alike", LIST),
        ("rm nothing*", LIST),
        (
            "show mlx-comunity/Beta-2B-chat",
            "Did you mean acme/Beta-2B-chat? Otherwise fetch it: mlxk pull mlx-comunity/Beta-2B-chat",
        ),
        ("run mlx-community/Foo hi", "Fetch it: mlxk pull mlx-community/Foo (or add --pull)"),
        (
            "run llama3.2:1b hi",
            f"{NAMED} Look for one: mlxk search TERMS",
        ),
        ("run big-1b:4bit hi", f"Did you mean mlx-community/Big-1B-4bit? {LIST}"),
        ("run speech hi", "Did you mean demo-speech? Otherwise fetch it: mlxk pull speech (or add --pull)"),
        ("run ./nosuch hi", "A workspace is a directory with a config.json; for a cached model leave out the path."),
    ],
)
def test_a_name_that_means_nothing_is_answered_with_what_was_meant(
    mlxk_here: Program, typed: str, expected: str
) -> None:
    assert hint(mlxk_here(*typed.split())) == expected


def test_a_part_of_a_name_of_one_s_own_is_answered_with_the_name(mlxk_here: Program) -> None:
    mlxk_here("alias", "My.Poet-v2", "demo")
    assert hint(mlxk_here("show", "poet")).startswith("Did you mean My.Poet-v2?")


def test_a_new_name_with_settings_and_no_model_is_told_the_flag(mlxk_here: Program) -> None:
    said = "It is a new name. Say which model it means: mlxk profile x --model MODEL"
    assert hint(mlxk_here("profile", "x", "--temperature", "1")) == said


@pytest.mark.parametrize("typed", ["list", "du", "pull acme/x", "run x hi"])
def test_a_cache_that_is_no_folder_names_the_command_that_says_why(
    mlxk_here: Program, tmp_path: Path, typed: str
) -> None:
    (tmp_path / "file").touch()
    done = mlxk_here(*typed.split(), HF_HUB_CACHE=str(tmp_path / "file"))
    assert "the model cache cannot be read: Not a directory" in done.stderr
    assert hint(done) == "See what is wrong, and what mends it: mlxk doctor"


def test_an_editor_that_needs_a_terminal_is_not_started_without_one(mlxk_here: Program, tmp_path: Path) -> None:
    (tmp_path / "vi").write_text("#!/bin/sh\nsleep 60\n")
    (tmp_path / "vi").chmod(0o755)
    done = mlxk_here("config", "edit", PATH=str(tmp_path))
    assert "vi needs a terminal, and there is none" in done.stderr
    assert hint(done) == "Name an editor that needs none in the variable EDITOR."


def test_a_folder_right_here_is_named_as_a_path_that_is_taken(mlxk_here: Program, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_bytes(WITHOUT_WEIGHTS["config.json"])
    said = hint(mlxk_here("show", "tiny"))
    assert said == "Did you mean the folder ./tiny? A path begins with ./ or /."
    assert mlxk_here("show", "./tiny").returncode == 0


def test_what_was_interrupted_is_completed_by_the_command_that_run_names(
    mlxk: Program, program_environment: dict[str, str], hub: LoopbackHub, hub_variables: dict[str, str]
) -> None:
    hub.add("mlx-community/Half", small_model(2_000_000))
    done = mlxk("pull", "Half", **hub_variables)
    assert done.returncode == 0, done.stderr
    (weights,) = Path(program_environment["HF_HOME"]).glob("hub/models--*/snapshots/*/model.safetensors")
    weights.resolve().unlink()
    weights.unlink()
    said = hint(mlxk("run", "Half", "hi", **hub_variables))
    assert said.startswith("Complete it: mlxk pull mlx-community/Half --force-resume. Or remove it: mlxk rm ")
    command = shlex.split(said.removeprefix("Complete it: mlxk ").partition(". Or")[0])
    assert mlxk(*command, **hub_variables).returncode == 0
    assert weights.read_bytes() == small_model(2_000_000)["model.safetensors"]


@pytest.mark.usefixtures("home")
def test_a_misspelt_pull_is_told_to_check_the_spelling(
    mlxk_here: Program, hub: LoopbackHub, hub_variables: dict[str, str]
) -> None:
    said = hint(mlxk_here("pull", "mlx-community/Bigg-1B-4bit", **hub_variables))
    assert said == (
        "Did you mean mlx-community/Big-1B-4bit, which is in the cache? Check the spelling. "
        "If it is private: set HF_TOKEN to a token that may."
    )
    said = hint(mlxk_here("pull", "org/unlike-anything", "--dry-run", **hub_variables))
    assert said == "Check the spelling. If it is private: set HF_TOKEN to a token that may."


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/org/page",
        "https://huggingface.co/org/page/tree/main",
        "http://hf.co/org/page?library=mlx",
        "huggingface.co/org/page/blob/main/config.json",
    ],
)
def test_the_address_of_a_model_s_page_stands_for_its_name(
    mlxk_here: Program, hub: LoopbackHub, hub_variables: dict[str, str], address: str
) -> None:
    hub.add("org/page", small_model())
    done = mlxk_here("pull", address, "--dry-run", **hub_variables)
    assert (done.returncode, done.stdout.split(" — ")[0]) == (0, "pull: org/page"), done.stderr


@pytest.fixture
def offered(program_environment: dict[str, str]) -> Callable[[str], str]:
    """Return what the shell offers at the end of a line."""

    def offer(line: str) -> str:
        variables = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
        return subprocess.run(
            f'exec 8>&1; "{sys.executable}" -m mlxk',
            shell=True,
            executable="/bin/bash",
            capture_output=True,
            text=True,
            check=False,
            env={**program_environment, **variables, "_ARGCOMPLETE_IFS": " "},
        ).stdout

    return offer


def test_a_dry_run_lists_the_files_and_a_pull_does_not(
    mlxk_here: Program, hub: LoopbackHub, hub_variables: dict[str, str]
) -> None:
    hub.add("org/page", small_model())
    planned, pulled, known = (
        mlxk_here("pull", "org/page", *flag, **hub_variables).stdout for flag in (["--dry-run"], [], [])
    )
    assert "  config.json  " in planned
    assert not [line for text in (pulled, known) for line in text.splitlines() if line.startswith("  ")]


@pytest.mark.usefixtures("home")
def test_completion_of_rm_offers_only_what_can_be_removed(offered: Callable[[str], str]) -> None:
    assert "demo" in offered("mlxk show ")
    assert "demo" not in offered("mlxk rm ")
    assert "Tiny-4bit" in offered("mlxk rm ")


@pytest.mark.parametrize(
    "line", ["run -m ", "run demo --draft-model ", "bench -m ", "pull ", "list ", "alias mine ", "doctor --model "]
)
def test_every_argument_that_is_a_model_is_completed(offered: Callable[[str], str], line: str) -> None:
    assert offered(f"mlxk {line}dem").split() == ["demo", "demo-speech", "demo-vision"]


def test_names_of_one_s_own_are_completed_where_they_are_removed(
    offered: Callable[[str], str], mlxk_here: Program
) -> None:
    mlxk_here("alias", "mine", "demo")
    assert offered("mlxk alias rm ").split() == offered("mlxk profile rm ").split() == ["mine"]
    assert offered("mlxk profile ").split() == ["mine", "list", "rm"]
    assert offered("mlxk schema li").split() == ["list"]


def test_a_pull_ends_with_the_next_command(mlxk: Program, hub: LoopbackHub, hub_variables: dict[str, str]) -> None:
    hub.add("mlx-community/Next", small_model())
    for _ in range(2):
        assert mlxk("pull", "Next", **hub_variables).stderr.splitlines()[-1] == "Use it: mlxk run mlx-community/Next"
    assert mlxk("pull", "Next", "--dry-run", **hub_variables).stderr == ""
    hub.add("acme/unknown", {**small_model(), "config.json": b'{"model_type": "nosuch"}'})
    assert mlxk("pull", "acme/unknown", **hub_variables).stderr.splitlines()[-1].startswith("It cannot run here: ")
