"""What mlx-vlm's language models compute otherwise than their authors meant, set right by subclasses of their modules.

- Attention to the best blocks of keys: networks that choose blocks count them from where the arrays begin. In a batch
  shorter rows are padded there, so that the blocks of a row would depend on which others are in it. Here each row
  counts from its own first token.
- The scale of prompts: Gemma 3n multiplies the embeddings of tokens by the root of their width. mlx-vlm does so for
  tokens that the network embeds itself, which are those of the answer, and not for those of the prompt, which are
  embedded beside images.
"""

import functools
from typing import Any

import mlx.core as mx

_Mask = mx.array | str | None


def choose_by_row(language: Any) -> None:  # noqa: ANN401 - mlx-vlm has no types to name
    """Let the rows of a batch choose the blocks that each would choose alone.

    Args:
        language: A language model of mlx-vlm; those without blocks of keys, or that do so already, stay as they are.
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
        """Tokens before the first one of each row, shape [B]; None where no row is padded."""

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
            places = mx.arange(length)[None] + padding[:, None]
            moved = mx.take_along_axis(keys, mx.minimum(places, length - 1)[:, None, :, None], axis=2)
            known = (places < length)[:, None, None]
            return super().select_blocks(queries, moved, start, known, positions - padding[:, None])

        def build_block_mask(
            self, blocks: mx.array, mask: _Mask, length: int, dtype: mx.Dtype, positions: mx.array
        ) -> Any:  # noqa: ANN401
            padding = self.padding
            if padding is None:
                return super().build_block_mask(blocks, mask, length, dtype, positions)
            places = mx.arange(length)[None]
            numbers = (places - padding[:, None]) // self.block_size
            kept = mx.any(blocks[..., None] == numbers[:, None, None], axis=-2)
            kept = kept & (places[:, None] <= positions[..., None]) & (places >= padding[:, None])[:, None]
            return self.attention._merge_sparse_mask(kept[:, None], mask)

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
                # A cache of rows counts in place, before the indexer reads where it was.
                position_ids = offset[:, None] + mx.arange(x.shape[1])
            return super().__call__(x, mask, cache, position_ids)

        def _sparse_decode_attention(self, *arguments: Any) -> Any:  # noqa: ANN401
            # It gathers keys by the numbers of blocks, which are those of each row here.
            return super()._sparse_decode_attention(*arguments) if self.indexer.padding is None else None

    return RowAttention


_LEFT_OUT = "mlx_vlm.models.gemma3n.language"
"""The module of the networks that it concerns."""


def scale_prompts(language: Any) -> None:  # noqa: ANN401 - mlx-vlm has no types to name
    """Let the embedding itself multiply, once for every token.

    Args:
        language: A language model of mlx-vlm; others, and those that do so already, stay as they are.
    """
    model: Any = getattr(language, "model", None)
    if type(model).__module__ == _LEFT_OUT and not hasattr(model.embed_tokens, "scale"):
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
