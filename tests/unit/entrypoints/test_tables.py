"""What people see, held against snapshots."""

import datetime
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from mlxk.application.ports.model_tasks import EndToken, FittedConversation, FormatReport
from mlxk.application.use_cases.inspect_models import HealthEntry
from mlxk.domain.models.footprint import MemoryFit, MemoryReading, WeightForm, judge_memory
from mlxk.domain.models.model import (
    Capability,
    FileEntry,
    Framework,
    HealthReport,
    ModelDescription,
    ModelDetails,
    ModelHandle,
    ModelType,
    Origin,
    Quantization,
    Runtime,
    Workspace,
    healthy,
    unhealthy,
)
from mlxk.domain.ranks import HostFiles, HostShare, RankHost, SpreadModel
from mlxk.entrypoints.cli.render.model_json import spread as spread_json
from mlxk.entrypoints.cli.render.model_table import ListView, model_table
from mlxk.entrypoints.cli.render.tables import details_text, health_text, memory_lines, report_text, spread_text

NOW = datetime.datetime(2026, 5, 4, 12, 0, tzinfo=datetime.UTC)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT, CHAT = Capability.TEXT_GENERATION, Capability.CHAT
DIRTY = Workspace(
    managed=True,
    source_repo="mlx-community/Tiny",
    source_revision=COMMIT,
    operation="clone",
    created=NOW - datetime.timedelta(days=3),
    content_hash="sha256:" + "ab" * 32,
    clean=False,
)


def describe(
    name: str,
    origin: Origin = Origin.CACHE,
    model_type: ModelType = ModelType.CHAT,
    capabilities: tuple[Capability, ...] = (TEXT, CHAT),
    framework: Framework = Framework.MLX,
    health: HealthReport | None = None,
    runtime: Runtime | None = None,
    workspace: Workspace | None = None,
    hours: float = 2,
) -> ModelDescription:
    """Describe a model as the rules would."""
    return ModelDescription(
        handle=ModelHandle(name, f"/models/{name}", origin, COMMIT if origin is Origin.CACHE else None),
        size_bytes=2_134_000_000,
        modified=NOW - datetime.timedelta(hours=hours),
        framework=framework,
        model_type=model_type,
        capabilities=capabilities,
        context_length=8192,
        health=health or healthy(),
        runtime=runtime or Runtime(True),
        workspace=workspace,
    )


MODELS = (
    describe("demo", Origin.BUILT_IN, hours=24 * 400),
    describe("mlx-community/Tiny-4bit", hours=0.001),
    describe("mlx-community/Tiny-base", model_type=ModelType.BASE, capabilities=(TEXT,), hours=30),
    describe("mlx-community/See", capabilities=(TEXT, CHAT, Capability.VISION), hours=24 * 6),
    describe("mlx-community/whisper", model_type=ModelType.AUDIO, capabilities=(Capability.AUDIO,)),
    describe("org/Torch", framework=Framework.PYTORCH, runtime=Runtime(False, "Incompatible framework: PyTorch")),
    describe("org/Broken", health=unhealthy("Truncated safetensors: model.safetensors (12 bytes missing)")),
    describe("/work/copy", Origin.WORKSPACE, workspace=DIRTY),
)


@pytest.mark.parametrize(
    "view",
    [
        ListView(),
        ListView(health=True),
        ListView(verbose=True),
        ListView(everything=True),
        ListView(everything=True, health=True),
        ListView(everything=True, health=True, verbose=True),
    ],
    ids=["default", "health", "verbose", "all", "all-health", "all-health-verbose"],
)
def test_the_list(view: ListView, snapshot: SnapshotAssertion) -> None:
    found = model_table(MODELS, view, NOW)
    assert (str(found), found.notes) == snapshot


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize(
    "view",
    [ListView(), ListView(everything=True), ListView(everything=True, health=True, verbose=True)],
    ids=["default", "all", "all-health-verbose"],
)
def test_the_list_is_no_wider_than_the_terminal(view: ListView, width: int, snapshot: SnapshotAssertion) -> None:
    long = describe("mlx-community/A-Quite-Long-Model-Name-32B-Instruct-4bit-DWQ", hours=30)
    found = model_table([*MODELS, long], view, NOW, width)
    assert max(map(len, str(found).splitlines())) <= width
    assert (str(found), found.notes) == snapshot


