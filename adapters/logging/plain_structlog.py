"""The one import of structlog, without rich.

structlog brings a renderer for people's terminals which imports rich where it is installed; hub clients bring it. Ours
are other renderers, and rich is half the time and half the memory of importing structlog, so it is hidden from the
importing thread for the length of this import.
"""

import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _HideRich:
    """A finder that says rich is not installed, to the thread that made it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuse rich and leave all else to the next finder."""
        if name == "rich" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(name)
        return None


_finder = _HideRich()
sys.meta_path.insert(0, _finder)
try:
    import structlog
finally:
    sys.meta_path.remove(_finder)

__all__ = ["structlog"]
