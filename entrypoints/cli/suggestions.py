"""Did-you-mean: the commands, flags and values that are closest to what was typed."""

from collections.abc import Iterable, Mapping

from mlxk.domain.text import AT_MOST, nearest

MEANT: Mapping[str, str] = {
    "agent": "launch",
    "aliases": "alias",
    "ask": "run",
    "benchmark": "bench",
    "chat": "run",
    "check": "health",
    "claude": "launch",
    "codex": "launch",
    "configure": "config",
    "copy": "clone",
    "cp": "clone",
    "create": "profile",
    "del": "rm",
    "delete": "rm",
    "diagnose": "doctor",
    "download": "pull",
    "find": "search",
    "generate": "run",
    "get": "pull",
    "info": "show",
    "inspect": "show",
    "install": "pull",
    "models": "list",
    "opencode": "launch",
    "preset": "profile",
    "publish": "push",
    "quantize": "convert",
    "set": "config",
    "settings": "config",
    "start": "serve",
    "suggest": "recommend",
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


PREFIX = "MLXK2_"
"""Of the variables that only this program reads."""

VARIABLES = frozenset(
    {
        "MLXK2_API_KEY",
        "MLXK2_AUDIO_SEGMENTS",
        "MLXK2_BLAS",
        "MLXK2_CPU_DTYPE",
        "MLXK2_ENABLE_ALPHA_FEATURES",
        "MLXK2_ENABLE_PIPES",
        "MLXK2_EXIF_METADATA",
        "MLXK2_HOST",
        "MLXK2_LOG_JSON",
        "MLXK2_LOG_LEVEL",
        "MLXK2_MAX_TOKENS",
        "MLXK2_PORT",
        "MLXK2_PRELOAD_MODEL",
        "MLXK2_RELOAD",
        "MLXK2_USE_SERVER",
        "MLXK2_VISION_CHUNK_SIZE",
    }
)
"""The variables with our prefix; a variable with it that is none of them is a misspelt one."""


def unknown_variables(set_variables: Iterable[str]) -> list[str]:
    """Return a note for each variable that has our prefix and no effect."""
    notes = []
    for name in sorted(set_variables):
        if name.startswith(PREFIX) and name not in VARIABLES:
            near = closest(name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in VARIABLES])
            notes.append(f"[{name} has no effect. {did_you_mean(PREFIX + each for each in near)}".rstrip() + "]")
    return notes


def closest(typed: str, known: Iterable[str], meant: Mapping[str, str] | None = None) -> list[str]:
    """Return the known words that begin with a typed one, else those that are spelled like it; at most three.

    Args:
        typed: What the user typed.
        known: The words that exist.
        meant: Words that mean a known one and are not spelled alike.
    """
    words = list(known)
    synonym = (meant or {}).get(typed.lower())
    if synonym in words:
        return [synonym]
    begun = [word for word in words if len(typed.strip("-")) > 1 and word.startswith(typed)]
    return begun[:AT_MOST] or nearest(typed, words)


def did_you_mean(candidates: Iterable[str]) -> str:
    """Return the question that names the candidates, such as ``Did you mean a or b?``; empty without any."""
    joined = " or ".join(candidates)
    return f"Did you mean {joined}?" if joined else ""
