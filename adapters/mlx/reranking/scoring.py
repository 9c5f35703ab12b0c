"""Loading rerankers, and scoring pairs of texts with them.

A cross-encoder reads both texts as one sequence and has one output. A generative reranker is asked whether the document
meets the query; the score is the logit of "yes" minus that of "no" as the next token.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import mlx.core as mx
import mlx.nn as nn
from mlx_vlm import reranker_loader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mlxk.adapters.mlx.embedding.batching import Pace
from mlxk.adapters.mlx.embedding.encoding import as_rows, padded
from mlxk.adapters.mlx.embedding.loading import require_vocabulary, window_of
from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files import (
    loading_directory,
    offline,
    read_config,
    refuse_untrusted_code,
    weight_bytes,
)
from mlxk.adapters.mlx.loading.text_model import LoadedModel, load_model
from mlxk.adapters.mlx.loading.widening import widen
from mlxk.adapters.mlx.prompting.detokenizer import disable_word_cache, unwrapped
from mlxk.adapters.mlx.reranking.images import ImageScorer
from mlxk.adapters.mlx.reranking.pairs import EncodedPairs, PairScorer, Scored, room_of, texts_of, truncation_of
from mlxk.adapters.mlx.vision.loader import VisionProcessor, load_vision_model
from mlxk.domain.errors import CapabilityError, IncompatibleModelError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.reranking import RerankRequest

_GENERATIVE = "qwen3"
_GENERATIVE_VISION = "qwen3_vl"

_KNOWN_VARIANTS = {
    "hidden_act": ("gelu",),
    "hidden_activation": ("gelu",),
    "position_embedding_type": ("absolute",),
    "classifier_activation": ("gelu",),
    "classifier_pooling": ("cls", "mean"),
}
"""Config entries that mlx-vlm's encoders ignore, with the values that they compute with."""

_FRAME = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
)
"""The text of Qwen3-Reranker's training before and after the query and the document."""

_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

_GENERATIVE_WINDOW = 8192
"""Maximum tokens of a pair in Qwen3-Reranker's training; its config states more."""


@attrs.frozen(eq=False)
class Reranker:
    """A loaded reranker."""

    handle: ModelHandle
    weight_bytes: int
    scorer: PairScorer
    pace: Pace = attrs.field(factory=Pace)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.handle.name


def load_reranker(handle: ModelHandle, form: WeightForm = WeightForm.STORED) -> Reranker:
    """Load a model.

    Args:
        handle: The model.
        form: How to hold its weights.

    Raises:
        UntrustedModelCodeError: Loading would execute code that came with it.
        UnhealthyModelError: Files are missing or damaged.
        IncompatibleModelError: Neither library supports the architecture, or it has not exactly one output.
        BackendNotInstalledError: A package that this architecture needs is not installed.
        ExecutionError: Loading failed for another reason, such as lack of memory.
    """
    refuse_untrusted_code(handle)
    config = read_config(handle)
    require_vocabulary(handle)
    if str(config.get("model_type", "")).lower() == _GENERATIVE:
        loaded = load_model(handle, form)
        return Reranker(handle, loaded.weight_bytes, _GenerativeScorer(loaded))
    if str(config.get("model_type", "")).lower() == _GENERATIVE_VISION:
        loaded = load_vision_model(handle, form)
        parts = loaded.vision.parts if isinstance(loaded.vision, VisionProcessor) else None
        if parts is None:
            raise IncompatibleModelError(f"'{handle.name}' was loaded without what reads images.")
        scorer = ImageScorer(handle.name, parts.model, parts.processor, loaded.context_length)
        return Reranker(handle, loaded.weight_bytes, scorer)
    _require_known_variant(handle, config)
    with translated(handle, "has an architecture that makes no scores"), offline():
        with loading_directory(handle) as directory:
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            network = reranker_loader.load_sequence_classification_model(directory)
        size = widen(network, form) if form.widened else weight_bytes(handle.directory)
    disable_word_cache(tokenizer)
    stated = config.get("type_vocab_size", 2)
    segments = stated if isinstance(stated, int) and stated > 0 else 1
    window = window_of(handle, config, tokenizer)
    return Reranker(handle, size, _CrossEncoder(network, tokenizer, window, segments))


def _require_known_variant(handle: ModelHandle, config: Mapping[str, Any]) -> None:
    """Refuse a classifier of several classes, and config entries that mlx-vlm's encoders would ignore.

    Raises:
        IncompatibleModelError: Names the config entry.
    """
    labels = config.get("num_labels", len(config.get("id2label") or {}))
    if labels not in (0, 1):
        raise IncompatibleModelError(f"'{handle.name}' has {labels} outputs; a reranker has exactly one.")
    for key, known in _KNOWN_VARIANTS.items():
        if config.get(key, known[0]) not in known:
            raise IncompatibleModelError(
                f"'{handle.name}' has {key} {config[key]!r}, which is not supported; supported is {known[0]!r}."
            )


