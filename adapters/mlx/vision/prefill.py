"""The prefill of prompts with images, clips and audio.

Media are encoded in one step of the engine, however long it takes; then the prompt is computed in chunks like any
other. The features replace the embeddings of placeholder tokens, and the language model is given embeddings instead of
tokens. If all media are in the KV cache already, nothing is encoded.
"""

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxk.adapters.mlx.engine.prefill import Media, Prefill
from mlxk.adapters.mlx.engine.quantized_cache import kept_state
from mlxk.adapters.mlx.vision.network import RowFeatures, RowPositions, VisionNetwork, VisionParts
from mlxk.adapters.mlx.vision.prompts import ProcessedPrompt

_PER_TOKEN = {"mm_token_type_ids", "token_type_ids"}
"""Inputs with one value for each token; 0 for text, such as generated tokens."""

_CROSS_ATTENDING = frozenset({"mllama"})
"""Architectures without placeholder tokens: every token attends to the features of the media."""

_IN_ONE_CHUNK = frozenset({"deepseek_v4"})
"""Architectures that take images only with an empty KV cache, so that all media must be in the first chunk."""

_GRIDS = ("image_grid_thw", "video_grid_thw")
"""Inputs with the sides of each image and clip in patches, from which models compute positions."""

_EVERY_STEP = ("cross_attention_states",)
"""Arguments of the language model that every step needs."""
_FIRST_STEP = ("cross_attention_mask", "full_text_row_masked_out_mask")
"""Arguments that the first step after the prefill needs."""


