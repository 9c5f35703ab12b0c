"""Models of an encoder and a decoder: what encodes a prompt once, and the decoder as the engine steps it.

Florence-2 encodes images and text, and its decoder begins with one token that starts every answer; Nemotron Parse
encodes the image alone, and its decoder begins with the text. What is encoded belongs to one prompt and is attended to
in every step: nothing of it is kept for other prompts, and sequences decode alone.

Shapes: L tokens of the decoder, S states of the encoder, D their size.
"""

from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx
from mlx_vlm.models.cache import CacheList, KVCache, SimpleKVCache

from mlxk.adapters.mlx.engine.prefill import Media, Prefill
from mlxk.adapters.mlx.engine.prefix_cache import MediaIdentity
from mlxk.adapters.mlx.engine.quantized_cache import kept_state
from mlxk.adapters.mlx.vision.network import (
    RowFeatures,
    RowPositions,
    VisionNetwork,
    VisionParts,
    VisionTemplate,
    logits_of,
)
from mlxk.adapters.mlx.vision.prompts import ProcessedPrompt

ENCODING = {"florence2": True, "nemotron_parse": False}
"""Architectures of an encoder and a decoder, and whether the encoder reads text, too."""


_USUAL_START = 2
"""The token that starts the decoder of a config without one."""


def decoded(tokens: Sequence[int], template: VisionTemplate) -> tuple[int, ...]:
    """Return the tokens of a prompt as they are counted, with those that the decoder of such a model begins with last.

    Args:
        tokens: The processor's.
        template: Of any model.
    """
    reads_text = ENCODING.get(template.type)
    if reads_text is None:
        return tuple(tokens)
    config = template.config.text_config
    stated = config if isinstance(config, dict) else vars(config)  # without the weights the parts are not parsed
    if reads_text:
        return (*tokens, stated.get("decoder_start_token_id", _USUAL_START))
    # The tokenizer puts every text between these; the decoder continues it.
    end = len(tokens) - (len(tokens) > 1 and tokens[-1] == stated.get("eos_token_id"))
    return tuple(tokens[end > 1 and tokens[0] == stated.get("bos_token_id") : end])


class EncodedNetwork(VisionNetwork):
    """Steps the decoder of such a model; the last layer of its cache has what was encoded."""

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """Compute the logits that follow tokens of the decoder, shape [1, L]; returns shape [1, L, V]."""
        *layers, extra = cache
        logits: mx.array = logits_of(self._language(decoder_input_ids=tokens, cache=layers, **extra.step()))
        return logits

    def make_cache(self) -> list[Any]:
        """Return an empty cache: what the decoder has written and what it reads of the encoder, for each layer."""
        return [*(CacheList(KVCache(), SimpleKVCache()) for _ in self._language.layers), RowPositions()]

    def encode(self, embeddings: mx.array) -> mx.array:
        """Return the states that the decoder attends to, of what the model has made of a prompt; shape [1, S, D]."""
        inner = self._language.model
        if not hasattr(inner, "encoder"):
            return embeddings
        states: mx.array = inner.encoder(inputs_embeds=embeddings * inner.embed_scale)
        return states


class EncodedPrompt(Media):
    """A prompt that is encoded.

    Args:
        parts: The model.
        network: Its decoder.
        prompt: The processed prompt.
    """

    identity = MediaIdentity(reusable=False)
    kind = ""

    def __init__(self, parts: VisionParts, network: EncodedNetwork, prompt: ProcessedPrompt) -> None:
        self._parts = parts
        self._network = network
        self._prompt = prompt

    def encode_with(self, others: Sequence[Media]) -> None:
        """Leave it to ``prefill``."""

    def prefill(self, tokens: list[int], cache: list[Any], position: int) -> Prefill:
        """Encode the prompt, and begin the decoder's part of it."""
        ids = mx.array([self._prompt.tokens])
        pixels = self._prompt.inputs.get("pixel_values")
        found = self._parts.model.get_input_embeddings(ids, None if pixels is None else mx.array(pixels))
        states = self._network.encode(found.inputs_embeds)
        mx.eval(states)
        cache[-1] = RowFeatures({"encoder_outputs": states}, {})
        begin = len(self._prompt.tokens) if ENCODING[self._parts.type] else 0
        return EncodedPrefill(self._network, tokens, cache, position, begin=begin)


@attrs.define(eq=False)
class EncodedPrefill(Prefill):
    """The computation of one such prompt, all at once; the encoder has done its part."""

    begin: int = attrs.field(default=0, kw_only=True)
    """Index of the first token of the decoder."""

    def advance(self, max_tokens: int) -> int:
        """Compute all tokens of the decoder but the last, and return how many tokens of the prompt there were."""
        last = len(self.tokens) - 1
        chunk, size = self.tokens[self.begin : last], last - self.position
        if size and chunk:
            self.network(mx.array([chunk]), self.cache)
            mx.eval([kept_state(layer) for layer in self.cache])
        self.position = last
        return size
