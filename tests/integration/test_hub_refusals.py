"""Whichever request of a command the hub refuses, the error names the model, and what arrived is no whole model."""

from collections.abc import Callable
from typing import Any

import pytest
from hub.models import safetensors, small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]

# Without an index the headers of both files are read before the download.
FILES = {**small_model(), "model-copy.safetensors": safetensors("other", 400, seed=3)}
COMMANDS = {"pull": ("pull",), "show": ("show", "--remote"), "clone": ("clone",)}


@pytest.mark.parametrize("status", [400, 403, 404])
@pytest.mark.parametrize("verb", COMMANDS)
def test_a_refusal_names_the_model_whichever_request_it_meets(
    hub: LoopbackHub, command: Command, verb: str, status: int
) -> None:
    def run(name: str) -> dict[str, Any]:
        place = (f"./{name.partition('/')[2]}",) if verb == "clone" else ()
        return command(*COMMANDS[verb], name, *place)

    hub.add("org/whole", FILES)
    assert run("org/whole")["status"] == "success"
    paths = [call.path for call in hub.calls()]
    assert len(paths) > 1
    refused = 0
    for index in range(len(paths)):
        name = f"org/refused-{index}"
        hub.add(name, FILES)
        hub.fault(f"refused-{index}/|/cdn/", skip=index, status=status)
        said = run(name)
        if said["status"] == "error":
            refused += 1
            assert f"'{name}'" in said["error"]["message"], (paths[index], said)
            assert [each["health"] for each in command("list", name)["data"]["models"]] in ([], ["unhealthy"])
    assert refused > 0