@pytest.mark.parametrize("section", ["metadata", "files", "config"])
def test_one_model_in_detail(section: str, snapshot: SnapshotAssertion) -> None:
    details = ModelDetails(
        description=MODELS[-1],
        files=(FileEntry("config.json", 812), FileEntry("model.safetensors", 2_133_999_188)),
        config={"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 16},
        quantization=Quantization(4, 64),
        parameters=1_235_814_400,
        license="mit",
        chat_template=True,
        template_read=True,
        tools_missing=None,
        supports_reasoning=False,
    )
    verdict = judge_memory(MemoryReading(16 * 10**9, 12 * 10**9), 2_133_999_188, 32768, 4096)
    assert details_text(details, section, NOW, verdict) == snapshot


def of_config(config: dict[str, Any]) -> ModelDetails:
    """Return the details of a model of which nothing but its config is known."""
    return ModelDetails(
        description=MODELS[-1],
        files=(),
        config=config,
        quantization=None,
        parameters=None,
        license=None,
        chat_template=True,
        template_read=True,
        tools_missing=None,
        supports_reasoning=False,
    )


ANYTHING = st.sampled_from([None, True, 0, -1, 2.5, "", "x", "\x1b[2J", [], [[]], [None], ["x"], {}, {"x": None}])
KEYS = ("architectures", "model_type", "vocab_size", "num_hidden_layers", "quantization", "quantization_config")


@given(
    st.dictionaries(st.sampled_from((*KEYS, "text_config")), ANYTHING), st.dictionaries(st.sampled_from(KEYS), ANYTHING)
)
def test_a_model_is_shown_whatever_its_config_has_in_the_place_of_a_value(
    config: dict[str, Any], section: dict[str, Any]
) -> None:
    verdict = judge_memory(None, 2_133_999_188, 32768, 4096)
    for each in (config, {**config, "text_config": section}):
        for part in ("metadata", "config"):
            shown = details_text(of_config(each), part, NOW, verdict)
            assert shown.startswith("Model: /work/copy\n")
            assert "\x1b" not in shown
        assert "None" not in details_text(of_config(each), "metadata", NOW, verdict)


@pytest.mark.parametrize("architectures", [None, [], "Llama", {}, 5])
def test_an_architecture_is_shown_of_a_list_of_them_only(architectures: object) -> None:
    verdict = judge_memory(None, 2_133_999_188, 32768, 4096)
    assert "Architecture:" not in details_text(of_config({"architectures": architectures}), "metadata", NOW, verdict)
    shown = details_text(of_config({"architectures": ["Llama", "Other"]}), "metadata", NOW, verdict)
    assert "  Architecture: Llama\n" in shown


def test_health(snapshot: SnapshotAssertion) -> None:
    entries = [HealthEntry(each.handle, each.health, each.workspace) for each in MODELS]
    assert health_text(entries) == snapshot
    assert health_text(entries, width=60) == snapshot
    assert health_text(entries[:1]) == "healthy   demo — Model is healthy\n"


def test_notes_of_health_stand_below_their_model() -> None:
    entry = HealthEntry(MODELS[-1].handle, healthy(), None, ("There is no chat template.",))
    first, second = health_text([entry]).splitlines()
    assert first.startswith("healthy")
    assert second == "          There is no chat template."


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({}, "-"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq, 4-bit"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({"quantization_config": {"load_in_8bit": True}}, "unnamed method"),
    ],
)
def test_the_quantization_of_another_library_is_named(config: dict[str, object], shown: str) -> None:
    details = of_config(config)
    verdict = judge_memory(MemoryReading(16 * 10**9, 12 * 10**9), 2_133_999_188, 32768, 4096)
    assert f"Quantization: {shown}\n" in details_text(details, "metadata", NOW, verdict)


VERDICT = attrs.evolve(judge_memory(MemoryReading(16 * 10**9, 12 * 10**9), 10**9), needed=2 * 10**9, budget=None)


