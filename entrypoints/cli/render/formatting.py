"""Formats sizes, ages, untrusted text, and tables no wider than the terminal."""

import datetime
import re
import textwrap
from collections.abc import Sequence

from mlxk.domain.text import CONTROLS, DIRECTIONS

_UNSAFE = re.compile(rf"(?!\t)[{CONTROLS}{DIRECTIONS}]")
"""Characters that move the cursor, end a line or change the writing direction; a tab may stay."""


def printable(text: str) -> str:
    """Return text in which control and format characters are escaped."""
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, singular or plural: ``1 turn``, ``2 turns``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def decimal_size(size_bytes: int) -> str:
    """Return a size in decimal units with one place: ``660B``, ``1.4KB``, ``2.1GB``."""
    for unit, name in _UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f}{name}"
    return f"{size_bytes}B"


def age(moment: datetime.datetime, now: datetime.datetime) -> str:
    """Return how long ago something was: ``just now``, ``5m ago``, ``3h ago``, ``2d ago``, and a date after a month."""
    seconds = (now - moment).total_seconds()
    if seconds < 45:
        return "just now"
    if seconds < 45 * _MINUTE:
        return f"{max(1, round(seconds / _MINUTE))}m ago"
    if seconds < _DAY:
        return f"{max(1, round(seconds / _HOUR))}h ago"
    if seconds < 30 * _DAY:
        return f"{max(1, round(seconds / _DAY))}d ago"
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%d")


SEPARATOR = " | "

NARROWEST = 12
"""Least width of a column in a table that has to shrink."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None, last: int = 26) -> str:
    """Return rows under a header as text; see ``table_lines``."""
    return "".join(f"{each}\n" for each in table_lines(header, rows, width, last))


def table_lines(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None, last: int = 26
) -> list[str]:
    """Return the header, a rule and each row, columns aligned; a row with long cells has several lines.

    Args:
        header: One title per column.
        rows: Cells of text.
        width: Characters of the terminal; None for a file or a pipe, where only the last column wraps.
        last: Characters at which the last column wraps.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = _fitted([max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)], width, last)
    lines = [_line(header, widths), "-+-".join("-" * each for each in widths)]
    for row in rows:
        cells = [_wrapped(cell, each) for cell, each in zip(row, widths, strict=True)]
        height = max(len(cell) for cell in cells)
        lines.append(
            "\n".join(
                _line([cell[index] if index < len(cell) else "" for cell in cells], widths) for index in range(height)
            )
        )
    return lines


def _fitted(natural: list[int], width: int | None, last: int) -> list[int]:
    """Shrink the widest columns until the table fits, or no column is wider than ``NARROWEST``."""
    widths = [*natural[:-1], min(natural[-1], last)]
    room = 10**9 if width is None else width - len(SEPARATOR) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > NARROWEST:
        widest = widths.index(max(widths))
        widths[widest] = max(NARROWEST, widths[widest] - (sum(widths) - room))
    return widths


def _wrapped(cell: str, width: int) -> list[str]:
    """Wrap a cell. ``owner/name`` breaks after the slash, unless it can break after hyphens of the name."""
    if len(cell) <= width:
        return [cell]
    lines = textwrap.wrap(cell, width) or [""]
    owner, slash, name = cell.partition("/")
    breaks_a_word = len(lines[0]) <= len(owner) or not all(line.endswith("-") for line in lines[:-1])
    if slash and " " not in cell and breaks_a_word and len(owner) < width:
        return [owner + slash, *textwrap.wrap(name, width)]
    return lines


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return SEPARATOR.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