class _CrossEncoder(PairScorer):
    """Reads a query and a document as one sequence.

    Args:
        network: mlx-vlm's model.
        tokenizer: Hugging Face tokenizer.
        window: Size of the context window, tokens.
        segments: Number of the network's token types.
    """

    def __init__(self, network: nn.Module, tokenizer: PreTrainedTokenizerBase, window: int, segments: int) -> None:
        self._last_segment = segments - 1
        self._network = network
        self._tokenizer = tokenizer
        self._window = window
        self._padding = int(tokenizer.pad_token_id or 0)
        self._lock = threading.Lock()

    def encode(self, request: RerankRequest) -> EncodedPairs:
        if request.settings.instruction is not None:
            raise CapabilityError.in_field("instruction", "this model takes no instruction")
        query, documents = texts_of(request)
        with self._lock:
            encoded = self._tokenizer(
                [query] * len(documents),
                list(documents),
                truncation=False,
                padding=False,
                verbose=False,
                return_token_type_ids=True,
                split_special_tokens=True,  # a special token that is spelled in a text, such as a separator, stays text
            )
        tokens, segments, truncations = [], [], []
        for index, ids in enumerate(encoded["input_ids"]):
            document = [at for at, sequence in enumerate(encoded.sequence_ids(index)) if sequence == 1]
            room = room_of(request, self._window - len(ids) + len(document), self._window)
            if len(document) > room:
                truncations.append(truncation_of(request, index, len(document), room))
            dropped = set(document[room:])
            kept = [at for at in range(len(ids)) if at not in dropped]
            tokens.append(tuple(ids[at] for at in kept))
            segments.append(tuple(min(encoded["token_type_ids"][index][at], self._last_segment) for at in kept))
        return EncodedPairs(tuple(tokens), tuple(truncations), tuple(segments))

    def scores(self, pairs: EncodedPairs, indices: Sequence[int]) -> list[Scored]:
        ids, mask = padded([pairs.tokens[index] for index in indices], self._padding)
        segments, _ = padded([pairs.segments[index] for index in indices], 0)
        output = self._network(mx.array(ids), attention_mask=mx.array(mask), token_type_ids=mx.array(segments))
        return _scored(output.logits[:, 0], pairs, indices)


class _GenerativeScorer(PairScorer):
    """Scores pairs of texts with a Qwen3-Reranker.

    Args:
        model: The loaded text model.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._tokenizer = unwrapped(model.tokenizer)
        self._before, self._after = (tuple(self._plain(text)) for text in _FRAME)
        self._padding = int(self._tokenizer.pad_token_id or 0)
        self._answers = [self._token("yes"), self._token("no")]
        self._window = min(_GENERATIVE_WINDOW, model.context_length or _GENERATIVE_WINDOW)

    def encode(self, request: RerankRequest) -> EncodedPairs:
        instruction = request.settings.instruction or _INSTRUCTION
        query, documents = texts_of(request)
        before = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: "
        with self._model.lock:
            length = len(self._content(before))
            contents = [self._content(before + document) for document in documents]
        room = room_of(request, self._window - len(self._before) - len(self._after) - length, self._window)
        truncations = tuple(
            truncation_of(request, index, len(content) - length, room)
            for index, content in enumerate(contents)
            if len(content) - length > room
        )
        tokens = ((*self._before, *content[: length + room], *self._after) for content in contents)
        return EncodedPairs(tuple(tokens), truncations)

    def scores(self, pairs: EncodedPairs, indices: Sequence[int]) -> list[Scored]:
        ids, mask = padded(
            [pairs.tokens[index] for index in indices], self._padding
        )  # without effect: causal attention
        network = self._model.network
        last = mx.array(mask.sum(axis=1) - 1)[:, None, None]
        hidden = mx.take_along_axis(network.model(mx.array(ids)), last, axis=1)[:, 0]
        rows = network.lm_head(hidden) if "lm_head" in network else network.model.embed_tokens.as_linear(hidden)
        yes, no = self._answers
        rows = rows.astype(mx.float32)
        return _scored(rows[:, yes] - rows[:, no], pairs, indices)

    def _content(self, text: str) -> list[int]:
        """Return the tokens of a text in which control tokens are not recognized."""
        control = self._model.renderer.control
        spelled = control.all_spelled(text)
        return control.encode(spelled) if spelled.spelled else self._plain(text)

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _token(self, word: str) -> int:
        tokens = self._plain(word)
        if len(tokens) != 1:
            raise IncompatibleModelError(f"The vocabulary of '{self._model.name}' has no token for '{word}'.")
        return tokens[0]


def _scored(logits: mx.array, pairs: EncodedPairs, indices: Sequence[int]) -> list[Scored]:
    values = as_rows(logits).tolist()
    return [Scored(value, len(pairs.tokens[index])) for value, index in zip(values, indices, strict=True)]
