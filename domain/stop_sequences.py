"""Stop sequences: strings that end an answer and are not part of it.

Fed with decoded text piece by piece, so a stop may lie across any number of tokens or inside one. What comes out is
exactly the whole text cut before the earliest start of any stop. Nothing here knows tokens or models.
"""

from collections.abc import Iterable

from mlxk.domain.marker_scanner import MarkerScanner


class StopSequences:
    """Passes text on until a stop string begins.

    No character of a stop string is ever returned; text is held back only while it could still turn out to be the
    beginning of one. The work is linear in the text, whatever the stop strings.

    Args:
        stops: Non-empty strings; none at all means that nothing stops.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._scanner = MarkerScanner(stops)
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop was found; everything after it is ignored."""
        return self._stopped

    def feed(self, text: str) -> tuple[str, bool]:
        """Take the next piece of text.

        Args:
            text: Any length, also empty.

        Returns:
            The text that is certainly part of the answer, and whether a stop was found.
        """
        if self._stopped:
            return "", True
        passed: list[str] = []
        for piece in self._scanner.feed(text):
            if piece.marker:
                self._stopped = True
                break
            passed.append(piece.text)
        return "".join(passed), self._stopped

    def flush(self) -> str:
        """Return what was held back, once the text has ended.

        A stop that waited for one starting further left is decided here: look at ``stopped`` afterwards.
        """
        if self._stopped:
            return ""
        passed: list[str] = []
        for piece in self._scanner.flush():
            if piece.marker:
                self._stopped = True
                break
            passed.append(piece.text)
        return "".join(passed)
