"""Names of the user's own in another case of letters: they mean the same in every command and for a server."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hub.server import LoopbackHub
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.e2e
Program = Callable[..., "subprocess.CompletedProcess[str]"]
FILE = """\
[models.poet]
model = "demo"
temperature = 0.5

[models.remote]
model = "org/model@abcdef"

[models.Broken]
model = "demo"
temprature = 1

[models.secret]
model = "/secret/place"
"""


@pytest.fixture
def file(program_environment: dict[str, str]) -> Path:
    """The settings file."""
    path = Path(program_environment["HOME"]) / ".config" / "mlxk" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(FILE)
    return path


def test_a_model_is_pulled_and_shown_by_its_name_in_any_case(
    mlxk_here: Program, file: Path, hub: LoopbackHub, hub_variables: dict[str, str]
) -> None:
    for line in (["pull", "REMOTE"], ["show", "Remote", "--remote"]):
        done = mlxk_here(*line, **hub_variables)
        assert (done.returncode > 0, "org/model" in done.stderr) == (True, True), done
        assert "REMOTE" not in done.stderr
    assert mlxk_here("show", "POET").stdout.startswith("Name: poet (temperature = 0.5)")


def test_a_fault_of_a_name_stops_a_command_that_means_it(mlxk_here: Program, file: Path) -> None:
    for line in (["run", "broken", "hi"], ["show", "BROKEN"]):
        message = json.loads(mlxk_here(*line, "--json").stdout)["error"]["message"]
        assert "there is no setting 'temprature'" in message


def test_the_settings_of_a_name_are_shown_for_a_command_line(mlxk_here: Program, file: Path) -> None:
    shown = json.loads(mlxk_here("config", "--for", "run POET hi", "--json").stdout)["data"]["settings"]
    (row,) = (each for each in shown if (each["table"], each["key"]) == ("run", "temperature"))
    assert (row["value"], row["source"]) == (0.5, "file")


def test_a_name_is_changed_shown_and_removed_in_any_case_and_never_written_twice(
    mlxk_here: Program, file: Path
) -> None:
    assert mlxk_here("profile", "POET", "--seed", "3").stdout == "poet = demo\n"
    assert mlxk_here("alias", "Poet", "demo-vision").stdout == "poet = demo-vision\n"
    assert file.read_text().lower().count("[models.poet]") == 1
    assert json.loads(mlxk_here("profile", "Poet", "--json").stdout)["data"]["names"][0]["name"] == "poet"
    assert "poet is no name any more" in mlxk_here("alias", "rm", "pOET").stdout
    assert "poet" not in file.read_text().lower()


def test_a_name_does_not_stand_for_another_in_any_case(mlxk_here: Program, file: Path) -> None:
    refused = mlxk_here("alias", "second", "POET")
    assert (refused.returncode, "'poet' is itself a name of this file" in refused.stderr) == (1, True)


@pytest.mark.parametrize("text", ["models = 3\n", "[models]\npoet = 3\n", "models = [1]\n"])
def test_names_that_are_no_tables_are_refused(mlxk_here: Program, file: Path, text: str) -> None:
    file.write_text(text)
    for line in (["alias", "poet", "demo"], ["alias", "rm", "poet"], ["profile", "poet", "--seed", "1"]):
        done = mlxk_here(*line)
        assert (done.returncode, "must hold tables" in done.stderr) == (1, True), done
    assert file.read_text() == text


def test_a_server_never_says_where_the_model_of_a_name_is(tmp_path: Path) -> None:
    names = (("secret", {"model": "/secret/place"}), ("poet", {"model": "demo"}))
    settings = ServerSettings(port=0, entries=names, aliases=(("quick", "POET"),))
    with RunningServer(WholeProgram(tmp_path, settings)) as running:
        for name in ("secret", "SECRET"):
            body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
            status, _, answer = running.post("/v1/chat/completions", body)
            assert (status, "/secret" in json.dumps(answer)) == (404, False), answer
        body = {"model": "QUICK", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        assert running.post("/v1/chat/completions", body)[0] == 200
