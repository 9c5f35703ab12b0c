"""Converting, decided on doubles: which library, what is refused, and what becomes a workspace."""

import json
from typing import Any

import attrs
import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.model_cache import InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.progress import InMemoryProgress
from doubles.weight_converter import InMemoryWeightConverter
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.ports.backends import ConvertedWeights
from mlxk.application.use_cases.convert_model import ConvertMode, ConvertModel, ConvertRequest, ConvertResult
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import ConversionFailedError, IncompatibleModelError, UnhealthyModelError, ValidationError
from mlxk.domain.models.model import ModelHandle, Workspace

WORK, TARGET = "/home/me/work", "/home/me/out"
HEADER = json.dumps({"a.weight": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + b"\0"
PART = {"2_Dense/model.safetensors": WEIGHTS.replace(b"a.weight", b"b.weight")}
"""A module of a sentence encoder."""
COPY = {"original/model.safetensors": WEIGHTS}


@attrs.define(slots=False)
class World:
    """A workspace, and what converts it."""

    config: dict[str, object] = attrs.field(factory=dict)
    more: dict[str, bytes] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        whole = {
            "config.json": json.dumps({"model_type": "llama", **self.config}).encode(),
            "model.safetensors": WEIGHTS,
        }
        self.files = InMemoryModelFiles({WORK: {**whole, **self.more}})
        self.store = InMemoryWorkspaceStore(
            {WORK: Workspace(managed=True, source_repo="org/m", source_revision="a" * 40)},
            files=self.files,
            protected=("/cache",),
        )
        self.converter = InMemoryWeightConverter(self.files)

    def convert(self, mode: ConvertMode, bits: int | None = None, **options: object) -> ConvertResult:
        cache = InMemoryModelCache()
        registry = InMemoryBackendRegistry({"mlx-lm": {"llama"}, "mlx-vlm": {"gemma3"}})
        convert = ConvertModel(
            resolve=ResolveModel(cache, self.store, InMemoryModelSource(), default_owner="mlx-community"),
            cache=cache,
            files=self.files,
            workspaces=self.store,
            registry=registry,
            converter=self.converter,
            describe=DescribeModel(self.files, self.store, registry, cache, default_owner="mlx-community"),
        )
        target = str(options.pop("target", TARGET))
        return convert(ConvertRequest("./work", target, mode, bits, **options), InMemoryProgress())  # type: ignore[arg-type]


def test_a_quantized_model_becomes_a_workspace_with_its_scheme_and_source() -> None:
    there = World(more={"sub/x.json": b"{}", "tokenizer.json": b"{}", "old.bin": b"x", **PART, **COPY})
    result = there.convert(ConvertMode.QUANTIZE, 4)
    assert result.handle.directory == TARGET
    assert (result.provenance.bits, result.provenance.group_size, result.provenance.source_repo) == (4, 64, "org/m")
    made = there.files.directories[TARGET]
    assert set(made) == {"config.json", "model.safetensors", "sub/x.json", "tokenizer.json", *PART}
    assert json.loads(made["config.json"])["quantization"]["bits"] == 4
    assert there.store.read(result.handle).operation == "convert"


@pytest.mark.parametrize(
    ("mode", "bits", "options"),
    [
        (ConvertMode.QUANTIZE, 5, {}),
        (ConvertMode.QUANTIZE, None, {}),
        (ConvertMode.QUANTIZE, 4, {"group_size": 48}),
        (ConvertMode.DEQUANTIZE, None, {"group_size": 64}),
        (ConvertMode.DEQUANTIZE, None, {}),
        (ConvertMode.QUANTIZE, 4, {"target": "/cache/x"}),
        (ConvertMode.QUANTIZE, 4, {"target": WORK}),
        (ConvertMode.QUANTIZE, 4, {"target": f"{WORK}/inside"}),
    ],
)
def test_what_is_not_allowed_is_refused_and_nothing_is_made(
    mode: ConvertMode, bits: int | None, options: dict[str, object]
) -> None:
    there = World()
    with pytest.raises(ValidationError):
        there.convert(mode, bits, **options)
    assert set(there.files.directories) == {WORK}


def test_the_same_scheme_again_is_refused_and_another_one_comes_with_a_warning() -> None:
    there = World(config={"quantization": {"bits": 4, "group_size": 64}})
    with pytest.raises(ValidationError):
        there.convert(ConvertMode.QUANTIZE, 4)
    assert "does not increase precision" in (there.convert(ConvertMode.QUANTIZE, 8).warning or "")
    there = World(config={"quantization": {"bits": 8, "group_size": 64}})
    assert "loses more" in (there.convert(ConvertMode.QUANTIZE, 4).warning or "")
    assert World(config={"quantization": {"bits": 4, "group_size": 64}}).convert(ConvertMode.DEQUANTIZE).warning is None


def test_a_library_must_know_the_whole_model() -> None:
    for config in (
        {"model_type": "unknown"},
        {"model_type": "llama", "vision_config": {"a": 1}},
        {"quantization_config": {"quant_method": "gptq"}},
    ):
        with pytest.raises(IncompatibleModelError):
            World(config=config, more={"preprocessor_config.json": b"{}"}).convert(ConvertMode.QUANTIZE, 4)


def test_a_source_that_is_not_whole_is_not_converted_and_a_broken_result_is_not_kept() -> None:
    there = World()
    there.files.directories[WORK]["model.safetensors"] = WEIGHTS[:-1]
    with pytest.raises(UnhealthyModelError):
        there.convert(ConvertMode.QUANTIZE, 4)
    assert set(there.files.directories) == {WORK}

    class Cutting(InMemoryWeightConverter):
        def quantize(self, source: ModelHandle, target: str, *options: Any) -> ConvertedWeights:
            written = super().quantize(source, target, *options)
            there.files.directories[target]["model.safetensors"] = WEIGHTS[:-1]
            return written

    there = World()
    there.converter = Cutting(there.files)
    with pytest.raises(ConversionFailedError, match="the result is not whole: Damaged safetensors, truncated"):
        there.convert(ConvertMode.QUANTIZE, 4)
    assert (set(there.files.directories), set(there.store.workspaces)) == ({WORK}, {WORK})


def test_an_index_is_rebuilt_only_when_no_tensor_is_missing() -> None:
    there = World(more={"model.safetensors.index.json": b'{"weight_map": {"a.weight": "gone.safetensors"}}'})
    there.converter.missing["/home/me/.out.draft"] = ("model.norm.weight",)
    with pytest.raises(ConversionFailedError, match=r"model\.norm\.weight"):
        there.convert(ConvertMode.REPAIR_INDEX)
    assert set(there.files.directories) == {WORK}
    there.converter.missing.clear()
    result = there.convert(ConvertMode.REPAIR_INDEX)
    assert (result.rebuilt, result.weights) == (False, None)
    assert "model.safetensors.index.json" not in there.files.directories[TARGET]


def test_an_index_over_several_files_names_them_all() -> None:
    second = WEIGHTS.replace(b"a.weight", b"b.weight")
    there = World(more={"more.safetensors": second})
    result = there.convert(ConvertMode.REPAIR_INDEX)
    assert result.rebuilt
    index = json.loads(there.files.directories[TARGET]["model.safetensors.index.json"])
    assert index["weight_map"] == {"a.weight": "model.safetensors", "b.weight": "more.safetensors"}
