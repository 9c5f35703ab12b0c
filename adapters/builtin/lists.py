"""Lists shipped as package data: recommended models, and names of models in other registries."""

import json
import os
from typing import Any

from mlxk.domain.hub import Fact, ModelPair, Purpose, Recommendations, RecommendedModel

_HERE = os.path.dirname(os.path.abspath(__file__))


def recommendations() -> Recommendations:
    """Return the recommended models and searches."""
    with open(os.path.join(_HERE, "recommended.json"), encoding="utf-8") as file:
        document = json.load(file)
    return Recommendations(
        models=tuple(map(_recommended, document["models"])),
        searches={Purpose(name): terms for name, terms in document["searches"].items()},
    )


def model_pairs() -> tuple[ModelPair, ...]:
    """Return pairs of a model's names on the hub and in Ollama's registry."""
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
