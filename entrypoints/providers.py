"""How providers are made: dependency-injector without what it would import of configuration files.

A class that is named as ``MODULE:NAME`` is imported when the first instance is made, so that a command loads only what
it uses.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _WithoutConfigurationFiles:
    """Hides the libraries of dependency-injector's configuration files: ``list`` would cost a fifth more (ADR 0004)."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in {"pydantic", "pydantic_settings", "yaml"}:
            raise ModuleNotFoundError(name)
        return None


sys.meta_path.insert(0, _WithoutConfigurationFiles)
try:
    from dependency_injector import providers
finally:
    sys.meta_path.remove(_WithoutConfigurationFiles)

Factory = providers.Factory
Object = providers.Object
Provider = providers.Provider
Singleton = providers.ThreadSafeSingleton
"""A plain Singleton is built twice when two threads ask for it at once."""


def imported(path: str, *first: object) -> Callable[..., Any]:
    """Return a function that calls ``MODULE:NAME``, a class or a function; the module is imported with the first.

    Args:
        path: What is called.
        first: Arguments before those of a call.
    """
    module, name = path.split(":")
    return lambda *arguments: getattr(import_module(module), name)(*first, *arguments)
