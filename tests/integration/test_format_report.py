"""``show --format-report``: what is found of templates and tokenizers of many families, and what is wrong with some."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.event_log import InMemoryEventLog
from integration.test_families_over_http import FAMILIES, template
from models.scripted_model import write_model
from models.tokenizers_of_families import FAMILIES as TOKENIZERS

from mlxk.adapters.mlx.model_tokenizer import MlxModelTokenizer
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.model_tasks import FormatReport
from mlxk.domain.models.model import ModelHandle, Origin

pytestmark = pytest.mark.mlx

Program = Callable[..., "subprocess.CompletedProcess[str]"]
Report = Callable[[Path], FormatReport]
CHATML = template("<tool_call>\n{{ c.function | tojson }}\n</tool_call>")
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
UNKNOWN = template("@{{ c.function.name }}@{{ c.function.arguments | tojson }}@")
PYTHON = (
    "[{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %})]"
)
SEVERAL_ARGUMENTS = {
    "llama4": PYTHON,
    "lfm": f"<|tool_call_start|>{PYTHON}<|tool_call_end|>",
    "gemma": '<|tool_call>call:{{ c.function.name }}{city:<|"|>{{ c.function.arguments.city }}<|"|>,'
    "days:{{ c.function.arguments.days }}}<tool_call|>",
}
"""Calls of families whose templates over HTTP write one argument only."""


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    """Report on the model in a folder."""
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    tokenizer = MlxModelTokenizer(generator.leases)
    yield lambda folder: tokenizer.report(ModelHandle(str(folder), str(folder), Origin.WORKSPACE))
    generator.close()


def scripted(folder: Path, text: str, **options: Any) -> Path:
    """Write a model with a template; its weights must not be needed."""
    write_model(folder, text, "Hello there.", special=("<|im_start|>",), **options)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_as_the_template_writes_it_is_read_in_every_family(family: str, report: Report, tmp_path: Path) -> None:
    call = SEVERAL_ARGUMENTS.get(family, FAMILIES[family][0])
    found = report(scripted(tmp_path / "model", template(call)))
    assert found.call is not None
    assert found.call.read, found.call.text
    assert (found.reads_tools, found.problems) == (True, ())


@pytest.mark.parametrize("family", TOKENIZERS)
def test_the_end_of_a_turn_and_control_tokens_are_found_of_every_tokenizer(
    family: str, report: Report, tmp_path: Path
) -> None:
    made = TOKENIZERS[family]
    scripted(tmp_path / "model", made.template)
    made.tokenizer().save_pretrained(tmp_path / "model")
    found = report(tmp_path / "model")
    assert made.end in [each.text for each in found.ends if "template" in each.sources or family == "Harmony"]
    assert made.end in found.control_tokens
    assert found.conversations[0].refusal is None


def test_where_each_end_comes_from_is_told(report: Report, tmp_path: Path) -> None:
    folder = scripted(tmp_path / "model", CHATML, ended=False)
    config = json.loads((folder / "config.json").read_text())
    by_text = {each.text: each.sources for each in report(folder).ends}
    assert by_text == {"!": ("config", "tokenizer"), "<|im_end|>": ("template",)}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [config["eos_token_id"]]}))
    assert report(folder).ends[0].sources == ("generation_config", "config", "tokenizer")


def test_what_a_template_needs_is_found_by_kind_of_conversation(report: Report, tmp_path: Path) -> None:
    found = report(scripted(tmp_path / "model", ALTERNATING))
    steps = {each.kind: each.steps for each in found.conversations}
    assert steps["one message"] == ()
    assert steps["system prompt"] == ("system-in-user-message",)
    assert steps["turns of one role"] == ("turns-joined",)
    assert steps["assistant first"] == ("user-message-inserted",)
    assert "tools-in-system-prompt" in steps["tools"]
    assert (found.reads_tools, found.call, found.problems) == (False, None, ())


def test_switches_and_levels_are_those_the_template_reads(report: Report, tmp_path: Path) -> None:
    reading = "{{ '<think>\n\n</think>' if enable_thinking is false }}{{ reasoning_effort == 'low' }}" + CHATML
    found = report(scripted(tmp_path / "model", reading))
    assert (found.switches, found.effort_levels) == (("enable_thinking",), ("low",))
    assert found.reasoning == ("<think>", "</think>")


@pytest.mark.parametrize(
    ("reading", "switches", "levels"),
    [
        ("", (), ()),
        ("{{ colour == 'low' }}", (), ()),
        ("{{ enable_thinking }}{{ colour == 'low' }}", ("enable_thinking",), ()),
        ("{{ thinking_budget }}{{ thinking }}{{ reasoning }}", ("thinking", "reasoning", "thinking_budget"), ()),
        ("{{ skip_thinking }}{{ thinking_mode == 'off' }}", ("skip_thinking", "thinking_mode"), ()),
        ("{{ think_mode }}{{ reasoning_mode }}", ("think_mode", "reasoning_mode"), ()),
        ("{{ reasoning_effort }}", (), ("low", "medium", "high")),
        ("{{ reasoning_effort in ['max', 'none'] }}{{ reasoning_effort == 'high' }}", (), ("none", "high", "max")),
        ("{{ reasoning_strength == 'high' }}{{ colour == 'low' }}", (), ("high",)),
        ("{{ thinking_effort | default('xhigh') }}", (), ("xhigh",)),
    ],
)
def test_only_variables_for_reasoning_are_switches_and_levels(
    reading: str, switches: tuple[str, ...], levels: tuple[str, ...], report: Report, tmp_path: Path
) -> None:
    found = report(scripted(tmp_path / "model", reading + CHATML))
    assert (found.switches, found.effort_levels) == (switches, levels)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (template("@{{ c.function.name }}@"), "The chat template reads tools, but writes no calls"),
        (UNKNOWN, "A call as the chat template writes it is not read as that call."),
        ("{% for m in messages %}", "one message: messages: the model's chat template is invalid: Unexpected end"),
        ("{{ raise_exception('never') }}", "one message: messages[0]: the model's chat template refuses this"),
        ("", "There is no chat template"),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str, report: Report, tmp_path: Path) -> None:
    (found,) = report(scripted(tmp_path / "model", text)).problems
    assert found.startswith(problem)


@pytest.mark.e2e
def test_it_is_printed_for_people_and_as_json(mlxk: Program, tmp_path: Path) -> None:
    folder = str(scripted(tmp_path / "model", UNKNOWN))
    shown = mlxk("show", folder, "--format-report")
    assert shown.returncode == 0, shown.stderr
    assert "  Calls parsed: no\n" in shown.stdout
    assert '  @get_weather@{"city": "Köln", "days": 3}@<|im_end|>\n' in shown.stdout
    assert shown.stdout.endswith("Problems:\n  A call as the chat template writes it is not read as that call.\n")
    document = json.loads(mlxk("show", folder, "--format-report", "--json").stdout)
    assert document["data"]["metadata"] is None
    assert document["data"]["format_report"]["call"] == {
        "text": '@get_weather@{"city": "Köln", "days": 3}@<|im_end|>\n',
        "read": False,
    }


@pytest.mark.e2e
def test_a_tokenizer_that_cannot_be_used_is_one_error(mlxk_here: Program, tmp_path: Path) -> None:
    folder = scripted(tmp_path / "model", CHATML)
    (folder / "tokenizer.json").write_text("{}")
    done = mlxk_here("show", str(folder), "--format-report", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["type"]) == (1, "model_unhealthy")


@pytest.mark.e2e
def test_it_excludes_the_other_sections(mlxk_here: Program) -> None:
    done = mlxk_here("show", "demo", "--format-report", "--files")
    assert done.returncode == 2
    assert "--format-report" in done.stderr


@pytest.mark.e2e
def test_what_else_was_asked_for_is_reported_with_it(mlxk_here: Program, tmp_path: Path) -> None:
    folder = str(tmp_path / "copy")
    assert mlxk_here("clone", "demo", folder).returncode == 0
    for section in ([], ["--files"], ["--config"], ["--format-report"]):
        done = mlxk_here("show", folder, "--recalc-hash", *section)
        assert (done.returncode, "recorded anew" in done.stderr) == (0, True), section
        document = json.loads(mlxk_here("show", folder, "--recalc-hash", *section, "--json").stdout)
        assert document["data"]["hash_updated"] is True, section
