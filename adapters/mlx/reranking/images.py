"""Vision rerankers: a vision-language model judges whether a document, a text or an image, meets the query."""

import threading
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxk.adapters.mlx.embedding.encoding import as_rows, padded
from mlxk.adapters.mlx.embedding.images import QWEN_MARK, ImagePlaceholder, Part, PromptTokens, Text
from mlxk.adapters.mlx.reranking.pairs import EncodedPairs, ImagePair, PairScorer, Scored, room_of, truncation_of
from mlxk.domain.embedding import ImageInput, TokenIds, Truncation
from mlxk.domain.errors import ContextLengthError, IncompatibleModelError
from mlxk.domain.generation.media import DecodedImage
from mlxk.domain.reranking import RerankRequest

_SYSTEM = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user'
)
_ENDING = "<|im_end|>\n<|im_start|>assistant\n"
"""The text of Qwen3-VL-Reranker's training before and after the query and the document."""

_INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."

_WINDOW = 8192
"""Maximum tokens of a pair in the model's training; its config states more."""


class ImageScorer(PairScorer):
    """Scores pairs with a Qwen3-VL-Reranker.

    Args:
        name: The model's name.
        network: mlx-vlm's model.
        processor: The model's.
        context_length: Context length from its config.
    """

    def __init__(self, name: str, network: Any, processor: Any, context_length: int | None) -> None:  # noqa: ANN401
        self._network = network
        self._prompt_tokens = PromptTokens(processor, QWEN_MARK)
        self._padding = int(processor.tokenizer.pad_token_id or 0)
        self._window = min(_WINDOW, context_length or _WINDOW)
        self._lock = threading.Lock()
        answers = [self._prompt_tokens.tokens([word]) for word in ("yes", "no")]
        if any(len(each) != 1 for each in answers):
            raise IncompatibleModelError(f"The vocabulary of '{name}' has no token for 'yes' or for 'no'.")
        self._yes, self._no = (each[0] for each in answers)
        self._before, self._after = (self._prompt_tokens.tokens([text]) for text in (_SYSTEM, _ENDING))

    def encode(self, request: RerankRequest) -> EncodedPairs:
        tokens: list[TokenIds] = []
        with_images: dict[int, ImagePair] = {}
        truncations: list[Truncation] = []
        instruction = request.settings.instruction or _INSTRUCTION
        with self._lock:
            for index, document in enumerate(request.documents):
                before = [Text(f"\n<Instruct>: {instruction}<Query>:"), *_parts(request.query), Text("\n<Document>:")]
                parts = [_SYSTEM, *_joined([*before, *_parts(document)]), _ENDING]
                if ImagePlaceholder in map(type, parts):
                    images = [each.image for each in (request.query, document) if isinstance(each, ImageInput)]
                    with_images[index] = self._with_images(parts, images, index)
                    tokens.append(())
                    continue
                ids, truncation = self._text(request, before, str(document), index)
                tokens.append(ids)
                truncations += [truncation] if truncation else []
        return EncodedPairs(tuple(tokens), tuple(truncations), with_images=with_images)

    def _text(
        self, request: RerankRequest, before: list[Part], document: str, index: int
    ) -> tuple[TokenIds, Truncation | None]:
        """Return the tokens of a pair of texts, with the document's truncation if it is too long."""
        length = len(self._prompt_tokens.tokens(_joined(before)))
        content = self._prompt_tokens.tokens(_joined([*before, Text(document)]))
        room = room_of(request, self._window - len(self._before) - len(self._after) - length, self._window)
        cut = len(content) - length > room
        kept = content[: length + room]
        truncation = truncation_of(request, index, len(content) - length, room) if cut else None
        return (*self._before, *kept, *self._after), truncation

    def _with_images(self, parts: Sequence[Part], images: Sequence[Any], index: int) -> ImagePair:
        pieces: list[TokenIds | DecodedImage] = []
        remaining = iter(images)
        for part in parts:
            pieces.append(next(remaining) if isinstance(part, ImagePlaceholder) else self._prompt_tokens.tokens([part]))
        return ImagePair(tuple(pieces), f"documents[{index}]")

    def scores(self, pairs: EncodedPairs, indices: Sequence[int]) -> list[Scored]:
        pair = pairs.with_images.get(indices[0])
        if pair is not None:
            return [self._score_images(pair)]
        texts = [pairs.tokens[index] for index in indices]
        ids, mask = padded(texts, self._padding)  # on the right, without effect: attention is causal
        logits = self._logits(mx.array(ids), mask.sum(axis=1) - 1, {})
        return [Scored(logit, len(text)) for logit, text in zip(logits, texts, strict=True)]

    def _score_images(self, pair: ImagePair) -> Scored:
        tokens: list[int] = []
        media: dict[str, list[mx.array]] = {}
        for piece in pair.pieces:
            if isinstance(piece, DecodedImage):
                image_tokens, arrays = self._prompt_tokens.image_tokens(piece, pair.field)
                tokens += image_tokens
                for name, value in arrays.items():
                    media.setdefault(name, []).append(value)
            else:
                tokens += piece
        if len(tokens) > self._window:
            raise ContextLengthError(
                f"{pair.field} has too many tokens: with the query and their images {len(tokens)}; "
                f"the model reads {self._window}.",
                hint="Shorten the texts, or make the images smaller.",
                detail={"prompt_tokens": len(tokens), "context_length": self._window},
            )
        joined = {name: mx.concatenate(values) for name, values in media.items()}
        return Scored(self._logits(mx.array([tokens]), np.array([len(tokens) - 1]), joined)[0], len(tokens))

    def _logits(self, ids: mx.array, last: Any, media: dict[str, mx.array]) -> list[float]:  # noqa: ANN401
        """Return the logit of "yes" minus that of "no" after the last token of each row.

        Args:
            ids: Token ids, shape [B, L].
            last: Index of the last token of each row, shape [B].
            media: The network's arguments for images.
        """
        pixels = media.pop("pixel_values", None)
        inputs = self._network.get_input_embeddings(ids, pixels, **media)
        language = self._network.language_model
        hidden = language.model(
            ids,
            inputs_embeds=inputs.inputs_embeds,
            position_ids=inputs.position_ids,
            visual_pos_masks=inputs.visual_pos_masks,
            deepstack_visual_embeds=inputs.deepstack_visual_embeds,
        )
        ends = hidden[mx.arange(len(last)), mx.array(last)]
        rows = language.lm_head(ends) if "lm_head" in language else language.model.embed_tokens.as_linear(ends)
        return [float(row[self._yes] - row[self._no]) for row in as_rows(rows)]


def _parts(content: str | ImageInput) -> list[Part]:
    return [ImagePlaceholder(), Text(content.text)] if isinstance(content, ImageInput) else [Text(content)]


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Return the parts with adjacent texts joined, since a token may span two of them."""
    joined: list[Part] = []
    for part in parts:
        if joined and isinstance(part, Text) and isinstance(before := joined[-1], Text):
            joined[-1] = Text(before.text + part.text)
        else:
            joined.append(part)
    return joined
