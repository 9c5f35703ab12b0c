"""Corrections of mlx-vlm's language models, as subclasses of their modules.

- Block-sparse attention: networks that attend to the best blocks of keys count blocks from the start of the arrays. In
  a batch, shorter rows are padded there, so that a row's blocks would depend on the other rows. Here each row's blocks
  are counted from its own first token.
- Scale of embeddings: Gemma 3n multiplies token embeddings by the square root of their width. mlx-vlm does so for
  generated tokens, which the network embeds itself, but not for those of the prompt, which are embedded together with
  images.
"""

import functools
from typing import Any

import mlx.core as mx

_Mask = mx.array | str | None


def choose_by_row(language: Any) -> None:  # noqa: ANN401 - mlx-vlm has no types to name
    """Have each row of a batch select the same blocks of keys as it would alone.

    Args:
        language: mlx-vlm's language model; unchanged if it has no block-sparse attention or is corrected already.
    """
    for module in language.modules():
        indexer: Any = getattr(module, "indexer", None)
        if hasattr(indexer, "select_blocks") and not hasattr(indexer, "padding"):
            indexer.__class__ = _by_row(indexer.__class__)
            module.__class__ = _by_mask(module.__class__)


@functools.cache
def _by_row(kind: Any) -> Any:  # noqa: ANN401
    class RowIndexer(kind):  # type: ignore[misc]
        padding: mx.array | None = None
        """Padding before the first token of each row, shape [B]; None without padding."""

        def __call__(self, x: mx.array, rope: Any, rope_offset: Any, cache: Any, *places: Any) -> Any:  # noqa: ANN401
            self.padding = getattr(cache, "left_padding", None)
            return super().__call__(x, rope, rope_offset, cache, *places)

        def select_blocks(
            self, queries: mx.array, keys: mx.array, start: int, mask: _Mask = None, positions: mx.array | None = None
        ) -> Any:  # noqa: ANN401
            padding = self.padding
            if padding is None or positions is None:
                return super().select_blocks(queries, keys, start, mask, positions)
            length = keys.shape[2]
            indices = mx.arange(length)[None] + padding[:, None]
            shifted = mx.take_along_axis(keys, mx.minimum(indices, length - 1)[:, None, :, None], axis=2)
            valid = (indices < length)[:, None, None]
            return super().select_blocks(queries, shifted, start, valid, positions - padding[:, None])

        def build_block_mask(
            self, blocks: mx.array, mask: _Mask, length: int, dtype: mx.Dtype, positions: mx.array
        ) -> Any:  # noqa: ANN401
            padding = self.padding
            if padding is None:
                return super().build_block_mask(blocks, mask, length, dtype, positions)
            indices = mx.arange(length)[None]
            block_of = (indices - padding[:, None]) // self.block_size
            attended = mx.any(blocks[..., None] == block_of[:, None, None], axis=-2)
            attended = attended & (indices[:, None] <= positions[..., None]) & (indices >= padding[:, None])[:, None]
            return self.attention._merge_sparse_mask(attended[:, None], mask)

    return RowIndexer


@functools.cache
def _by_mask(kind: Any) -> Any:  # noqa: ANN401
    class RowAttention(kind):  # type: ignore[misc]
        def __call__(
            self,
            x: mx.array,
            mask: _Mask = None,
            cache: Any = None,  # noqa: ANN401
            position_ids: mx.array | None = None,
        ) -> Any:  # noqa: ANN401
            offset = getattr(cache, "offset", None)
            if position_ids is None and isinstance(offset, mx.array):
                # Positions are read here: a batch cache advances its offset in place before the indexer reads it.
                position_ids = offset[:, None] + mx.arange(x.shape[1])
            return super().__call__(x, mask, cache, position_ids)

        def _sparse_decode_attention(self, *arguments: Any) -> Any:  # noqa: ANN401
            # The original gathers keys by block numbers, which count from each row's first token here.
            return super()._sparse_decode_attention(*arguments) if self.indexer.padding is None else None

    return RowAttention


_UNSCALED = "mlx_vlm.models.gemma3n.language"
"""Module of the networks with unscaled embeddings of prompts."""


def scale_prompts(language: Any) -> None:  # noqa: ANN401 - mlx-vlm has no types to name
    """Have the embedding layer itself scale, once for every token.

    Args:
        language: mlx-vlm's language model; unchanged if it is of another family or is corrected already.
    """
    model: Any = getattr(language, "model", None)
    if type(model).__module__ == _UNSCALED and not hasattr(model.embed_tokens, "scale"):
        model.embed_tokens.__class__ = _scaled(model.embed_tokens.__class__)
        model.embed_tokens.scale = model.hidden_size**0.5
        model.__class__ = _embedding_first(model.__class__)


@functools.cache
def _scaled(kind: Any) -> Any:  # noqa: ANN401 - plain or quantized
    class ScaledEmbedding(kind):  # type: ignore[misc]
        def __call__(self, tokens: mx.array) -> Any:  # noqa: ANN401
            return super().__call__(tokens) * self.scale

    return ScaledEmbedding


@functools.cache
def _embedding_first(kind: Any) -> Any:  # noqa: ANN401
    class EmbeddingFirst(kind):  # type: ignore[misc]
        def __call__(self, inputs: Any = None, inputs_embeds: Any = None, *rest: Any, **options: Any) -> Any:  # noqa: ANN401
            if inputs_embeds is None:
                inputs_embeds = self.embed_tokens(inputs)
            return super().__call__(inputs, inputs_embeds, *rest, **options)

    return EmbeddingFirst
