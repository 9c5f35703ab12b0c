"""What people see, held against snapshots."""

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from mlxk.application.use_cases.inspect_models import HealthEntry
from mlxk.domain.models.footprint import MemoryReading, judge_memory
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
from mlxk.entrypoints.cli.render.model_table import ListView, model_table
from mlxk.entrypoints.cli.render.tables import details_text, health_text

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
