"""Sizes, ages and untrusted text, formatted for a terminal."""

import datetime
import re

from mlxk.domain.text import CONTROLS, DIRECTIONS

_ACTING = re.compile(rf"(?!\t)[{CONTROLS}{DIRECTIONS}]")
"""Characters that move the cursor, end a line or change the writing direction; a tab may stay."""


def printable(text: str) -> str:
    """Return text in which control and format characters are escaped."""
    return _ACTING.sub(lambda match: ascii(match[0])[1:-1], text)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one: ``1 turn``, ``2 turns``."""
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
