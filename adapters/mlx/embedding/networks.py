"""Networks that embed texts, as one vector for each text or one for each token."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from transformers import PreTrainedTokenizerBase

from mlxk.adapters.mlx.embedding.encoding import (
    Computed,
    EncodedInputs,
    ImagePrompt,
    InputNetwork,
    Prompts,
    TextEncoder,
    as_rows,
    padded,
    pool,
    require_window,
)
from mlxk.adapters.mlx.embedding.images import GemmaImages
from mlxk.domain.embedding import EmbeddingRequest, InputKind, TokenIds, Truncation
from mlxk.domain.errors import CapabilityError, IncompatibleModelError


@attrs.frozen(eq=False)
class TextNetwork(InputNetwork):
    """A network that makes one vector of a text, or of an image where ``images`` is given."""

    name: str
    network: Any
    """mlx-vlm's model."""
    encoder: TextEncoder
    pooling: tuple[str, ...] | None
    """Pooling modes, some of ``MODES``; None if the network pools by itself."""
    images: GemmaImages | None = None
    """Prepares images; None if the network takes none."""

    def encode(self, request: EmbeddingRequest) -> EncodedInputs:
        return self.encoder.encode(request)

    def compute(self, inputs: EncodedInputs, indices: Sequence[int]) -> list[Computed]:
        prompt = inputs.images.get(indices[0])
        if prompt is not None and self.images is not None:
            return self._embed_image(prompt, self.images)
        return self._embed([inputs.tokens[index] for index in indices], {})

    def _embed_image(self, prompt: ImagePrompt, images: GemmaImages) -> list[Computed]:
        image_tokens, media = images.image_tokens(prompt.image, prompt.field)
        tokens = (*prompt.before, *image_tokens, *prompt.after)
        require_window(len(tokens), len(image_tokens), self.encoder.window, prompt.field)
        return self._embed([tokens], media)

    def _embed(self, texts: Sequence[TokenIds], media: Mapping[str, mx.array]) -> list[Computed]:
        ids, mask = padded(texts, self.encoder.padding)
        output = self.network(mx.array(ids), attention_mask=mx.array(mask), **media)
        if self.pooling is None:
            pooled = getattr(output, "text_embeds", None)
        else:
            pooled = pool(output.last_hidden_state, mx.array(mask), self.pooling)
        if pooled is None or pooled.ndim != 2:
            raise IncompatibleModelError(f"'{self.name}' does not make one vector of a text.")
        return [Computed(row, len(text)) for row, text in zip(as_rows(pooled), texts, strict=True)]


@attrs.frozen
class ColbertRules:
    """PyLate's settings of a ColBERT model, from its files."""

    query_prefix: str = ""
    document_prefix: str = ""
    query_length: int = 32
    """Tokens of a query; shorter queries are filled up with tokens, which get vectors too."""
    document_length: int = 180
    """Maximum tokens of a document."""
    expands_queries: bool = True
    attends_to_expansion: bool = False
    skipped: tuple[str, ...] = ()
    """Words that get no vectors in documents, such as punctuation."""

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> "ColbertRules":
        """Return the rules of a ``config_sentence_transformers.json``."""

        def length(name: str, default: int) -> int:
            value = stated.get(name)
            return value if isinstance(value, int) and not isinstance(value, bool) and value > 2 else default

        words = stated.get("skiplist_words")
        return cls(
            str(stated.get("query_prefix") or ""),
            str(stated.get("document_prefix") or ""),
            length("query_length", cls().query_length),
            length("document_length", cls().document_length),
            stated.get("do_query_expansion") is not False,
            stated.get("attend_to_expansion_tokens") is True,
            tuple(map(str, words)) if isinstance(words, list) else (),
        )


class ColbertNetwork(InputNetwork):
    """A ColBERT model of PyLate: makes a vector of each token of a text, for late interaction.

    Args:
        network: mlx-vlm's model.
        tokenizer: Hugging Face tokenizer.
        prompts: The model's prefixes.
        rules: Settings from its files.
        window: Size of the context window, tokens.
        vocabulary: Size of the vocabulary.
    """

    def __init__(
        self,
        network: Any,  # noqa: ANN401 - untyped
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        rules: ColbertRules,
        window: int,
        vocabulary: int,
    ) -> None:
        self._network = network
        self._rules = rules
        filler = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.pad_token_id
        self._filler = int(filler or 0)
        self._skipped = {int(tokenizer.convert_tokens_to_ids(word)) for word in rules.skipped} - {
            tokenizer.unk_token_id
        }
        lengths = {InputKind.QUERY: rules.query_length, InputKind.DOCUMENT: rules.document_length}
        self._marks = {
            kind: self._mark(tokenizer, prefix)
            for kind, prefix in (
                (InputKind.QUERY, rules.query_prefix),
                (InputKind.DOCUMENT, rules.document_prefix),
            )
        }
        self._encoders = {
            kind: TextEncoder(tokenizer, prompts, min(window, length - len(self._marks[kind])), vocabulary)
            for kind, length in lengths.items()
        }

    @staticmethod
    def _mark(tokenizer: PreTrainedTokenizerBase, prefix: str) -> TokenIds:
        """Return the token of a prefix, which is inserted after the first token; empty if it is no single token."""
        token = tokenizer.convert_tokens_to_ids(prefix) if prefix else None
        return () if token is None or token == tokenizer.unk_token_id else (int(token),)

    def encode(self, request: EmbeddingRequest) -> EncodedInputs:
        kind = request.settings.kind
        if request.settings.instruction is not None:
            raise CapabilityError.in_field("instruct", "this model takes no instruction")
        encoded, mark = self._encoders[kind].encode(request), self._marks[kind]
        return EncodedInputs(
            tuple((*text[:1], *mark, *text[1:]) for text in encoded.tokens),
            tuple(
                Truncation(each.index, each.tokens + len(mark), each.kept + len(mark)) for each in encoded.truncations
            ),
            expands=kind is InputKind.QUERY and self._rules.expands_queries,
        )

    def compute(self, inputs: EncodedInputs, indices: Sequence[int]) -> list[Computed]:
        texts = [inputs.tokens[index] for index in indices]
        if inputs.expands:
            return self._embed_queries(texts)
        # Convolutions read neighbouring tokens: padding would change the last vectors of a text, so only texts of the
        # same length are computed together.
        results: dict[int, Computed] = {}
        for length in {len(text) for text in texts}:
            rows = [index for index, text in enumerate(texts) if len(text) == length]
            output = self._network(mx.array([texts[row] for row in rows]))
            for row, vectors in zip(rows, as_rows(output.text_embeds), strict=True):
                kept = [index for index, token in enumerate(texts[row]) if token not in self._skipped]
                results[row] = Computed(vectors[kept or slice(None)], length)
        return [results[row] for row in range(len(texts))]

    def _embed_queries(self, texts: Sequence[TokenIds]) -> list[Computed]:
        length = max(self._rules.query_length, *map(len, texts))
        rows = np.full((len(texts), length), self._filler, np.int32)
        mask = np.full((len(texts), length), int(self._rules.attends_to_expansion), np.int32)
        for row, text in enumerate(texts):
            rows[row, : len(text)], mask[row, : len(text)] = text, 1
        output = self._network(mx.array(rows), attention_mask=mx.array(mask))
        return [Computed(vectors, length) for vectors in as_rows(output.text_embeds)]
