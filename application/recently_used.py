"""Values that are likely to be wanted again, kept within a size: the least recently used is evicted first."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """Values by key. Thread-safe.

    Args:
        max_bytes: What all of them may take; it may be changed, and nothing is kept at 0.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        """What they take."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        """Return a value, which is the last to be evicted now; None when it is not kept."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, value: Value, size_bytes: int) -> None:
        """Keep a value, and evict others as needed; one that is larger than the limit is not kept, nor any other."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = value, size_bytes
                self.size_bytes += size_bytes
            while self.size_bytes > self.max_bytes:
                self.size_bytes -= self._kept.popitem(last=False)[1][1]
