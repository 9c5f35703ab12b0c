"""The one import of dependency-injector, without what it imports on the side.

Its wiring module imports fastapi, pydantic and others when they are installed, to support injection into them; mlx-vlm
always brings them, and they would cost every command a quarter of a second of CPU time. We inject into none of them, so
they are hidden for the length of this import and are importable again afterwards.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_UNUSED = frozenset(
    {"aiohttp", "fast_depends", "fastapi", "flask", "pydantic", "pydantic_settings", "starlette", "werkzeug", "yaml"}
)


class _Hide:
    """A finder that says the unused packages are not installed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Refuse the unused packages and leave all others to the next finder."""
        if name in _UNUSED:
            raise ModuleNotFoundError(name)
        return None


sys.meta_path.insert(0, _Hide)
try:
    from dependency_injector import containers, providers
finally:
    sys.meta_path.remove(_Hide)

__all__ = ["containers", "providers"]
