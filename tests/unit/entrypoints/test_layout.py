"""Tables of text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.entrypoints.cli.render.formatting import NARROWEST, table


def test_columns_are_aligned_and_lines_end_without_blanks() -> None:
    assert table(["Name", "Size"], [["demo", "2MB"], ["a", "10GB"]]) == (
        "Name | Size\n-----+-----\ndemo | 2MB\na    | 10GB\n"
    )


def test_without_rows_there_is_a_header_and_a_rule() -> None:
    assert table(["Name", "Size"], []) == "Name | Size\n-----+-----\n"


def test_the_last_column_wraps() -> None:
    text = table(["A", "Reason"], [["x", "one two three four five six seven"]])
    assert max(len(line) for line in text.splitlines()) <= len("A | ") + 26


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_table_fits_its_terminal(width: int) -> None:
    rows = [["mlx-community/A-Very-Long-Model-Name-Instruct-4bit-DWQ", "abcdef0", "2.1GB", "healthy"]]
    text = table(["Name", "Hash", "Size", "Health"], rows, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "".join(line.split(" | ")[0].strip() for line in text.splitlines()[2:]) == rows[0][0]


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("org/model-4bit", 14, ["org/model-4bit"]),
        ("org/model-4bit", 12, ["org/model-", "4bit"]),
        ("organisation/model", 14, ["organisation/", "model"]),
        ("organisation/modelwithoutend", 14, ["organisation/", "modelwithouten", "d"]),
        ("organisation/model", 12, ["organisation", "/model"]),
        ("two words/of text", 12, ["two words/of", "text"]),
    ],
)
def test_a_long_name_breaks_after_its_owner_or_after_hyphens(name: str, width: int, lines: list[str]) -> None:
    text = table(["A", "Name"], [["x", name]], last=width)
    assert [line.partition(" | ")[2] for line in text.splitlines()[2:]] == lines


@given(
    st.lists(
        st.lists(st.text(max_size=60).map(lambda text: " ".join(text.split())), min_size=3, max_size=3), max_size=5
    ),
    st.one_of(st.none(), st.integers(min_value=1, max_value=200)),
)
def test_no_table_is_ever_refused(rows: list[list[str]], width: int | None) -> None:
    lines = table(["One", "Two", "Three"], rows, width).splitlines()
    assert len(lines) >= 2 + len(rows) or any("\n" in cell for row in rows for cell in row)
    assert NARROWEST > 0
