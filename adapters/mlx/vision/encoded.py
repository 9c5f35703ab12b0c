"""Encoder-decoder models: encoding a prompt once, and stepping the decoder in the engine.

Florence-2 encodes images and text, and its decoder starts with one fixed token. Nemotron Parse encodes the image only,
and its decoder starts with the text. Every decoding step attends to the encoder's states, which belong to one prompt:
nothing is cached for other prompts, and sequences are not batched.

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
"""Encoder-decoder architectures, and whether the encoder reads text as well."""


_DEFAULT_START = 2
"""The decoder's start token if the config has none."""


def decoded(tokens: Sequence[int], template: VisionTemplate) -> tuple[int, ...]:
    """Return the tokens of a prompt that the engine counts; the last of them are the decoder's first ones.

    Args:
        tokens: The processor's tokens.
        template: The model's; for other architectures the tokens are returned unchanged.
    """
    reads_text = ENCODING.get(template.type)
    if reads_text is None:
        return tuple(tokens)
    config = template.config.text_config
    stated = config if isinstance(config, dict) else vars(config)  # a dict if the config was loaded without the weights
    if reads_text:
        return (*tokens, stated.get("decoder_start_token_id", _DEFAULT_START))
    # Without the tokenizer's beginning- and end-of-sequence tokens: the decoder continues the text.
    end = len(tokens) - (len(tokens) > 1 and tokens[-1] == stated.get("eos_token_id"))
    return tuple(tokens[end > 1 and tokens[0] == stated.get("bos_token_id") : end])


class EncodedNetwork(VisionNetwork):
    """Steps the decoder of an encoder-decoder model; the last layer of its cache has the encoder's states."""

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """Compute the logits that follow tokens of the decoder, shape [1, L]; returns shape [1, L, V]."""
        *layers, extra = cache
        logits: mx.array = logits_of(self._language(decoder_input_ids=tokens, cache=layers, **extra.step()))
        return logits

    def make_cache(self) -> list[Any]:
        """Return an empty cache: for each layer one of the decoder's keys and values, and one of the encoder's."""
        return [*(CacheList(KVCache(), SimpleKVCache()) for _ in self._language.layers), RowPositions()]

    def encode(self, embeddings: mx.array) -> mx.array:
        """Return the states to which the decoder attends, shape [1, S, D], from the embeddings of a prompt."""
        inner = self._language.model
        if not hasattr(inner, "encoder"):
            return embeddings
        states: mx.array = inner.encoder(inputs_embeds=embeddings * inner.embed_scale)
        return states


class EncodedPrompt(Media):
    """A prompt of an encoder-decoder model.

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
        """Do nothing: ``prefill`` encodes."""

    def prefill(self, tokens: list[int], cache: list[Any], position: int) -> Prefill:
        """Encode the prompt, and begin the decoder's part."""
        ids = mx.array([self._prompt.tokens])
        pixels = self._prompt.inputs.get("pixel_values")
        inputs = self._parts.model.get_input_embeddings(ids, None if pixels is None else mx.array(pixels))
        states = self._network.encode(inputs.inputs_embeds)
        mx.eval(states)
        cache[-1] = RowFeatures({"encoder_outputs": states}, {})
        begin = len(self._prompt.tokens) if ENCODING[self._parts.type] else 0
        return EncodedPrefill(self._network, tokens, cache, position, begin=begin)


@attrs.define(eq=False)
class EncodedPrefill(Prefill):
    """The decoder's part of a prefill, in one chunk."""

    begin: int = attrs.field(default=0, kw_only=True)
    """Index of the first token of the decoder."""

    def advance(self, max_tokens: int) -> int:
        """Compute all tokens of the decoder but the last; return the number of the prompt's tokens before the last."""
        last = len(self.tokens) - 1
        chunk, size = self.tokens[self.begin : last], last - self.position
        if size and chunk:
            self.network(mx.array([chunk]), self.cache)
            mx.eval([kept_state(layer) for layer in self.cache])
        self.position = last
        return size
