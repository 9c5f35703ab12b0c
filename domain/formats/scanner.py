"""Scanning streamed text for fixed strings across the borders of its chunks; stop sequences."""

import functools
from collections import deque
from collections.abc import Iterable

import attrs


@attrs.frozen
class ScannedText:
    """A part of the scanned text, never empty."""

    text: str
    marker: bool = False
    """Whether this part is exactly one of the markers."""


@attrs.define
class _Node:
    """A prefix of a marker."""

    depth: int
    """Its length, characters."""
    children: dict[str, "_Node"] = attrs.field(factory=dict)
    shorter: "_Node | None" = None
    """The longest proper suffix of this prefix that is a prefix itself."""
    match: int = 0
    """Length of the longest marker this prefix ends with; 0 when there is none."""


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
    """Cuts a stream of text at its markers.

    The parts, joined, are the text. A marker is found at its earliest start; of two that start at the same place the
    shorter one is found. Text is held back only while it could still belong to a marker, or while a marker that
    starts further left could still be found. The work is linear in the text as long as no marker occurs inside
    another one; for a single match it always is.

    Args:
        markers: Non-empty strings; none at all means that everything is plain text.
    """

    def __init__(self, markers: Iterable[str]) -> None:
        self._root = _automaton(frozenset(markers))
        self._node = self._root
        self._held = ""
        self._scanned = 0
        """How many characters of the buffered text the automaton has scanned."""
        self._found: tuple[int, int] | None = None
        """Start and end, within the buffered text, of a marker that one further left may still precede."""

    def feed(self, text: str) -> list[ScannedText]:
        """Take the next chunk of text, which may be empty, and return the parts that are certain so far."""
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
            while self._advance():
                self._cut(chunks)
        self._release(chunks, len(self._held))
        self._node, self._scanned = self._root, 0
        return chunks

    def _advance(self) -> bool:
        """Scan until a marker is certain (True) or the buffered text is exhausted (False)."""
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
        """Release the text up to the marker that was found, and the marker; scan anew behind it."""
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
    """Forwards text until a stop string begins.

    No character of a stop string is ever returned; text is held back only while it could still be the beginning of
    one. The work is linear in the text, whatever the stop strings.

    Args:
        stops: Non-empty strings; none at all means that nothing stops.
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
        """Take the next chunk of text.

        Args:
            text: Any length, also empty.

        Returns:
            The text that is certainly part of the answer, and whether a stop was found.
        """
        if self.stopped:
            return "", True
        return self._passed(self._scanner.feed(text)), self.stopped

    def flush(self) -> str:
        """Return the buffered remainder, after the end of the text.

        A stop that waited for one starting further left is decided here: read ``stopped`` afterwards.
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
