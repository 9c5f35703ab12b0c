"""The one import of dependency-injector, without what it imports on the side.

Its wiring module imports fastapi, pydantic and others when they are installed, to support injection into them; mlx-vlm
always brings them, and they would cost every command a quarter of a second of CPU time. We inject into none of them, so
they are hidden for the length of this import and are importable again afterwards.

Its providers take three names from asyncio, which they call only when a provider returns something to await. Nothing
does here, and asyncio would be a tenth of what a light command costs; so for the length of this import a module stands
in for it whose functions import asyncio when they are called.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_UNUSED = frozenset(
    {"aiohttp", "fast_depends", "fastapi", "flask", "pydantic", "pydantic_settings", "starlette", "werkzeug", "yaml"}
)
_ASYNCIO = "asyncio"
_AWAITING = ("Future", "ensure_future", "gather")


class _Hide:
    """A finder that says the unused packages are not installed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Refuse the unused packages and leave all others to the next finder."""
        if name in _UNUSED:
            raise ModuleNotFoundError(name)
        return None


def _deferred(name: str) -> Callable[..., object]:
    """Return a function of asyncio that is imported when it is called."""

    def call(*arguments: object, **options: object) -> object:
        import asyncio  # noqa: PLC0415 - only ever needed by what nothing here does

        function: Callable[..., object] = getattr(asyncio, name)
        return function(*arguments, **options)

    return call


def _stand_in() -> ModuleType:
    """Return a module with the functions of asyncio that dependency-injector names, and no other."""
    module = ModuleType(_ASYNCIO)
    for name in _AWAITING:
        setattr(module, name, _deferred(name))
    return module


_substitute = _stand_in()
sys.modules.setdefault(_ASYNCIO, _substitute)
sys.meta_path.insert(0, _Hide)
try:
    from dependency_injector import containers, providers
except ImportError:
    # A version that takes more from asyncio than was known here gets the real one.
    sys.modules.pop(_ASYNCIO, None)
    from dependency_injector import containers, providers
finally:
    sys.meta_path.remove(_Hide)
    if sys.modules.get(_ASYNCIO) is _substitute:
        del sys.modules[_ASYNCIO]

__all__ = ["containers", "providers"]
