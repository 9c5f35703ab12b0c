"""Docstrings of methods: their own, or that of the port or base class they implement. The linter checks all others."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import mlxk

DOCUMENTED = (property, classmethod, staticmethod, functools.cached_property)


def modules() -> Iterator[ModuleType]:
    """Import every module of the product."""
    for info in pkgutil.walk_packages(mlxk.__path__, "mlxk."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def methods_without_docstring(module: ModuleType) -> Iterator[str]:
    """Yield the public methods of a module's public classes that neither have nor inherit a docstring."""
    for kind in vars(module).values():
        if not inspect.isclass(kind) or kind.__module__ != module.__name__ or kind.__name__.startswith("_"):
            continue
        for name, member in vars(kind).items():
            if name.startswith("_") or not (inspect.isfunction(member) or isinstance(member, DOCUMENTED)):
                continue
            if not any(getattr(vars(base).get(name), "__doc__", None) for base in kind.__mro__):
                yield f"{module.__name__}.{kind.__name__}.{name}"


def test_every_public_method_has_a_docstring_or_implements_one_that_has() -> None:
    assert [name for module in modules() for name in methods_without_docstring(module)] == []