class VisionPrompt(Media):
    """The media of one prompt.

    Args:
        parts: The model.
        network: Its language model.
        prompt: The processed prompt.
    """

    def __init__(self, parts: VisionParts, network: VisionNetwork, prompt: ProcessedPrompt) -> None:
        in_one_chunk = parts.type in _IN_ONE_CHUNK and prompt.last_media >= 0
        self.identity = (
            attrs.evolve(prompt.media, atomic_tokens=prompt.last_media + 1) if in_one_chunk else prompt.media
        )
        # After ``expanded``, tokens no longer show the text between images.
        exact = parts.type in _CROSS_ATTENDING or len(prompt.processor_tokens) != len(prompt.tokens)
        self.kind = prompt.identity if exact else ""
        if network.attends_ahead or not network.takes_positions:
            # A cached prefix depends on the rest of its prompt, or the rest cannot be given its positions.
            self.kind += f"#whole={hashlib.sha256(repr(prompt.tokens).encode()).hexdigest()}"
        self._parts = parts
        self._network = network
        self._prompt = prompt
        self._encoded = False
        """Whether ``encode_with`` has encoded its images, together with other prompts'."""

    def encode_with(self, others: Sequence[Media]) -> None:
        encoder = self._parts.encoder
        prompts = [each for each in (self, *others) if isinstance(each, VisionPrompt) and each.awaits(self._parts)]
        if encoder is None or self not in prompts or len(prompts) < 2:
            return
        calls = []
        for each in prompts:
            calls += encoder.calls_of(each.embedded_length)
            each._encoded = True
        encoder.compute_ahead(calls)

    def awaits(self, parts: VisionParts) -> bool:
        """Whether the prompt has media that the model may still have to encode."""
        return self._parts is parts and bool(self._prompt.identity) and not self._encoded

    def embedded(self) -> dict[str, Any]:
        """Encode the media; return the language model's keyword arguments for the complete prompt."""
        return self._options(list(self._prompt.processor_tokens), cached=False)

    def embedded_length(self) -> int:
        """Encode the media, and return the number of the prompt's embeddings."""
        return int(self.embedded()["inputs_embeds"].shape[1])

    def prefill(self, tokens: list[int], cache: list[Any], position: int) -> Prefill:
        """Encode the media, and begin the prefill."""
        # Features to which every step attends are not in the KV cache: they are computed again.
        cached = position > self._prompt.last_media and isinstance(cache[-1], RowPositions)
        generated = tokens[len(self._prompt.tokens) :]
        ids = [*self._prompt.tokens, *generated]
        options = self._options(tokens if cached else [*self._prompt.processor_tokens, *generated], cached)
        embeddings = options.pop("inputs_embeds")
        cache[-1] = self._last_layer(options)
        chunked = self._network.takes_positions and _allows_chunks(self._parts, ids, embeddings, cache, options)
        mx.eval(embeddings)
        return VisionPrefill(
            network=self._network,
            tokens=tokens,
            cache=cache,
            position=position,
            language=self._parts.language,
            ids=mx.array([ids]),
            embeddings=embeddings,
            options=options,
            chunked=chunked,
        )

    def _options(self, tokens: list[int], cached: bool) -> dict[str, Any]:
        """Return the language model's keyword arguments for the complete prompt, its embeddings among them.

        Args:
            tokens: The prompt and the tokens generated so far.
            cached: Whether all media are in the KV cache already.
        """
        ids = mx.array([tokens])
        mask = mx.ones_like(ids)
        self._network.remember(None, None)
        inputs = self._inputs(len(tokens))
        pixels = inputs.pop("pixel_values", None)
        positions = None
        media = bool(self._prompt.identity)
        if media and cached:
            positions = self._positions(ids, inputs)
        if not media or positions is not None:
            features = self._parts.model.get_input_embeddings(ids, None, mask=mask)
            inputs = {}
        else:
            features = self._parts.model.get_input_embeddings(ids, pixels, mask=mask, **inputs)
        computed = {name: value for name, value in features.to_dict().items() if value is not None}
        options = {**self._network.remembered(), **inputs, **computed, **(positions or {})}
        # Without positions a language model would number the rest of a partly cached prompt from 0.
        if self._network.has_positions and options.get("position_ids") is None:
            options |= self._positions(ids, inputs) or {}
        return options

    def _positions(self, ids: mx.array, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """Return the positions of a prompt from the processor's inputs; None if they depend on the features."""
        if not self._network.has_positions:
            return {}
        if "input_features" in inputs:
            return None  # the number of positions of audio depends on its features
        index = getattr(self._parts.language, "get_rope_index", None)
        if index is None:
            return None
        available = {"attention_mask": mx.ones_like(ids)} | {name: inputs.get(name) for name in _GRIDS}
        arguments = {name: available[name] for name in inspect.signature(index).parameters if name in available}
        try:
            positions, offset = index(ids, **arguments)
        except (AttributeError, TypeError, ValueError):  # it needs other inputs: the complete model has the positions
            return None
        return {"position_ids": positions, "rope_deltas": offset}

    def _last_layer(self, options: dict[str, Any]) -> RowPositions | RowFeatures:
        """Return the additional last layer of the cache: position offsets, or the features of every step."""
        always = {name: options[name] for name in _EVERY_STEP if name in options}
        if always or self._network.attends_ahead:  # not batched: the latter do not mask the padding of shorter rows
            return RowFeatures(always, {name: options[name] for name in _FIRST_STEP if name in options})
        if not self._network.has_positions:
            return RowPositions()
        offset = options.get("rope_deltas")
        return RowPositions(mx.zeros((1, 1), mx.int32) if offset is None else mx.array(offset).reshape(1, 1))

    def _inputs(self, length: int) -> dict[str, Any]:
        inputs = dict(self._prompt.inputs)
        for name in _PER_TOKEN:
            if name in inputs:
                values = np.asarray(inputs[name])[:, :length]
                inputs[name] = np.pad(values, ((0, 0), (0, length - values.shape[1])))
        return dict(tree_map(lambda leaf: mx.array(leaf) if isinstance(leaf, np.ndarray) else leaf, inputs))


@attrs.define(eq=False, kw_only=True)
class VisionPrefill(Prefill):
    """The computation of one prompt with media."""

    language: Any
    ids: mx.array
    """Shape [1, L]."""
    embeddings: mx.array
    """Shape [1, L, D]."""
    options: dict[str, Any]
    """Further arguments of the language model, for the complete prompt; it slices them by the cache's length."""
    chunked: bool
    """Whether the prompt may be computed in chunks; False if tokens attend to later ones."""

    def advance(self, max_tokens: int) -> int:
        """Compute the next chunk, of at most ``max_tokens`` unless the prompt cannot be chunked; return its size."""
        last = len(self.tokens) - 1
        if self.position == last:
            return 0
        # If tokens attend to later ones, the last token is part of the chunk, and is then removed from the cache: like
        # any prompt's last token it is computed again in the first decoding step.
        whole = not self.chunked and self.network.attends_ahead
        end = len(self.tokens) if whole else min(self.position + max_tokens, last) if self.chunked else last
        size = end - self.position
        if size:
            positions = self.options.get("position_ids")
            # Models ignore these inputs unless they end with the chunk.
            options = {
                **self.options,
                **{name: self.options[name][:, :end] for name in _PER_TOKEN & self.options.keys()},
            }
            if positions is not None:
                options["position_ids"] = self._between(positions, end)
            self.network.remember(positions, self.options.get("rope_deltas"))
            self.language(
                self.ids[:, self.position : end],
                inputs_embeds=self.embeddings[:, self.position : end],
                cache=self.cache[:-1],
                n_to_process=size,
                logits_to_keep=1,
                **options,
            )
            if whole:
                for layer in self.cache:
                    layer.trim(1)
            mx.eval([kept_state(layer) for layer in self.cache])
            self.position = min(end, last)
        return size

    def _between(self, positions: mx.array, end: int) -> mx.array:
        """Return the positions of the next chunk, which all models take; most take those of the prompt as well."""
        axis = next((axis for axis in (-1, -2) if positions.shape[axis] == self.embeddings.shape[1]), None)
        if axis is None:
            return positions
        return positions[..., self.position : end] if axis == -1 else positions[..., self.position : end, :]


def _allows_chunks(
    parts: VisionParts, tokens: list[int], embeddings: mx.array, cache: list[Any], options: dict[str, Any]
) -> bool:
    """Whether the model allows this prompt to be computed in chunks."""
    holders = (parts.model, parts.language)
    for holder in holders:
        policy = getattr(holder, "chunked_prefill_policy", None)
        if callable(policy):
            verdict = policy(
                input_ids=mx.array([tokens]),
                inputs_embeds=embeddings,
                prompt_cache=cache[:-1],
                draft_model=None,
                draft_kind=None,
                prefill_kwargs=options,
            )
            return bool(getattr(verdict, "enabled", verdict))
    return not any(getattr(holder, "no_chunked_prefill", False) for holder in holders)
