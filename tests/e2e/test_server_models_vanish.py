"""A model that vanishes under a server costs its own requests only."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from serving.program import CHAT, QUESTION, ServedProgram
from serving.running import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

MODELS = Path(__file__).parents[2] / "adapters" / "builtin" / "models"
COMMIT = "c" * 40


def workspace(home: Path, model: str) -> tuple[str, Path]:
    """Put a copy of a built-in model among the workspaces; return its name and what is to be removed."""
    shutil.copytree(MODELS / model, home / "workspaces" / "mine")
    return "mine", home / "workspaces" / "mine"


def cached(home: Path, model: str) -> tuple[str, Path]:
    """Put a copy of a built-in model into the cache; return its name and what is to be removed."""
    folder = home / "hf" / "hub" / "models--org--mine"
    shutil.copytree(MODELS / model, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return "org/mine", folder


BODY = {"messages": QUESTION["messages"], "max_tokens": 2}


@pytest.mark.parametrize("place", [workspace, cached])
@pytest.mark.parametrize("kind", ["demo", "demo-vision"])
def test_a_removed_model_is_not_found_and_all_else_goes_on(
    place: Callable[[Path, str], tuple[str, Path]], kind: str, tmp_path: Path, program_environment: dict[str, str]
) -> None:
    home = Path(program_environment["HOME"])
    (home / "workspaces").mkdir()
    name, folder = place(home, kind)
    environment = {**program_environment, "MLXK_WORKSPACE_HOME": str(home / "workspaces")}

    def ids() -> list[str]:
        status, listing = server.ask("GET", "/v1/models")
        assert status == 200
        return [each["id"] for each in listing["data"]]

    with ServedProgram(tmp_path, environment, "--model", name) as server:
        assert server.ask("POST", CHAT, {"model": name, **BODY})[0] == 200
        assert name in ids()
        os.rename(folder, home / "elsewhere")
        for _ in range(3):
            status, answer = server.ask("POST", CHAT, {"model": name, **BODY})
            assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")
            assert "demo" in ids()
            assert server.chat() == 200
        assert eventually(lambda: name not in ids(), 30)
        assert server.ask("GET", f"/v1/models/{name}")[0] == 404
        os.rename(home / "elsewhere", folder)
        assert eventually(lambda: server.ask("POST", CHAT, {"model": name, **BODY})[0] == 200, 30)
        assert eventually(lambda: name in ids(), 30)
