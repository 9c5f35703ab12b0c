"""Ports: abstract Protocols, each with a double and a suite, met only by classes that say so."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import doubles
import pytest

import mlxk.adapters
import mlxk.application.ports


def modules(package: Any) -> Iterator[Any]:
    """Import every module below a package, once."""
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(info.name)


def classes(package: Any) -> dict[str, type]:
    """Return the public classes that are defined below a package, by name."""
    return {
        name: member
        for module in modules(package)
        for name, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__ and not name.startswith("_")
    }


def is_protocol(kind: type) -> bool:
    """Whether a class is a Protocol itself, not merely a subclass of one."""
    return getattr(kind, "_is_protocol", False)


PORTS = {name: kind for name, kind in classes(mlxk.application.ports).items() if is_protocol(kind)}
RESULTS = {"TextStream", "WorkspaceDraft"}
"""Protocols that a port hands out; their adapters come with the port's."""

ADDED_BY_TYPING = {"__init__", "__subclasshook__", "_no_init_or_replace_init", "_proto_hook"}
"""Methods that typing adds to a Protocol."""


@pytest.fixture(scope="module")
def adapters() -> dict[str, type]:
    """Return the classes of all adapters, by name."""
    return classes(mlxk.adapters) | classes(doubles)


@pytest.mark.parametrize("port", PORTS.values(), ids=PORTS)
def test_every_method_of_a_port_is_abstract_and_documented(port: Any) -> None:
    methods = {name: member for name, member in vars(port).items() if inspect.isfunction(member)}
    own = set(methods) - ADDED_BY_TYPING
    assert own
    assert own <= port.__abstractmethods__
    assert all(inspect.getdoc(methods[name]) for name in own)


@pytest.mark.parametrize("port", sorted(set(PORTS) - RESULTS))
def test_every_port_has_a_double(port: str, adapters: dict[str, type]) -> None:
    assert doubles_of(port, adapters) != []


@pytest.mark.parametrize("port", sorted(set(PORTS) - RESULTS))
def test_every_port_has_a_suite_that_runs_on_its_double(port: str, adapters: dict[str, type], root: Path) -> None:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", port).lower()
    suite = root / "tests" / "contract" / "ports" / f"test_{name}.py"
    assert suite.exists()
    assert any(double in suite.read_text(encoding="utf-8") for double in doubles_of(port, adapters))


@pytest.mark.parametrize("port", sorted(set(PORTS) - RESULTS))
def test_an_adapter_that_is_named_after_a_port_subclasses_it(port: str, adapters: dict[str, type]) -> None:
    named = {name: kind for name, kind in adapters.items() if name.endswith(port)}
    assert [name for name, kind in named.items() if PORTS[port] not in kind.__mro__] == []
    assert [name for name, kind in named.items() if inspect.isabstract(kind)] == []


def test_a_subclass_of_ports_is_named_after_one_of_them(adapters: dict[str, type]) -> None:
    met = {
        name: [port for port, kind in PORTS.items() if kind in adapter.__mro__] for name, adapter in adapters.items()
    }
    assert [name for name, ports in met.items() if ports and not name.endswith(tuple(ports))] == []


def doubles_of(port: str, adapters: dict[str, type]) -> list[str]:
    """Return the names of the in-memory adapters that meet a port."""
    return [
        name
        for name, kind in adapters.items()
        if PORTS[port] in kind.__mro__ and kind.__module__.startswith("doubles.")
    ]
