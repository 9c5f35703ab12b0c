"""The wiring: every provider can be called, and what it returns implements its port."""

import importlib
import inspect
import pkgutil
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import providers

import mlxk.application.use_cases
from mlxk.entrypoints.container import Adapters, UseCases, build
from mlxk.entrypoints.settings import Settings, read_settings

SETTINGS = read_settings({"HOME": "/nowhere"})

SOURCES = {"built_in_models": "ModelSource", "workspaces": "WorkspaceStore"}
SOURCES |= dict.fromkeys(("media_folders", "remote_media"), "MediaSource")
"""Adapters that are not called by the name of their port."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return the settings of a machine with nothing on it."""
    return read_settings({"HOME": str(tmp_path)})


def provided(container: Adapters | UseCases) -> dict[str, Any]:
    """Return the providers of a container, by name."""
    return {name: provider for name, provider in vars(container).items() if isinstance(provider, providers.Provider)}


@pytest.mark.parametrize("name", provided(build(SETTINGS).adapters))
def test_every_adapter_can_be_built_and_meets_its_port(name: str, settings: Settings) -> None:
    adapter = getattr(build(settings).adapters, name)()
    port = "".join(word.capitalize() for word in name.split("_"))
    ports = [kind.__name__ for kind in type(adapter).__mro__ if kind.__module__.startswith("mlxk.application.ports.")]
    assert SOURCES.get(name, port) in ports, (name, ports)


@pytest.mark.parametrize("name", provided(build(SETTINGS).use_cases))
def test_every_use_case_can_be_built(name: str, settings: Settings) -> None:
    use_case = getattr(build(settings).use_cases, name)()
    assert type(use_case).__name__ == "".join(word.capitalize() for word in name.split("_"))
    assert callable(use_case)


def test_every_use_case_is_wired(settings: Settings) -> None:
    use_cases = {type(getattr(build(settings).use_cases, name)()) for name in provided(build(SETTINGS).use_cases)}
    defined = {
        member
        for info in pkgutil.iter_modules(mlxk.application.use_cases.__path__, "mlxk.application.use_cases.")
        for _, member in inspect.getmembers(importlib.import_module(info.name), inspect.isclass)
        if member.__module__ == info.name and "__call__" in vars(member)
    }
    assert defined == use_cases


def test_an_adapter_is_built_once_even_when_asked_for_by_many_threads_at_once(settings: Settings) -> None:
    adapters = build(settings).adapters
    start, built = threading.Barrier(8), []

    def ask() -> None:
        start.wait()
        built.append(adapters.model_cache())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 8
    assert len(set(map(id, built))) == 1


def test_every_adapter_but_the_doubles_is_named_in_the_container_or_by_another_of_its_folder(root: Path) -> None:
    wiring = (root / "entrypoints" / "adapter_container.py").read_text(encoding="utf-8")
    named = set(re.findall(r"mlxk\.adapters\.([a-z_]+)", wiring))
    folders = {path.parent.name for path in (root / "adapters").glob("*/__init__.py")}
    modules = {path.stem for path in (root / "adapters").glob("*.py")} - {"__init__"}
    assert (folders | modules) - named == set()
