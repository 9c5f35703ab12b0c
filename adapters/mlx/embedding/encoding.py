"""Embedding models, pooling, and the token ids of inputs: prefixes, special tokens, truncation and padding."""

import re
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mlxk.adapters.mlx.embedding.batching import Pace
from mlxk.domain.embedding import (
    EmbeddingRequest,
    EmbeddingSettings,
    ImageInput,
    Input,
    InputKind,
    TokenIds,
    Truncation,
)
from mlxk.domain.errors import Advice, CapabilityError, ContextLengthError, Remedy, ValidationError
from mlxk.domain.generation.media import DecodedImage
from mlxk.domain.models.model import ModelHandle

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Pooling modes, in the order in which the vectors of several are concatenated."""

_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Entries of older configs: one switch for each mode."""


def stated_modes(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the modes in a pooling config, known or not; ``mean`` if it has none."""
    stated = config.get("pooling_mode")
    if isinstance(stated, str):
        return (stated,)
    if isinstance(stated, list | tuple) and stated:
        return tuple(map(str, stated))
    switched = (name for key, name in _SWITCHES.items() if config.get(key))
    # An unknown switch is an unknown mode, which the caller refuses; it must not become the mean.
    unknown = (key for key, value in config.items() if key.startswith("pooling_mode_") and value is True)
    return (*switched, *(key for key in unknown if key not in _SWITCHES)) or ("mean",)


def pool(hidden: mx.array, mask: mx.array, modes: tuple[str, ...]) -> mx.array:
    """Return one vector for each text: the pooled vectors of all modes, concatenated.

    Args:
        hidden: Hidden states, shape (texts, length, dimensions).
        mask: 1 for tokens, 0 for padding, which is on the right; shape (texts, length).
        modes: Some of ``MODES``.
    """
    hidden, mask = hidden.astype(mx.float32), mask.astype(mx.float32)
    return mx.concatenate([_pooled(hidden, mask, mode) for mode in MODES if mode in modes], axis=-1)


def _pooled(hidden: mx.array, mask: mx.array, mode: str) -> mx.array:
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        last = mask.sum(axis=1).astype(mx.int32) - 1
        return mx.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    if mode == "max":
        return mx.where(mask[..., None] > 0, hidden, -mx.inf).max(axis=1)
    weights = mask * mx.arange(1, mask.shape[1] + 1) if mode == "weightedmean" else mask
    total = (hidden * weights[..., None]).sum(axis=1)
    counted = weights.sum(axis=1, keepdims=True)
    return total / (mx.sqrt(counted) if mode == "mean_sqrt_len_tokens" else counted)


_INSTRUCTED = re.compile(r"Instruct: (.*)\nQuery:( ?)", re.DOTALL)
_DEFAULT_TASK = "Given a web search query, retrieve relevant passages that answer the query"
_REPRESENT = "Represent this sentence for searching relevant passages: "


@attrs.frozen
class Prompts:
    """The prefixes of one model's inputs."""

    query: str = ""
    document: str = ""
    named: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    """All prompts in the model's files, by name."""

    def prefix(self, settings: EmbeddingSettings) -> str:
        """Return the prefix for each text of a request.

        Raises:
            CapabilityError: An instruction is given and the model takes none, or it has no prompt of the given name.
        """
        if settings.prompt_name is not None:
            return self._named(settings.prompt_name)
        if settings.kind is InputKind.DOCUMENT:
            return self.document
        if settings.instruction is None:
            return self.query
        match = _INSTRUCTED.fullmatch(self.query)
        if match is None:
            raise CapabilityError.in_field(
                "instruct", "this model takes no instruction; its queries have a fixed prefix or none"
            )
        return f"Instruct: {settings.instruction}\nQuery:{match[2]}"

    def _named(self, name: str) -> str:
        by_kind = {InputKind.QUERY.value: self.query, InputKind.DOCUMENT.value: self.document}
        known = {**{kind: text for kind, text in by_kind.items() if text}, **self.named}
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            message = f"this model has no prompt '{name}'; {has}"
            raise CapabilityError(
                f"prompt_name: {message}",
                options=("prompt_name",),
                detail={"problems": [{"param": "prompt_name", "message": message}]},
            )
        return known[name]


def prompts_of(name: str, architecture: str, stated: Mapping[str, object]) -> Prompts:
    """Return the prefixes of a model.

    Args:
        name: The model's name; identifies the family where its files do not.
        architecture: The ``model_type`` of its config.
        stated: The ``prompts`` of its ``config_sentence_transformers.json``; may be empty.
    """
    named = {key: text for key, text in stated.items() if isinstance(text, str)}
    query = _text(stated, "query", "retrieval.query", "Retrieval-query")
    document = _text(stated, "document", "passage", "retrieval.passage", "Retrieval-document")
    if query or document:
        return Prompts(query, document, named)
    short_name = name.lower().rpartition("/")[2]
    if architecture in {"qwen3", "qwen3_embedding"}:
        return Prompts(f"Instruct: {_DEFAULT_TASK}\nQuery:", named=named)
    if re.search(r"\be5\b", short_name) and "instruct" in short_name:
        return Prompts(f"Instruct: {_DEFAULT_TASK}\nQuery: ", named=named)
    if re.search(r"\be5\b", short_name):
        return Prompts("query: ", "passage: ", named=named)
    if re.search(r"\bbge\b.*\ben\b|\bmxbai\b", short_name):
        return Prompts(_REPRESENT, named=named)
    return Prompts(named=named)


def _text(stated: Mapping[str, object], *names: str) -> str:
    texts = (stated.get(name) for name in names)
    return next((text for text in texts if isinstance(text, str) and text), "")


@attrs.frozen
class ImagePrompt:
    """An image, and the tokens around it."""

    image: DecodedImage
    before: TokenIds
    after: TokenIds
    field: str
    """Field path of the input, for error messages."""


@attrs.frozen
class EncodedInputs:
    """The tokens of a request's inputs."""

    tokens: tuple[TokenIds, ...]
    """Token ids of each input, special tokens included; empty for an image."""
    truncations: tuple[Truncation, ...] = ()
    """One for each input that was longer than the window."""
    images: Mapping[int, ImagePrompt] = attrs.field(factory=dict)
    """Images by the index of the input; the processor makes their tokens when they are computed."""
    expands: bool = False
    """Whether the inputs are queries that are filled up to a fixed length."""


@attrs.frozen(eq=False)
class Computed:
    """The output of a network for one input."""

    rows: NDArray[np.float32]
    """One vector, shape (dimensions,), or one for each token, shape (tokens, dimensions); not normalized."""
    tokens: int
    """Number of tokens that were computed."""


class InputNetwork(Protocol):
    """An embedding network with its tokenizer."""

    @abstractmethod
    def encode(self, request: EmbeddingRequest) -> EncodedInputs:
        """Tokenize the inputs and truncate them to the window; on any thread.

        Raises:
            ValidationError: A given token is not in the vocabulary.
            ContextLengthError: An input is longer than the window, and truncation is off.
            CapabilityError: The model does not take this kind of input, takes no instruction, or has no prompt of the
                given name.
        """

    @abstractmethod
    def compute(self, inputs: EncodedInputs, indices: Sequence[int]) -> list[Computed]:
        """Compute the inputs with some indices as one batch; on the owner thread.

        Raises:
            ContextLengthError: An image has more tokens than the window.
        """


@attrs.frozen(eq=False)
class EmbeddingModel:
    """A loaded embedding model."""

    handle: ModelHandle
    weight_bytes: int
    network: InputNetwork
    shortenable: bool
    """Whether a prefix of a vector is a valid vector (Matryoshka training)."""
    lengths: tuple[int, ...] = ()
    """Lengths of prefixes in its training; empty if its config does not list them."""
    pace: Pace = attrs.field(factory=Pace)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.handle.name


class TextEncoder:
    """Tokenizes inputs.

    Args:
        tokenizer: Hugging Face tokenizer.
        prompts: The model's prefixes.
        window: Size of the context window, tokens.
        vocabulary: Size of the vocabulary.
        ends_with: Token id to append if the tokenizer appends none; None for nothing.
        takes_images: Whether the model takes images.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        window: int,
        vocabulary: int,
        ends_with: int | None = None,
        *,
        takes_images: bool = False,
    ) -> None:
        self.window = window
        self.padding = int(tokenizer.pad_token_id or 0)
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._vocabulary = vocabulary
        self._takes_images = takes_images
        self._lock = threading.Lock()
        self._before, self._after = self._frame()
        if ends_with is not None and not self._after:
            self._after = (ends_with,)

    def encode(self, request: EmbeddingRequest) -> EncodedInputs:
        """Tokenize the inputs and truncate them; raises as ``InputNetwork.encode``."""
        prefix = self._prompts.prefix(request.settings)
        images: dict[int, ImagePrompt] = {}
        with self._lock:
            for index, each in enumerate(request.inputs):
                if isinstance(each, ImageInput):
                    images[index] = self._image_prompt(each, prefix, f"input[{index}]")
            plain = [self._plain(each, prefix, index) for index, each in enumerate(request.inputs)]
        frame = len(self._before) + len(self._after)
        room = self.window - frame
        if not request.settings.truncate:
            self._require_room(plain, room)
        return EncodedInputs(
            tuple(
                () if index in images else (*self._before, *tokens[:room], *self._after)
                for index, tokens in enumerate(plain)
            ),
            tuple(
                Truncation(index, len(tokens) + frame, self.window)
                for index, tokens in enumerate(plain)
                if len(tokens) > room
            ),
            images,
        )

    def _image_prompt(self, given: ImageInput, prefix: str, field: str) -> ImagePrompt:
        """Return an image with the tokens around it.

        A text given with the image follows it; special tokens spelled in that text are encoded as text.

        Raises:
            CapabilityError: The model takes no images.
        """
        if not self._takes_images or not isinstance(given.image, DecodedImage):
            raise CapabilityError.in_field(field, "this model embeds texts, not images")
        text = self._tokenizer(given.text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        before = (*self._before, *self._tokens(prefix)) if prefix else self._before
        return ImagePrompt(given.image, before, (*text["input_ids"], *self._after), field)

    def _plain(self, text: Input, prefix: str, index: int) -> TokenIds:
        if isinstance(text, ImageInput):
            return ()
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
        encoded = self._tokenizer(text, add_special_tokens=special, truncation=False, padding=False, verbose=False)
        return tuple(encoded["input_ids"])

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
        """Return the special tokens that the tokenizer puts before and after a text."""
        plain, framed = self._tokens("a"), self._tokens("a", special=True)
        for start in range(len(framed) - len(plain) + 1):
            if framed[start : start + len(plain)] == plain:
                return framed[:start], framed[start + len(plain) :]
        return (), ()


def padded(texts: Sequence[TokenIds], padding: int) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Return the token ids, padded on the right, and the attention mask; both of shape (texts, length)."""
    longest = max(map(len, texts))
    rows = np.full((len(texts), longest), padding, np.int32)
    mask = np.zeros((len(texts), longest), np.int32)
    for row, text in enumerate(texts):
        rows[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return rows, mask


def require_window(tokens: int, image_tokens: int, window: int, field: str) -> None:
    """Refuse an image whose prompt has more tokens than the window.

    Raises:
        ContextLengthError: It has too many.
    """
    if tokens > window:
        raise ContextLengthError(
            f"{field} has {tokens} tokens, {image_tokens} of them of the image; the model reads {window}.",
            hint="Shorten the text, or make the image smaller.",
            detail={"prompt_tokens": tokens, "context_length": window},
        )


def as_rows(array: mx.array) -> NDArray[np.float32]:
    """Return an array as NumPy's, which may leave the owner thread."""
    return np.array(array.astype(mx.float32))


def device() -> str:
    """Return the value of ``Embeddings.device``; on the owner thread."""
    return "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"
