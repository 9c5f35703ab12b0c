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
from mlxk.adapters.mlx.engine.prefix_cache import ShownMedia
from mlxk.adapters.mlx.engine.quantized_cache import kept_state
from mlxk.adapters.mlx.vision.network import RowFeatures, RowPositions, VisionNetwork, VisionParts, logits_of
from mlxk.adapters.mlx.vision.prompts import ProcessedPrompt
from mlxk.domain.errors import CapabilityError

ENCODING = frozenset({"florence2", "nemotron_parse"})
"""Architectures of an encoder and a decoder."""


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

    @property
    def reads_text(self) -> bool:
        """Whether the encoder reads the prompt's text, too."""
        return hasattr(self._language.model, "encoder")

    def encode(self, embeddings: mx.array) -> mx.array:
        """Return the states that the decoder attends to, of what the model has made of a prompt; shape [1, S, D]."""
        if not self.reads_text:
            return embeddings
        inner = self._language.model
        states: mx.array = inner.encoder(inputs_embeds=embeddings * inner.embed_scale)
        return states


class EncodedPrompt(Media):
    """A prompt that is encoded.

    Args:
        parts: The model.
        network: Its decoder.
        prompt: The processed prompt.

    Raises:
        CapabilityError: It shows nothing, and the encoder reads images alone.
    """

    shown = ShownMedia(kept=False)
    kind = ""

    def __init__(self, parts: VisionParts, network: EncodedNetwork, prompt: ProcessedPrompt) -> None:
        if not network.reads_text and not prompt.identity:
            raise CapabilityError.in_field(
                "messages", f"this model ({parts.type}) answers about an image only", hint="Show one."
            )
        self._parts = parts
        self._network = network
        self._prompt = prompt

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of the prompt, those that the decoder begins with last."""
        tokens, config = self._prompt.tokens, self._parts.model.config.text_config
        if self._network.reads_text:
            return (*tokens, config.decoder_start_token_id)
        # The tokenizer puts every text between these; the decoder continues it.
        if len(tokens) > 2 and tokens[-1] == config.eos_token_id:
            tokens = tokens[:-1]
        if len(tokens) > 1 and tokens[0] == config.bos_token_id:
            tokens = tokens[1:]
        return tokens

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
        begin = len(self._prompt.tokens) if self._network.reads_text else 0
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
