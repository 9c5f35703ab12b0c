"""Embedding models and the token ids of their inputs: prefixes, special tokens, and the context window."""

import re
import threading
from collections.abc import Mapping
from typing import Any

import attrs
from transformers import PreTrainedTokenizerBase

from mlxk.domain.embedding import EmbeddingRequest, EmbeddingSettings, Input, InputKind, TokenIds, Truncation
from mlxk.domain.errors import Advice, CapabilityError, ContextLengthError, Remedy, ValidationError
from mlxk.domain.models.model import ModelHandle

_INSTRUCTED = re.compile(r"Instruct: (.*)\nQuery:( ?)", re.DOTALL)
_DEFAULT_TASK = "Given a web search query, retrieve relevant passages that answer the query"
_REPRESENT = "Represent this sentence for searching relevant passages: "


@attrs.frozen
class Prompts:
    """The prefixes of one model's inputs."""

    query: str = ""
    document: str = ""

    def prefix(self, settings: EmbeddingSettings) -> str:
        """Return the prefix of each text.

        Raises:
            CapabilityError: The model takes no instruction, and one is given.
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
        name: Its name, which tells the family where nothing else does.
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


@attrs.frozen
class EncodedInputs:
    """The tokens of a request's inputs."""

    tokens: tuple[TokenIds, ...]
    """Of each input, special tokens included."""
    truncations: tuple[Truncation, ...]
    """Of the inputs that were longer than the window."""


class TextEncoder:
    """Tokenizes inputs.

    Args:
        tokenizer: Of Hugging Face.
        prompts: The model's prefixes.
        window: Size of the context window, tokens.
        vocabulary: Size of the vocabulary.
        ends_with: The required last token; None without one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        window: int,
        vocabulary: int,
        ends_with: int | None = None,
    ) -> None:
        self.window = window
        self.padding = int(tokenizer.pad_token_id or 0)
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._before, self._after = self._frame()
        if ends_with is not None and not self._after:
            self._after = (ends_with,)

    def encode(self, request: EmbeddingRequest) -> EncodedInputs:
        """Return the tokens of every input, and which inputs were truncated.

        Raises:
            ValidationError: A given token is not in the vocabulary.
            ContextLengthError: An input is longer than the window, and truncation is off.
            CapabilityError: The model takes no instruction, and one is given.
        """
        prefix = self._prompts.prefix(request.settings)
        with self._lock:
            plain = [self._plain(each, prefix, index) for index, each in enumerate(request.inputs)]
        frame = len(self._before) + len(self._after)
        room = self.window - frame
        if not request.settings.truncate:
            self._require_room(plain, room)
        return EncodedInputs(
            tuple((*self._before, *tokens[:room], *self._after) for tokens in plain),
            tuple(
                Truncation(index, len(tokens) + frame, self.window)
                for index, tokens in enumerate(plain)
                if len(tokens) > room
            ),
        )

    def _plain(self, text: Input, prefix: str, index: int) -> TokenIds:
        if isinstance(text, str):
            return self._tokens(prefix + text)
        wrong = next((token for token in text if not 0 <= token < self._vocabulary), None)
        if wrong is not None:
            raise ValidationError.in_field(
                f"input[{index}]",
                f"{wrong} is none of this model's {self._vocabulary} tokens",
                hint="Tokens are the model's own; send the text instead.",
            )
        before, after = len(self._before), len(self._after)
        framed = (
            text[:before] == self._before and text[len(text) - after :] == self._after and len(text) >= before + after
        )
        return text[before : len(text) - after] if framed else text

    def _tokens(self, text: str, special: bool = False) -> TokenIds:
        found = self._tokenizer(text, add_special_tokens=special, truncation=False, padding=False, verbose=False)
        return tuple(found["input_ids"])

    def _require_room(self, plain: list[TokenIds], room: int) -> None:
        index, longest = max(enumerate(map(len, plain)), key=lambda each: each[1])
        if longest > room:
            total = longest + len(self._before) + len(self._after)
            raise ContextLengthError(
                f"input[{index}] has {total} tokens; the model reads {self.window}.",
                hint=Advice(Remedy.TRUNCATE_INPUT),
                detail={"prompt_tokens": total, "context_length": self.window, "index": index},
            )

    def _frame(self) -> tuple[TokenIds, TokenIds]:
        """Return the special tokens before and after every text."""
        plain, framed = self._tokens("a"), self._tokens("a", special=True)
        for start in range(len(framed) - len(plain) + 1):
            if framed[start : start + len(plain)] == plain:
                return framed[:start], framed[start + len(plain) :]
        return (), ()


@attrs.frozen(eq=False)
class EmbeddingModel:
    """A loaded embedding model. The network is used on the owner thread only, everything else on any thread."""

    handle: ModelHandle
    weight_bytes: int
    network: Any
    encoder: TextEncoder
    pooling: tuple[str, ...] | None
    """How the vectors of tokens become one, by ``pooling.MODES``; None where the network does it."""
    shortenable: bool
    """Whether a prefix of a vector is a valid vector (Matryoshka training)."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.handle.name
