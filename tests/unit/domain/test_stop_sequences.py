"""Stop sequences against a string oracle."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk.domain.formats.scanner import StopSequences

_CHARS = "ab😀"
_texts = st.text(alphabet=_CHARS, max_size=40)
_stops = st.lists(st.text(alphabet=_CHARS, min_size=1, max_size=6), max_size=4)


@st.composite
def _pieces(draw: st.DrawFn) -> list[str]:
    """One text, cut anywhere, empty pieces included."""
    text = draw(_texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[low:high] for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _cut(text: str, stops: list[str]) -> tuple[str, bool]:
    starts = [start for start in (text.find(stop) for stop in stops) if start >= 0]
    return (text[: min(starts)], True) if starts else (text, False)


@settings(max_examples=1000, deadline=None)
@given(_pieces(), _stops)
def test_a_stream_is_the_whole_text_cut_at_the_earliest_stop(pieces: list[str], stops: list[str]) -> None:
    stream = StopSequences(stops)
    passed = "".join(stream.feed(piece)[0] for piece in pieces) + stream.flush()
    assert (passed, stream.stopped) == _cut("".join(pieces), stops)


@settings(max_examples=1000, deadline=None)
@given(_pieces(), _stops)
def test_nothing_leaks_and_nothing_is_held_without_need(pieces: list[str], stops: list[str]) -> None:
    stream, seen, passed = StopSequences(stops), "", ""
    for piece in pieces:
        seen += piece
        text, stopped = stream.feed(piece)
        passed += text
        certain, found = _cut(seen, stops)
        starts = range(len(certain) + 1)
        pending = [start for start in starts if any(stop.startswith(seen[start:]) for stop in stops if seen[start:])]
        waiting = [start for start in pending if start < len(certain)] if found else pending
        assert stopped == (found and not waiting)
        assert passed == (seen[: min(waiting)] if waiting else certain)


def test_a_stop_across_pieces_does_not_leak() -> None:
    stream = StopSequences(["\nUser:"])
    assert [stream.feed(piece) for piece in ("Yes.\nUs", "", "e", "r", ":", " more")] == [
        ("Yes.", False),
        ("", False),
        ("", False),
        ("", False),
        ("", True),
        ("", True),
    ]
    assert stream.flush() == ""


def test_a_beginning_that_leads_nowhere_is_returned() -> None:
    stream = StopSequences(["\nUser:"])
    assert stream.feed("one\nUs")[0] + stream.feed("eful")[0] + stream.flush() == "one\nUseful"
    assert StopSequences(["END"]).feed("E") == ("", False)


def test_of_two_stops_the_one_that_starts_first_wins() -> None:
    stream = StopSequences(["bc", "abcd"])
    assert stream.feed("xabc") == ("x", False)
    assert stream.feed("d") == ("", True)
    other = StopSequences(["bc", "abcd"])
    assert other.feed("xabce") == ("xa", True)


def test_a_waiting_stop_is_decided_at_the_end() -> None:
    stream = StopSequences(["bc", "abcd"])
    assert stream.feed("xabc") == ("x", False)
    assert (stream.flush(), stream.stopped) == ("a", True)


def test_without_stops_everything_passes_at_once() -> None:
    stream = StopSequences([])
    assert stream.feed("abc") == ("abc", False)
    assert stream.flush() == ""


def test_the_work_is_linear_for_hostile_stops() -> None:
    stops = ["a" * 2000 + "b", "aab"]
    seconds = []
    for size in (20_000, 160_000):
        stream, start = StopSequences(stops), time.process_time()
        for _ in range(size // 4):
            stream.feed("aaaa")
        seconds.append(time.process_time() - start)
    assert seconds[1] < 24 * max(seconds[0], 0.005)
