"""What is shipped as package data: models, one directory each below ``models``, and lists of others."""

import json
import os
from typing import Any

from mlxk.application.ports.model_cache import ModelSource
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.search import Fact, ModelPair, Purpose, Recommendations, RecommendedModel

# importlib.resources costs more than finding the model; package data is always installed as plain files here.
_HERE = os.path.dirname(os.path.abspath(__file__))
_DIRECTORY = os.path.join(_HERE, "models")


class PackagedModelSource(ModelSource):
    """The built-in models, in a directory beside this module.

    Args:
        directory: Where they are; only tests need another one.
    """

    def __init__(self, directory: str = _DIRECTORY) -> None:
        self._directory = directory

    def names(self) -> tuple[str, ...]:
        try:
            with os.scandir(self._directory) as entries:
                return tuple(sorted(entry.name for entry in entries if self.find(entry.name)))
        except OSError:
            return ()

    def find(self, name: str) -> ModelHandle | None:
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            return None
        directory = f"{self._directory}/{name}"
        return ModelHandle(name, directory, Origin.BUILT_IN) if os.path.isfile(f"{directory}/config.json") else None


def recommendations() -> Recommendations:
    """Return the list of models to begin with."""
    with open(os.path.join(_HERE, "recommended.json"), encoding="utf-8") as file:
        document = json.load(file)
    return Recommendations(
        models=tuple(map(_recommended, document["models"])),
        searches={Purpose(name): terms for name, terms in document["searches"].items()},
    )


def model_pairs() -> tuple[ModelPair, ...]:
    """Return models of the hub with their names in Ollama's registry."""
    with open(os.path.join(_HERE, "model_pairs.json"), encoding="utf-8") as file:
        return tuple(ModelPair(entry["hub"], entry["ollama"]) for entry in json.load(file))


def _recommended(entry: dict[str, Any]) -> RecommendedModel:
    return RecommendedModel(
        name=entry["model"],
        purpose=Purpose(entry["purpose"]),
        why=entry["why"],
        bits=entry["bits"],
        group_size=entry["group_size"],
        parameters=_fact(entry["parameters"]),
        stated_bytes=_fact(entry["weights_bytes"]),
        context_length=_fact(entry["context_length"]),
        license=_fact(entry["license"]),
    )


def _fact(entry: dict[str, Any] | None) -> Fact[Any] | None:
    return None if entry is None else Fact(**entry)
