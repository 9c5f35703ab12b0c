"""An LRU cache bounded by bytes."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """An LRU cache. Thread-safe.

    Args:
        max_bytes: Limit of the sum of the sizes; may be changed at any time, 0 caches nothing.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        """Sum of the sizes of the cached values."""
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        """Return a cached value, which becomes the most recently used one; None when it is not cached."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Hashable, value: Value, size_bytes: int) -> None:
        """Cache a value, and evict the least recently used ones as needed; a value over the limit is not cached."""
        with self._lock:
            if key not in self._entries and size_bytes <= self.max_bytes:
                self._entries[key] = value, size_bytes
                self.size_bytes += size_bytes
            while self.size_bytes > self.max_bytes:
                self.size_bytes -= self._entries.popitem(last=False)[1][1]
