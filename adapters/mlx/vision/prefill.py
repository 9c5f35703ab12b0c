"""Computing a prompt with images and sound: taken in once, then read piece by piece like any other.

A tower's look is one piece, however long it takes, and so is listening. What it saw or heard takes the place of the
media's tokens; from there on the language model reads embeddings instead of tokens. Where all of that is in the cache
already, nothing is looked at or heard.
"""

from typing import Any

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.engine.prefill import Media, Prefill
from mlxk.adapters.mlx.loading.text_model import LoadedModel
from mlxk.adapters.mlx.prompting.templates import RenderedPrompt
from mlxk.adapters.mlx.vision.network import RowFeatures, RowPositions, VisionNetwork, VisionParts
from mlxk.adapters.mlx.vision.prompts import ProcessedPrompt, process_prompt
from mlxk.domain.generation.request import GenerationRequest

_ALIGNED = ("mm_token_type_ids", "token_type_ids")
"""What processors say of each token; tokens that were generated count as text, which is 0."""

_EVERY_STEP = ("cross_attention_states",)
_FIRST_STEP = ("cross_attention_mask", "full_text_row_masked_out_mask")


@attrs.frozen(eq=False)
class VisionProcessor:
    """Turns the prompts of one vision-language model into media to prefill."""

    parts: VisionParts
    network: VisionNetwork

    def process(self, request: GenerationRequest, model: LoadedModel) -> tuple[RenderedPrompt, Media]:
        """Render and process the prompt of a request; on the owner thread. Raises what ``process_prompt`` raises."""
        rendered, processed = process_prompt(request, model, self.parts)
        return rendered, VisionPrompt(self.parts, self.network, processed)


class VisionPrompt(Media):
    """What one prompt shows and plays.

    Args:
        parts: The model.
        network: What steps it.
        prompt: The processed prompt.
    """

    def __init__(self, parts: VisionParts, network: VisionNetwork, prompt: ProcessedPrompt) -> None:
        self.identity = prompt.identity
        self._parts = parts
        self._network = network
        self._prompt = prompt

    def prefill(self, tokens: list[int], cache: list[Any], position: int) -> Prefill:
        """Look, and begin to read; see the protocol."""
        read = [*self._prompt.tokens, *tokens[len(self._prompt.tokens) :]]
        # Features that every step looks at are not in the keys and values: they have to be had again.
        seen = position > self._prompt.last_media and isinstance(cache[-1], RowPositions)
        given = self._given(read, seen)
        embeddings = given.pop("inputs_embeds")
        cache[-1] = self._riding(given)
        whole = not _may_be_divided(self._parts, read, embeddings, cache, given)
        mx.eval(embeddings)
        return VisionPrefill(
            network=self._network,
            tokens=tokens,
            cache=cache,
            position=position,
            language=self._parts.language,
            ids=mx.array([read]),
            embeddings=embeddings,
            given=given,
            whole=whole,
        )

    def _given(self, read: list[int], seen: bool) -> dict[str, Any]:
        """Return what the language model takes, by name: embeddings of the whole prompt, and what goes with them.

        Args:
            read: The tokens.
            seen: Whether images and sound are in the cache already, as keys and values.
        """
        ids = mx.array([read])
        mask = mx.ones_like(ids)
        inputs = self._inputs(len(read))
        pixels = inputs.pop("pixel_values", None)
        positions = None
        if self.identity and seen:
            positions = self._positions(ids, inputs)
        if not self.identity or positions is not None:
            found = self._parts.model.get_input_embeddings(ids, None, mask=mask)
            inputs = {}
        elif self._parts.tower is None:
            found = self._parts.model.get_input_embeddings(ids, pixels, mask=mask, **inputs)
        else:
            with self._parts.tower.showing(self.identity):
                found = self._parts.model.get_input_embeddings(ids, pixels, mask=mask, **inputs)
        known = {name: value for name, value in found.to_dict().items() if value is not None}
        return {**inputs, **known, **(positions or {})}

    def _positions(self, ids: mx.array, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """Return the positions of a prompt whose images are in the cache; None when they have to be looked at anew."""
        if not self._network.has_positions:
            return {}
        if "input_features" in inputs:
            return None  # how far a sound moves positions is known to who hears it only
        index = getattr(self._parts.language, "get_rope_index", None)
        if index is None:
            return None
        places, distance = index(ids, inputs.get("image_grid_thw"), inputs.get("video_grid_thw"), mx.ones_like(ids))
        return {"position_ids": places, "rope_deltas": distance}

    def _riding(self, given: dict[str, Any]) -> RowPositions | RowFeatures:
        """Return what rides along with the cache."""
        always = {name: given[name] for name in _EVERY_STEP if name in given}
        if always:
            return RowFeatures(always, {name: given[name] for name in _FIRST_STEP if name in given})
        if not self._network.has_positions:
            return RowPositions()
        distance = given.get("rope_deltas")
        return RowPositions(mx.zeros((1, 1), mx.int32) if distance is None else mx.array(distance).reshape(1, 1))

    def _inputs(self, length: int) -> dict[str, Any]:
        import numpy as np
        from mlx.utils import tree_map

        inputs = dict(self._prompt.inputs)
        for name in _ALIGNED:
            if name in inputs:
                said = np.asarray(inputs[name])
                inputs[name] = np.pad(said, ((0, 0), (0, length - said.shape[1])))
        found: dict[str, Any] = tree_map(lambda leaf: mx.array(leaf) if isinstance(leaf, np.ndarray) else leaf, inputs)
        return found


@attrs.define(eq=False, kw_only=True)
class VisionPrefill(Prefill):
    """One prompt with images on its way into a cache."""

    language: Any
    ids: mx.array
    """Shape [1, L]."""
    embeddings: mx.array
    """Shape [1, L, D]."""
    given: dict[str, Any]
    """What else the language model takes, for the whole prompt; it finds its place by the cache."""
    whole: bool
    """Whether the prompt has to be read at once, since tokens in it look ahead."""

    def advance(self, most: int) -> int:
        """Compute the next tokens, at most so many unless they belong together; return how many they were."""
        last = len(self.tokens) - 1
        end = last if self.whole else min(self.position + most, last)
        size = end - self.position
        if size:
            self.language(
                inputs=self.ids[:, self.position : end],
                inputs_embeds=self.embeddings[:, self.position : end],
                cache=self.cache[:-1],
                n_to_process=size,
                logits_to_keep=1,
                **self.given,
            )
            mx.eval([layer.state for layer in self.cache])
            self.position = end
        return size


def _may_be_divided(
    parts: VisionParts, read: list[int], embeddings: mx.array, cache: list[Any], given: dict[str, Any]
) -> bool:
    """Whether a prompt may be read in pieces; the model says when its tokens look ahead."""
    holders = (parts.model, parts.language)
    for holder in holders:
        policy = getattr(holder, "chunked_prefill_policy", None)
        if callable(policy):
            verdict = policy(
                input_ids=mx.array([read]),
                inputs_embeds=embeddings,
                prompt_cache=cache[:-1],
                draft_model=None,
                draft_kind=None,
                prefill_kwargs=given,
            )
            return bool(getattr(verdict, "enabled", verdict))
    return not any(getattr(holder, "no_chunked_prefill", False) for holder in holders)
