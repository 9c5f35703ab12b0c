"""What people see on terminals of several widths, with and without colours: captures of the real program."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from hub.server import LoopbackHub
from models.cached_models import WITHOUT_WEIGHTS, put
from syrupy.assertion import SnapshotAssertion

Program = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.e2e

MADE = 1_577_880_000
"""1 January 2020, so that the age of a model is a date."""


@pytest.fixture
def home(program_environment: dict[str, str]) -> Path:
    """Return a home whose cache has three whole models and one without weights."""
    place = Path(program_environment["HOME"])
    snapshots = [
        put(place, name)
        for name in ("mlx-community/Tiny-4bit", "acme/A-Quite-Long-Model-Name-32B-Instruct-4bit-DWQ", "acme/beta")
    ]
    snapshots.append(put(place, "mlx-community/Broken-4bit", WITHOUT_WEIGHTS))
    for snapshot in snapshots:
        for path in (snapshot, *snapshot.rglob("*")):
            os.utime(path, (MADE, MADE))
    return place


@pytest.fixture
def capture(program_environment: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Run a command on a pseudo-terminal of so many columns and return what it shows."""

    def run(*arguments: str, columns: int, **variables: str) -> str:
        process = pexpect.spawn(
            sys.executable,
            ["-m", "mlxk", *arguments],
            env={**program_environment, "TERM": "xterm-256color", **variables},
            cwd=str(tmp_path),
            encoding="utf-8",
            timeout=60,
            dimensions=(40, columns),
        )
        shown: str = process.read()
        process.close()
        return shown.replace("\r\n", "\n")

    return run


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("columns", [60, 80, 140])
@pytest.mark.parametrize("flags", ["", "-a", "-a --health -v"], ids=["plain", "all", "all-health-verbose"])
def test_the_list_is_readable(
    capture: Callable[..., str], columns: int, flags: str, snapshot: SnapshotAssertion
) -> None:
    shown = capture("list", "[!d]*", *flags.split(), columns=columns, TERM="dumb")
    assert "\x1b" not in shown
    assert all(len(line) <= columns for line in shown.splitlines() if " | " in line)
    assert shown == snapshot


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_a_search_is_readable_and_breaks_no_word(
    capture: Callable[..., str],
    hub: LoopbackHub,
    hub_variables: dict[str, str],
    columns: int,
    snapshot: SnapshotAssertion,
) -> None:
    tags = ("mlx", "license:llama3.2")
    for number in (1, 3):
        name = f"mlx-community/Llama-3.2-{number}B-Instruct-4bit"
        hub.add(name, tags=tags, downloads=10**number, parameters={"U32": number})
    hub.add("meta/Llama-gated", gated="manual", downloads=7)
    shown = capture("search", "llama", columns=columns, TERM="dumb", **hub_variables)
    assert all(len(line) <= columns for line in shown.splitlines() if " | " in line)
    assert shown == snapshot


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("columns", [60, 80, 140])
def test_health_puts_the_broken_first_and_a_summary_last(
    capture: Callable[..., str], columns: int, snapshot: SnapshotAssertion
) -> None:
    shown = capture("health", columns=columns, TERM="dumb")
    lines = shown.splitlines()
    kinds = [line.split()[0] for line in lines if line.startswith(("healthy", "unhealthy"))]
    assert kinds == sorted(kinds, reverse=True)
    assert (kinds[0], kinds[-1]) == ("unhealthy", "healthy")
    assert lines[-1] == "Summary: total 7, healthy 6, unhealthy 1"
    assert max(map(len, lines)) <= columns
    assert shown == snapshot


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("command", ["list [!d]* -a --health", "health"])
def test_colours_are_fit_for_light_and_dark_terminals_and_can_be_switched_off(
    capture: Callable[..., str], command: str, snapshot: SnapshotAssertion
) -> None:
    colourful = capture(*command.split(), columns=140)
    assert set(re.findall(r"\x1b\[(\d+)m", colourful)) <= {"0", "1", "2", "31"}, "bold, dim and red only"
    assert "\x1b[31munhealthy" in colourful or "\x1b[31mBroken-4bit" in colourful
    assert colourful == snapshot
    plain = re.sub(r"\x1b\[\d+m", "", colourful)
    assert capture(*command.split(), columns=140, NO_COLOR="1") == plain
    assert capture(*command.split(), columns=140, TERM="dumb") == plain
    assert "\x1b" in capture(*command.split(), columns=140, NO_COLOR="")


@pytest.mark.usefixtures("home")
def test_list_says_what_it_hides_and_what_nothing_fits(mlxk_here: Program) -> None:
    done = mlxk_here("list")
    hidden = "1 that cannot run and 2 that neither chat nor transcribe, of 7 models"
    assert done.stderr == f"Not shown: {hidden}. All: mlxk list --all\n"
    assert mlxk_here("list", "--all").stderr == ""
    for pattern, said in (("nosuch", ""), ("Tny-4bit", " Did you mean mlx-community/Tiny-4bit?")):
        done = mlxk_here("list", pattern)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", f"No model fits '{pattern}'.{said}\n")


@pytest.mark.usefixtures("home")
def test_list_takes_a_pattern_of_names_as_rm_does(mlxk_here: Program) -> None:
    shown = mlxk_here("list", "*-4BIT", "-a").stdout.splitlines()[2:]
    assert [line.split(" ")[0] for line in shown] == ["Broken-4bit", "Tiny-4bit"]
    removed = mlxk_here("rm", "*-4BIT", "--dry-run").stdout
    assert "mlx-community/Broken-4bit" in removed
    assert "mlx-community/Tiny-4bit" in removed


@pytest.mark.usefixtures("home")
def test_the_list_is_sorted_by_what_it_shows(mlxk_here: Program) -> None:
    shown = [line.split(" ")[0] for line in mlxk_here("list", "-a").stdout.splitlines()[2:]]
    assert shown == sorted(shown, key=str.lower)


def test_show_does_not_say_that_a_model_fits_which_cannot_run(mlxk_here: Program, home: Path) -> None:
    put(home, "acme/torch", {**WITHOUT_WEIGHTS, "pytorch_model.bin": b"0" * 1000})
    assert "(fits" not in mlxk_here("show", "acme/torch").stdout
    assert "(but the model does not run here)" in mlxk_here("show", "acme/torch").stdout
    assert "(fits" in mlxk_here("show", "demo").stdout
