"""``--template-option``, ``--reasoning-effort`` and what a chat template makes necessary, on the command line."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Program = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.e2e
DEMO = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo"
TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}|{{ colour | tojson if colour is defined }}"
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A copy of the built-in model with a template that takes no system prompt."""
    folder = shutil.copytree(DEMO, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return str(folder)


@pytest.mark.parametrize(
    ("given", "shown"),
    [("colour=blue", '"blue"'), ("colour=[1, true]", "[1, true]"), ("colour=a=b", '"a=b"'), ("colour=", '""')],
)
def test_an_option_reaches_the_template_as_json_or_text(mlxk_here: Program, model: str, given: str, shown: str) -> None:
    done = mlxk_here("run", model, "hi", "--show-prompt", "--template-option", given)
    assert (done.returncode, done.stdout) == (0, f"hi|{shown}")


def test_what_was_changed_is_said_once_on_standard_error(mlxk: Program, model: str) -> None:
    options = ("--system", "Be brief.", "--max-tokens", "2", "--reasoning-effort", "xhigh")
    done = mlxk("run", model, "hi", *options)
    assert done.returncode == 0
    assert done.stderr.count("[The system prompt was put into the user message after it.]") == 1
    assert done.stderr.count("[The reasoning effort has no effect") == 1
    notes = json.loads(mlxk("run", model, "hi", *options, "--json").stdout)["data"]["notes"]
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("given", "fault"),
    [("colour", "is not KEY=VALUE"), ("=1", "is not KEY=VALUE"), ("messages=[]", "'messages' belongs to")],
)
def test_an_option_that_cannot_be_one_is_refused(mlxk_here: Program, given: str, fault: str) -> None:
    done = mlxk_here("run", "demo", "hi", "--template-option", given)
    assert done.returncode != 0
    assert fault in done.stderr


@pytest.mark.parametrize("switch", [("--enable-thinking",), ("--template-option", "enable_thinking=true")])
def test_thinking_is_switched_on_under_every_name(mlxk_here: Program, switch: tuple[str, ...]) -> None:
    shown = [mlxk_here("run", "demo", "hi", "--show-prompt", *each).stdout for each in (("--thinking",), switch, ())]
    assert shown[0] == shown[1] != shown[2]
