"""What a model's own generation_config asks for."""

from collections.abc import Mapping
from typing import Any

from mlxk.domain.errors import MlxkError
from mlxk.domain.generation import GenerationSettings


def generation_defaults(config: Mapping[str, Any]) -> GenerationSettings:
    """Take sampling settings out of a generation_config; values that are no valid numbers are left out."""
    greedy = config.get("do_sample") is False
    fields: dict[str, Any] = {
        "temperature": 0.0 if greedy else config.get("temperature"),
        "top_p": config.get("top_p"),
        "top_k": config.get("top_k"),
        "min_p": config.get("min_p"),
        "repetition_penalty": config.get("repetition_penalty"),
    }
    return GenerationSettings(**{name: value for name, value in fields.items() if _valid(name, value)})


def _valid(name: str, value: object) -> bool:
    wanted = int if name == "top_k" else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        return False
    try:
        GenerationSettings(**{name: value}).validate()  # type: ignore[arg-type]
    except MlxkError:
        return False
    return True
