"""Scanner of streamed text for fixed strings, also across chunk boundaries, and stop sequences."""

import functools
from collections import deque
from collections.abc import Iterable

import attrs


@attrs.frozen
class ScannedText:
    """A piece of the scanned text, never empty."""

    text: str
    marker: bool = False
    """Whether this piece is exactly one of the markers."""


@attrs.define
class _Node:
    """A state of the Aho-Corasick automaton: a prefix of a marker."""

    depth: int
    """Its length, characters."""
    children: dict[str, "_Node"] = attrs.field(factory=dict)
    shorter: "_Node | None" = None
    """The failure link: the longest proper suffix of this prefix that is itself a prefix of a marker."""
    match: int = 0
    """Length of the longest marker that this prefix ends with; 0 for none."""


@functools.lru_cache(maxsize=64)
def _automaton(markers: frozenset[str]) -> _Node:
    root = _Node(0)
    for marker in markers:
        node = root
        for char in marker:
            node = node.children.setdefault(char, _Node(node.depth + 1))
        node.match = len(marker)
    queue = deque([root])
    while queue:
        parent = queue.popleft()
        for char, node in parent.children.items():
            node.shorter = root if parent is root else _step(root, parent.shorter or root, char)
            node.match = node.match or node.shorter.match
            queue.append(node)
    return root


def _step(root: _Node, node: _Node, char: str) -> _Node:
    while char not in node.children and node.shorter is not None:
        node = node.shorter
    return node.children.get(char, root)


class MarkerScanner:
    """Splits streamed text at markers.

    The pieces, joined, are the text. The leftmost marker is found; of two that start at the same place, the shorter
    one. Text is held back only while it may still belong to a marker, or while a marker that starts further left may
    still be found. The time is linear in the text unless a marker contains another one; up to the first match it
    always is.

    Args:
        markers: Non-empty strings; none at all means that everything is plain text.
    """

    def __init__(self, markers: Iterable[str]) -> None:
        self._root = _automaton(frozenset(markers))
        self._node = self._root
        self._held = ""
        self._scanned = 0
        """Number of characters of the buffered text that the automaton has scanned."""
        self._found: tuple[int, int] | None = None
        """Start and end, in the buffered text, of a match; one that starts further left may still replace it."""

    def feed(self, text: str) -> list[ScannedText]:
        """Scan the next chunk of text, which may be empty, and return the pieces that are certain so far."""
        if self._node is self._root and not self._held and self._root.children.keys().isdisjoint(text):
            return [ScannedText(text)] if text else []
        self._held += text
        chunks: list[ScannedText] = []
        while self._advance():
            self._cut(chunks)
        self._release(chunks, len(self._held) - self._node.depth)
        return chunks

    def flush(self) -> list[ScannedText]:
        """Return the buffered remainder, after the end of the text, and reset the scanner."""
        chunks: list[ScannedText] = []
        while self._found is not None:
            self._cut(chunks)
            self._advance()
        self._release(chunks, len(self._held))
        self._node, self._scanned = self._root, 0
        return chunks

    def _advance(self) -> bool:
        """Scan until a match is certain (True) or the buffered text is exhausted (False)."""
        root, node, held = self._root, self._node, self._held
        position, found = self._scanned, self._found
        while position < len(held):
            char = held[position]
            while char not in node.children and node.shorter is not None:
                node = node.shorter
            node = node.children.get(char, root)
            position += 1
            if node.match and (found is None or position - node.match < found[0]):
                found = (position - node.match, position)
            if found is not None and position - node.depth >= found[0]:
                break
        self._node, self._scanned, self._found = node, position, found
        return found is not None and position - node.depth >= found[0]

    def _cut(self, chunks: list[ScannedText]) -> None:
        """Release the text before the match, and the marker; restart the automaton after it."""
        if self._found is None:
            return
        start, end = self._found
        self._release(chunks, start)
        length = end - start
        chunks.append(ScannedText(self._held[:length], marker=True))
        self._held = self._held[length:]
        self._node, self._scanned, self._found = self._root, 0, None

    def _release(self, chunks: list[ScannedText], count: int) -> None:
        if count:
            chunks.append(ScannedText(self._held[:count]))
            self._held = self._held[count:]
            self._scanned -= count
            if self._found is not None:
                self._found = (self._found[0] - count, self._found[1] - count)


class StopSequences:
    """Passes text on until a stop string begins.

    No character of a stop string is ever returned; text is held back only while it may be the beginning of one. The
    time is linear in the text.

    Args:
        stops: Non-empty strings; without any, all text passes.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._scanner = MarkerScanner(stops)
        self.found: str | None = None
        """The stop string that was found; everything after it is ignored."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.found is not None

    def feed(self, text: str) -> tuple[str, bool]:
        """Scan the next chunk of text.

        Args:
            text: Any length, also empty.

        Returns:
            The text that is certainly before any stop string, and whether a stop string was found.
        """
        if self.stopped:
            return "", True
        return self._passed(self._scanner.feed(text)), self.stopped

    def flush(self) -> str:
        """Return the buffered remainder, at the end of the text.

        Read ``stopped`` afterwards: a match that may have been replaced by one further left is decided here.
        """
        return "" if self.stopped else self._passed(self._scanner.flush())

    def _passed(self, chunks: Iterable[ScannedText]) -> str:
        passed: list[str] = []
        for chunk in chunks:
            if chunk.marker:
                self.found = chunk.text
                break
            passed.append(chunk.text)
        return "".join(passed)
