"""What a model's own generation_config asks for, and what of it cannot be used."""

from collections.abc import Mapping
from typing import Any

from mlxk.domain.errors import MlxkError
from mlxk.domain.generation import GenerationSettings

_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def generation_defaults(config: Mapping[str, Any]) -> GenerationSettings:
    """Take sampling settings out of a generation_config; values that are no valid numbers are left out."""
    stated = _stated(config)
    return GenerationSettings(**{name: value for name, value in stated.items() if _valid(name, value)})


def unusable_settings(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the sampling settings that are left out although they are stated."""
    return tuple(name for name, value in _stated(config).items() if not _valid(name, value))


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    stated = {name: config[name] for name in _SETTINGS if config.get(name) is not None}
    return stated | {"temperature": 0.0} if config.get("do_sample") is False else stated


def _valid(name: str, value: object) -> bool:
    wanted = int if name == "top_k" else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        return False
    try:
        GenerationSettings(**{name: value}).validate()  # type: ignore[arg-type]
    except MlxkError:
        return False
    return True
