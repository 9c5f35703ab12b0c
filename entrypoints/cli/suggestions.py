"""Did-you-mean: the commands, flags and values that are closest to what was typed."""

from collections.abc import Iterable, Mapping

MEANT: Mapping[str, str] = {
    "ask": "run",
    "chat": "run",
    "check": "health",
    "copy": "clone",
    "cp": "clone",
    "del": "rm",
    "delete": "rm",
    "doctor": "health",
    "download": "pull",
    "find": "search",
    "generate": "run",
    "get": "pull",
    "info": "show",
    "inspect": "show",
    "install": "pull",
    "models": "list",
    "publish": "push",
    "quantize": "convert",
    "start": "serve",
    "uninstall": "rm",
    "upload": "push",
    "verify": "health",
}
"""Words that other programs use, with the command that does the same here."""

FLAGS_MEANT: Mapping[str, str] = {
    "--num-predict": "--max-tokens",
    "--schema": "--json-schema",
    "--stats": "--verbose",
    "--think": "--thinking",
    "-n": "--max-tokens",
    "-t": "--temperature",
}
"""Flags that other programs use, with the flag that is closest to it here."""

AT_MOST = 3
NEARLY = 0.12
"""A word is suggested beside the closest one when its likeness, from 0 to 1, is smaller by less than this."""


def closest(typed: str, known: Iterable[str], meant: Mapping[str, str] | None = None) -> list[str]:
    """Return the known words that begin with a typed one, else those that are close to it; at most three.

    Args:
        typed: What the user typed.
        known: The words that exist.
        meant: Words that mean a known one and are not spelled alike.
    """
    import difflib  # noqa: PLC0415 - needed on failure only, and commands start faster without it

    word = typed.lower()
    names = {name.lower(): name for name in known}
    synonym = (meant or {}).get(word)
    if synonym in names:
        return [names[synonym]]
    begun = [names[name] for name in names if len(word.strip("-")) > 1 and name.startswith(word)]
    if begun:
        return begun[:AT_MOST]
    found = difflib.get_close_matches(word, names, AT_MOST)
    likeness = {name: difflib.SequenceMatcher(None, name, word).ratio() for name in found}
    return [names[name] for name in found if likeness[name] > likeness[found[0]] - NEARLY]


def did_you_mean(candidates: Iterable[str]) -> str:
    """Return the question that names the candidates, such as ``Did you mean a or b?``; empty without any."""
    joined = " or ".join(candidates)
    return f"Did you mean {joined}?" if joined else ""