@pytest.mark.parametrize(
    ("form", "more", "words"),
    [
        (WeightForm.STORED, 0, ""),
        (WeightForm.WIDE, 10**8, ", 100.0MB of it to hold 16-bit numbers in float32 (faster without a GPU)"),
        (
            WeightForm.PLAIN,
            10**8,
            ", 100.0MB of it to hold its quantized layers unpacked in float32 (faster without a GPU)",
        ),
        (
            WeightForm.STORED,
            10**8,
            " (slow without a GPU: there is no memory for 100.0MB more to hold 16-bit numbers in float32)",
        ),
    ],
)
def test_what_holding_weights_otherwise_costs_is_said(form: WeightForm, more: int, words: str) -> None:
    weights, _, estimate = memory_lines(attrs.evolve(VERDICT, form=form, widening_bytes=more))
    assert weights == f"  Weights: 1.0GB{words}"
    assert estimate == "  Estimate: 2.0GB (fits)"


def test_weights_that_are_no_part_of_a_model_are_named() -> None:
    shown = details_text(
        attrs.evolve(of_config({}), strays=("a.safetensors", "b.safetensors")), "formats", NOW, VERDICT
    )
    assert "Not part of the model: a.safetensors, b.safetensors\n" in shown
    assert "Not part" not in details_text(of_config({}), "formats", NOW, VERDICT)


def test_conversations_are_shown_with_their_adaptations() -> None:
    report = FormatReport(
        chat_template=True,
        reasoning=None,
        call_syntaxes=(),
        reads_tools=False,
        switches=(),
        effort_levels=(),
        ends=(EndToken(2, "", ("config.json",)),),
        control_tokens=(),
        conversations=(
            FittedConversation("plain", ()),
            FittedConversation("system", ("system-merged", "text parts")),
            FittedConversation("tools", ("tools-ignored",), refusal="no tools"),
        ),
        call=None,
        problems=("It is odd.",),
    )
    assert report_text(report).partition("Conversations:\n")[2] == (
        "  plain: as it is\n  system: system-merged, text parts\n  tools: refused\n\nProblems:\n  It is odd.\n"
    )
    assert "Turns end with: 2 (config.json)\n" in report_text(report)


UNKNOWN = attrs.evolve(VERDICT, fit=MemoryFit.UNKNOWN)
SPREAD = SpreadModel(
    (
        HostShare(RankHost("mac1", "10.0.0.1"), attrs.evolve(VERDICT, budget=10**10), HostFiles.SAME, None),
        HostShare(
            RankHost("mac2", "10.0.0.2"), attrs.evolve(VERDICT, fit=MemoryFit.UNKNOWN), HostFiles.ABSENT, "no ssh"
        ),
    ),
    "tensor",
    None,
)


@pytest.mark.parametrize(
    ("cut", "reason", "division"),
    [
        ("tensor", None, "every layer is cut (tensor parallel)"),
        ("pipeline", None, "each host has some of the layers (pipeline)"),
        (None, "odd\x1b[2J", "none: odd\\x1b[2J"),
        (None, None, "none: not known"),
    ],
)
def test_the_shares_of_hosts_and_the_division_are_shown(cut: str | None, reason: str | None, division: str) -> None:
    spread = attrs.evolve(SPREAD, cut=cut, reason=reason)
    assert spread_text(spread, None).splitlines() == [
        "",
        "Hosts:",
        "Host | Share | Budget | Fit     | Files  | Problem",
        "-----+-------+--------+---------+--------+--------",
        "mac1 | 2.0GB | 10.0GB | fits    | same   | -",
        "mac2 | 2.0GB | -      | unknown | absent | no ssh",
        f"Division: {division}",
    ]
    assert spread_json(spread)["cut"] == {"kind": cut, "reason": reason}


def test_the_shares_of_hosts_are_fields_in_json() -> None:
    assert spread_json(SPREAD)["hosts"] == [
        {
            **{"host": "mac1", "address": "10.0.0.1", "needed_bytes": 2 * 10**9, "budget_bytes": 10**10},
            **{"fit": "fits", "files": "same", "problem": None},
        },
        {
            **{"host": "mac2", "address": "10.0.0.2", "needed_bytes": 2 * 10**9, "budget_bytes": None},
            **{"fit": "unknown", "files": "absent", "problem": "no ssh"},
        },
    ]
