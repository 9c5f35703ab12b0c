"""How long models stay in memory, and times: as Ollama's API writes them."""

import datetime
import math
import re

KeepAlive = float | str | None
"""Seconds, or a duration such as ``1h30m``; negative for ever, 0 until the end of the response, None says nothing."""

FOREVER = datetime.timedelta(microseconds=(2**63 - 1) // 1000)
"""The time until a model that stays in memory is unloaded: the longest duration of Ollama."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"([+-]?)((?:{_PART.pattern})+)")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")

_LONGEST_CHARACTERS = 64


def keep_alive_seconds(value: KeepAlive) -> float | None:
    """Return how long an idle model stays in memory, seconds: infinity for ever; None when nothing is said.

    Raises:
        ValueError: It is no duration.
    """
    if value is None:
        return None
    seconds = _parsed(value) if isinstance(value, str) else float(value)
    return seconds if 0 <= seconds <= FOREVER.total_seconds() else math.inf


def _parsed(text: str) -> float:
    text = text.strip()
    if len(text) <= _LONGEST_CHARACTERS:
        if _NUMBER.fullmatch(text):
            return float(text)
        if found := _DURATION.fullmatch(text):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(found[2]))
            return -seconds if found[1] == "-" else seconds
    raise ValueError("no duration")


def timestamp(moment: datetime.datetime) -> str:
    """Return a moment in UTC as RFC 3339 writes it, to the microsecond: some clients read no more digits."""
    text = moment.astimezone(datetime.UTC).isoformat(timespec="microseconds")
    return text.removesuffix("+00:00") + "Z"


def nanoseconds(seconds: float) -> int:
    """Return a duration in nanoseconds, at least one, since clients divide by it."""
    return max(1, round(seconds * 1e9))
