"""The marker scanner against splitting the whole text at once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk.domain.formats.scanner import MarkerScanner, ScannedText

_CHARS = "<a/>"


def _split(text: str, markers: list[str]) -> list[ScannedText]:
    """Split the whole text: the earliest start first, the shortest of those."""
    pieces: list[ScannedText] = []
    while text:
        hits = [(text.find(marker), len(marker)) for marker in markers if marker in text]
        start, length = min(hits, default=(len(text), 0))
        pieces += [ScannedText(text[:start])] if start else []
        pieces += [ScannedText(text[start : start + length], marker=True)] if length else []
        text = text[start + length :]
    return pieces


def _joined(pieces: list[ScannedText]) -> list[ScannedText]:
    joined: list[ScannedText] = []
    for piece in pieces:
        if joined and not piece.marker and not joined[-1].marker:
            joined[-1] = ScannedText(joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text(alphabet=_CHARS, max_size=6), max_size=10),
    st.lists(st.text(alphabet=_CHARS, min_size=1, max_size=5), max_size=4),
)
def test_pieces_are_those_of_the_whole_text(chunks: list[str], markers: list[str]) -> None:
    scanner = MarkerScanner(markers)
    pieces = [piece for chunk in chunks for piece in scanner.feed(chunk)] + scanner.flush()
    assert all(piece.text for piece in pieces)
    assert _joined(pieces) == _split("".join(chunks), markers)


def test_markers_inside_of_one_that_is_never_completed_are_found_at_the_end() -> None:
    scanner = MarkerScanner(["<a/>", "a", "/"])
    assert scanner.feed("<a/") == []
    assert scanner.flush() == [ScannedText("<"), ScannedText("a", marker=True), ScannedText("/", marker=True)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet=_CHARS, max_size=6), max_size=6))
def test_after_a_flush_the_scanner_starts_anew(chunks: list[str]) -> None:
    scanner = MarkerScanner(["<a>", "</a>"])
    first = [piece for chunk in chunks for piece in scanner.feed(chunk)] + scanner.flush()
    second = [piece for chunk in chunks for piece in scanner.feed(chunk)] + scanner.flush()
    assert first == second
