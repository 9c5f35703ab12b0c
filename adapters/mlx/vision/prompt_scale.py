"""Embeddings of prompts on the scale of those of answers, where mlx-vlm's network leaves it out.

Gemma 3n multiplies the embeddings of tokens by the root of their width. mlx-vlm does so for tokens that the network
embeds itself, which are those of the answer, and not for those of the prompt, which are embedded beside images.
"""

import functools
from typing import Any

import mlx.core as mx

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
    class EmbeddingModel(kind):  # type: ignore[misc]
        def __call__(self, inputs: Any = None, inputs_embeds: Any = None, *rest: Any, **options: Any) -> Any:  # noqa: ANN401
            if inputs_embeds is None:
                inputs_embeds = self.embed_tokens(inputs)
            return super().__call__(inputs, inputs_embeds, *rest, **options)

    return EmbeddingModel
