"""Text from strangers on a terminal."""

import io
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.errors import ValidationError
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.render.formatting import printable, table

HOSTILE = "\x1b[31mred\nHealth: healthy\x07\x9b\u202e"
SHOWN = r"\x1b[31mred\nHealth: healthy\x07\x9b\u202e"


@given(st.text())
def test_no_control_character_but_a_tab_is_left(text: str) -> None:
    assert {each for each in printable(text) if unicodedata.category(each) in {"Cc", "Zl", "Zp"}} <= {"\t"}


def test_no_character_is_left_that_changes_the_direction_of_text() -> None:
    kinds = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    turning = [character for character in map(chr, range(0x110000)) if unicodedata.bidirectional(character) in kinds]
    turning += map(unicodedata.lookup, ("LEFT-TO-RIGHT MARK", "RIGHT-TO-LEFT MARK", "ARABIC LETTER MARK"))
    assert printable("".join(turning)).isascii()


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_what_only_stands_there_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_character_that_acts_is_shown_by_its_number() -> None:
    assert printable(HOSTILE) == SHOWN


def test_a_cell_cannot_break_out_of_its_table() -> None:
    shown = table(["Name", "Type"], [[HOSTILE, "chat"]])
    assert SHOWN in shown
    assert len(shown.splitlines()) == 3


def test_a_failure_shows_what_its_texts_would_do() -> None:
    stderr = io.StringIO()
    Output(as_json=False, color=False, stderr=stderr).failure(
        "show", ValidationError(HOSTILE, hint=HOSTILE, matches=(HOSTILE,))
    )
    assert stderr.getvalue() == f"show: Error: {SHOWN}\n  {SHOWN}\n{SHOWN}\n"


def test_data_is_delivered_as_it_is() -> None:
    stdout = io.StringIO()
    Output(as_json=False, color=False, stdout=stdout).text(HOSTILE)
    assert stdout.getvalue() == HOSTILE


def test_a_note_may_have_several_lines() -> None:
    stderr = io.StringIO()
    Output(as_json=False, color=False, stderr=stderr).note("one\n\x1b[2J")
    assert stderr.getvalue() == "one\n\\x1b[2J\n"
