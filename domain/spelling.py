"""Words that are spelled like another one."""

from collections.abc import Iterable

AT_MOST = 3
NEARLY = 0.12
"""A word stands beside the nearest one when its likeness, from 0 to 1, is smaller by less than this."""


def nearest(typed: str, known: Iterable[str]) -> list[str]:
    """Return the known words that are spelled like a typed one in any case, the nearest first; at most three."""
    import difflib  # noqa: PLC0415 - needed on failure only, and commands start faster without it

    word = typed.lower()
    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word, names, AT_MOST)
    likeness = {name: difflib.SequenceMatcher(None, name, word).ratio() for name in found}
    return [names[name] for name in found if likeness[name] > likeness[found[0]] - NEARLY]
