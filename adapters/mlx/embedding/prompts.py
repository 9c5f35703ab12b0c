"""What is put before a text so that a model knows whether it is a query or a document.

A model's own ``config_sentence_transformers.json`` says it; for families whose conversions often lack that file, it is
known here.
"""

import re
from collections.abc import Mapping

import attrs

from mlxk.domain.embedding import EmbeddingSettings, InputKind
from mlxk.domain.errors import CapabilityError

_INSTRUCTED = re.compile(r"Instruct: (.*)\nQuery:( ?)", re.DOTALL)
_DEFAULT_TASK = "Given a web search query, retrieve relevant passages that answer the query"
_REPRESENT = "Represent this sentence for searching relevant passages: "


@attrs.frozen
class Prompts:
    """The prefixes of one model."""

    query: str = ""
    document: str = ""

    def prefix(self, settings: EmbeddingSettings) -> str:
        """Return what to put before each text.

        Raises:
            CapabilityError: An instruction for a model that takes none.
        """
        if settings.kind is InputKind.DOCUMENT:
            return self.document
        if settings.instruction is None:
            return self.query
        found = _INSTRUCTED.fullmatch(self.query)
        if found is None:
            raise CapabilityError.in_field(
                "instruct", "this model takes no instruction; its queries have a fixed prefix or none"
            )
        return f"Instruct: {settings.instruction}\nQuery:{found[2]}"


def prompts_of(name: str, architecture: str, stated: Mapping[str, object]) -> Prompts:
    """Return the prefixes of a model.

    Args:
        name: Its name, which says the family where nothing else does.
        architecture: The ``model_type`` of its config.
        stated: The ``prompts`` of its ``config_sentence_transformers.json``; empty when there are none.
    """
    query = _text(stated, "query", "retrieval.query", "Retrieval-query")
    document = _text(stated, "document", "passage", "retrieval.passage", "Retrieval-document")
    if query or document:
        return Prompts(query, document)
    known = name.lower().rpartition("/")[2]
    if architecture in {"qwen3", "qwen3_embedding"}:
        return Prompts(f"Instruct: {_DEFAULT_TASK}\nQuery:")
    if re.search(r"\be5\b", known) and "instruct" in known:
        return Prompts(f"Instruct: {_DEFAULT_TASK}\nQuery: ")
    if re.search(r"\be5\b", known):
        return Prompts("query: ", "passage: ")
    if re.search(r"\bbge\b.*\ben\b|\bmxbai\b", known):
        return Prompts(_REPRESENT)
    return Prompts()


def _text(stated: Mapping[str, object], *names: str) -> str:
    found = (stated.get(name) for name in names)
    return next((text for text in found if isinstance(text, str) and text), "")
