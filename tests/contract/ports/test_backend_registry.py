"""The contract of the backend registry, held by every adapter."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest
from doubles.backend_registry import InMemoryBackendRegistry

from mlxk.adapters.mlx.registry import MlxBackendRegistry
from mlxk.application.ports.backends import BackendRegistry
from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.models.detection import detect
from mlxk.domain.models.file_formats import Document
from mlxk.domain.models.model import Capability
from mlxk.domain.models.snapshot import ModelSnapshot

MODULES = {
    "mlx-lm": "mlx_lm/models/{}.py",
    "mlx-vlm": "mlx_vlm/models/{}/__init__.py",
    "mlx-audio": "mlx_audio/stt/models/{}/__init__.py",
}
Build = Callable[[Mapping[str, Collection[str]]], BackendRegistry]


@pytest.fixture(params=["mlx", "in_memory"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    def on_disk(supported: Mapping[str, Collection[str]]) -> BackendRegistry:
        for backend, types in supported.items():
            for model_type in types:
                module = tmp_path / MODULES[backend].format(model_type)
                module.parent.mkdir(parents=True, exist_ok=True)
                module.write_text("class Model:\n    pass\n")
            (tmp_path / MODULES[backend].split("/")[0] / "__init__.py").touch()
        return MlxBackendRegistry([str(tmp_path)])

    return on_disk if request.param == "mlx" else InMemoryBackendRegistry


def model(
    architecture: str, *, mlx: bool = True, weights: str = "model.safetensors", **config: object
) -> ModelSnapshot:
    """Return the files of a text model."""
    files = {"config.json": 10, weights: 100, "tokenizer.json": 10}
    documents = {"config.json": Document({"model_type": architecture, **config})}
    return ModelSnapshot("org/x", files=files, documents=documents, published_for_mlx=mlx)


class TestBackendRegistry:
    def test_nothing_is_supported_where_nothing_is_installed(self, build: Build) -> None:
        registry = build({})
        for backend in MODULES:
            assert not registry.supports(backend, "llama")
        assert registry.dedicated_to("llama") is None

    @pytest.mark.parametrize("backend", list(MODULES))
    def test_each_backend_supports_its_own_types_only(self, build: Build, backend: str) -> None:
        registry = build({backend: {"llama"}})
        for other in (*MODULES, "none"):
            assert registry.supports(other, "llama") is (other == backend)

    @pytest.mark.parametrize(
        "model_type", ["", "lama", "llama2", "llama.llama", "../llama", "/llama", "__init__", "a\0"]
    )
    @pytest.mark.parametrize("backend", list(MODULES))
    def test_a_type_is_matched_exactly(self, build: Build, backend: str, model_type: str) -> None:
        assert not build({backend: {"llama"}}).supports(backend, model_type)

    def test_activations_are_quantized_on_no_processor(self, build: Build) -> None:
        with pytest.raises(CapabilityError, match="quantize_activations: "):
            build({}).require_quantized_activations()

    def test_asking_twice_gives_the_same_answer(self, build: Build) -> None:
        registry = build({"mlx-lm": {"llama"}})
        assert [registry.supports("mlx-lm", "llama") for _ in range(2)] == [True, True]
        assert [registry.supports("mlx-lm", "other") for _ in range(2)] == [False, False]

    def test_an_architecture_is_speech_when_backends_for_speech_alone_know_it(self, build: Build) -> None:
        registry = build({"mlx-audio": {"parakeet", "llama"}, "mlx-lm": {"llama"}})
        asked = ("parakeet", "llama", "other")
        assert [registry.dedicated_to(name) for name in asked] == [Capability.AUDIO, None, None]

    def test_a_known_model_runs_on_the_backend_that_knows_it(self, build: Build) -> None:
        found = model("llama")
        verdict = build({"mlx-lm": {"llama"}}).judge(found, detect(found))
        assert (verdict.compatible, verdict.reason, verdict.backends) == (True, None, ("mlx-lm",))

    def test_safetensors_need_no_sign_of_mlx(self, build: Build) -> None:
        found = model("llama", mlx=False)
        assert build({"mlx-lm": {"llama"}}).judge(found, detect(found)).compatible

    @pytest.mark.parametrize(
        ("found", "reason"),
        [
            (model("other"), "Model type other not supported."),
            (model("llama", mlx=False, weights="pytorch_model.bin"), "Incompatible framework: PyTorch"),
            (model("llama", mlx=False, weights="model.gguf"), "Incompatible framework: GGUF"),
            (
                model("llama", model_file="code.py"),
                "requires executing model-supplied code (config.json: model_file)",
            ),
        ],
    )
    def test_any_other_model_does_not_run_for_a_reason(self, build: Build, found: ModelSnapshot, reason: str) -> None:
        verdict = build({"mlx-lm": {"llama"}}).judge(found, detect(found))
        assert (verdict.compatible, verdict.reason) == (False, reason)

    def test_another_backend_converts_models_with_media(self, build: Build) -> None:
        registry = build({"mlx-lm": {"llama"}})
        assert registry.converters(media=True)[0] != registry.converters(media=False)[0]
        assert set(registry.converters(media=True)) == set(registry.converters(media=False))

    def test_a_directory_without_an_adapter_has_no_base(self, build: Build, tmp_path: Path) -> None:
        assert build({}).base_of(str(tmp_path)) is None

    def test_a_directory_without_an_adapter_is_refused_by_name(self, build: Build, tmp_path: Path) -> None:
        with pytest.raises(ValidationError, match=r"^adapter: "):
            build({}).adapter(str(tmp_path))
