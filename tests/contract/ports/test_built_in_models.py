"""The contract of the built-in models, held by every adapter."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from doubles.built_in_models import InMemoryBuiltInModels

from mlxk.adapters.builtin.packaged import PackagedBuiltInModels
from mlxk.application.ports.built_in_models import BuiltInModels
from mlxk.domain.models.model import Origin

Build = Callable[[Iterable[str]], BuiltInModels]


@pytest.fixture(params=["packaged", "in_memory"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    def on_disk(names: Iterable[str]) -> BuiltInModels:
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text("{}")
        return PackagedBuiltInModels(str(tmp_path))

    def in_memory(names: Iterable[str]) -> BuiltInModels:
        return InMemoryBuiltInModels({name: f"/built-in/{name}" for name in names})

    return on_disk if request.param == "packaged" else in_memory


class TestBuiltInModels:
    def test_names_are_sorted(self, build: Build) -> None:
        assert build(["b", "a"]).names() == ("a", "b")
        assert build([]).find("demo") is None

    def test_a_model_is_found_by_its_exact_name(self, build: Build) -> None:
        built_in = build(["demo", "demo-vision"])
        handle = built_in.find("demo")
        assert handle is not None
        assert (handle.name, handle.origin, handle.revision) == ("demo", Origin.BUILT_IN, None)
        assert os.path.isabs(handle.directory)
        for other in ("", "dem", "Demo", "demo/", "./demo", "demo/../demo", ".", "..", "demo\0"):
            assert built_in.find(other) is None


def test_the_packaged_models_are_directories_with_a_config() -> None:
    built_in = PackagedBuiltInModels()
    for name in built_in.names():
        handle = built_in.find(name)
        assert handle is not None
        assert os.path.isfile(os.path.join(handle.directory, "config.json"))


def test_a_program_without_package_data_has_no_built_in_models(tmp_path: Path) -> None:
    assert PackagedBuiltInModels(str(tmp_path / "gone")).names() == ()
