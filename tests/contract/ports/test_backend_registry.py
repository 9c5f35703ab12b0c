"""The contract of the backend registry, held by every adapter."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest
from doubles.backend_registry import InMemoryBackendRegistry

from mlxk.adapters.mlx.registry import MlxBackendRegistry
from mlxk.application.ports.backend_registry import BackendRegistry
from mlxk.domain.models.model import Backend

MODULES = {
    Backend.MLX_LM: "mlx_lm/models/{}.py",
    Backend.MLX_VLM: "mlx_vlm/models/{}/__init__.py",
    Backend.MLX_AUDIO: "mlx_audio/stt/models/{}/__init__.py",
}
Build = Callable[[Mapping[Backend, Collection[str]]], BackendRegistry]


@pytest.fixture(params=["mlx", "in_memory"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    def on_disk(supported: Mapping[Backend, Collection[str]]) -> BackendRegistry:
        for backend, types in supported.items():
            for model_type in types:
                module = tmp_path / MODULES[backend].format(model_type)
                module.parent.mkdir(parents=True, exist_ok=True)
                module.write_text("class Model:\n    pass\n")
            (tmp_path / MODULES[backend].split("/")[0] / "__init__.py").touch()
        return MlxBackendRegistry([str(tmp_path)])

    return on_disk if request.param == "mlx" else InMemoryBackendRegistry


class TestBackendRegistry:
    def test_nothing_is_supported_where_nothing_is_installed(self, build: Build) -> None:
        registry = build({})
        for backend in Backend:
            assert not registry.installed(backend)
            assert not registry.supports(backend, "llama")

    @pytest.mark.parametrize("backend", list(Backend))
    def test_each_backend_supports_its_own_types_only(self, build: Build, backend: Backend) -> None:
        registry = build({backend: {"llama"}})
        for other in Backend:
            assert registry.installed(other) is (other is backend)
            assert registry.supports(other, "llama") is (other is backend)

    @pytest.mark.parametrize(
        "model_type", ["", "lama", "llama2", "llama.llama", "../llama", "/llama", "__init__", "a\0"]
    )
    @pytest.mark.parametrize("backend", list(Backend))
    def test_a_type_is_matched_exactly(self, build: Build, backend: Backend, model_type: str) -> None:
        assert not build({backend: {"llama"}}).supports(backend, model_type)

    def test_asking_twice_gives_the_same_answer(self, build: Build) -> None:
        registry = build({Backend.MLX_LM: {"llama"}})
        assert [registry.supports(Backend.MLX_LM, "llama") for _ in range(2)] == [True, True]
        assert [registry.supports(Backend.MLX_LM, "other") for _ in range(2)] == [False, False]
