"""Loading a vision model with mlx-vlm, and the prefill of prompts with images and audio.

Media are encoded once, in one step of the engine, however long it takes; then the prompt is computed in chunks like
any other. The features replace the embeddings of the media tokens, and the language model computes embeddings instead
of tokens. Where all media are in the KV cache already, nothing is encoded.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_vlm import utils

from mlxk.adapters.mlx.compatibility import foreign_tokenizer
from mlxk.adapters.mlx.engine.prefill import Media, Prefill
from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files import (
    loading_directory,
    offline,
    quietly,
    read_config,
    refuse_untrusted_code,
)
from mlxk.adapters.mlx.loading.text_model import LoadedModel, assemble, identity_of, load_tokenizer
from mlxk.adapters.mlx.loading.widening import widen
from mlxk.adapters.mlx.prompting.detokenizer import disable_word_cache, unwrapped
from mlxk.adapters.mlx.prompting.templates import RenderedPrompt, RenderedText
from mlxk.adapters.mlx.vision.network import (
    FeatureCounters,
    RowFeatures,
    RowPositions,
    VisionNetwork,
    VisionParts,
    VisionTemplate,
    with_cache,
)
from mlxk.adapters.mlx.vision.prepared import SHARE, PreparedImages, with_prepared
from mlxk.adapters.mlx.vision.prompts import ProcessedPrompt, known_tokens, process_prompt, render_prompt
from mlxk.domain.errors import IncompatibleModelError, UntrustedModelCodeError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.models.snapshot import has_default_template

_PER_TOKEN = ("mm_token_type_ids", "token_type_ids")
"""Inputs with one value a token; generated tokens are text, which is 0."""

_EXPANDING = frozenset({"granite_vision", "llava_next"})
"""Architectures with another number of features than their processors have tokens, all of them known."""

_TEXT_OPTIONS = frozenset({"llava"})
"""Architectures whose processors pass options of the text to the image processor."""

_SHOWN_TO_ALL = frozenset({"mllama"})
"""Architectures whose media are no tokens: every token attends to their features."""

_EVERY_STEP = ("cross_attention_states",)
_FIRST_STEP = ("cross_attention_mask", "full_text_row_masked_out_mask")


@attrs.frozen(eq=False)
class VisionProcessor:
    """Processes the prompts of one vision-language model into media to prefill."""

    parts: VisionParts
    network: VisionNetwork
    prepared: PreparedImages | None = None

    def keep_features(self, max_bytes: int) -> None:
        """Keep the features of images for later prompts, within a size; on the owner thread."""
        if self.parts.encoder is not None:
            self.parts.encoder.kept_features.max_bytes = max_bytes
        if self.prepared is not None:
            self.prepared.kept.max_bytes = max_bytes // SHARE

    @property
    def features(self) -> FeatureCounters:
        """What the cache of features did; on any thread."""
        return FeatureCounters() if self.parts.encoder is None else self.parts.encoder.counters

    def render(self, request: GenerationRequest, model: LoadedModel) -> RenderedText | None:
        """Render the prompt of a request, on any thread. Raises as ``render_prompt``."""
        return render_prompt(request, model, self.parts)

    def process(
        self, request: GenerationRequest, model: LoadedModel, text: RenderedText | None
    ) -> tuple[RenderedPrompt, Media]:
        """Process the rendered prompt of a request; on the owner thread. Raises as ``process_prompt``."""
        rendered, processed = process_prompt(request, model, self.parts, text)
        prompt = VisionPrompt(self.parts, self.network, processed)
        expands = self.parts.type in _EXPANDING or min(processed.tokens, default=0) < 0
        if text is None or not processed.identity or not expands:
            return rendered, prompt
        expanded = processed.expanded(prompt.embedded_length())
        return text.with_tokens(known_tokens(expanded.tokens, model)), VisionPrompt(self.parts, self.network, expanded)


class VisionPrompt(Media):
    """The media of one prompt.

    Args:
        parts: The model.
        network: Its language model.
        prompt: The processed prompt.
    """

    def __init__(self, parts: VisionParts, network: VisionNetwork, prompt: ProcessedPrompt) -> None:
        self.shown = prompt.shown
        # Expanded, the tokens do not tell what stands between images.
        exact = parts.type in _SHOWN_TO_ALL or len(prompt.given) != len(prompt.tokens)
        self.kind = prompt.identity if exact else ""
        if network.attends_ahead or not network.takes_positions:
            # What was computed depends on the whole prompt, or the rest cannot be given its positions.
            self.kind += f"#whole={hashlib.sha256(repr(prompt.tokens).encode()).hexdigest()}"
        self._parts = parts
        self._network = network
        self._prompt = prompt

    def embedded_length(self) -> int:
        """Encode the media, and return how many embeddings the prompt has."""
        return int(self._options(list(self._prompt.given), cached=False)["inputs_embeds"].shape[1])

    def prefill(self, tokens: list[int], cache: list[Any], position: int) -> Prefill:
        """Encode the media, and begin the prefill."""
        # Features that every step attends to are not in the keys and values: they are computed again.
        cached = position > self._prompt.last_media and isinstance(cache[-1], RowPositions)
        generated = tokens[len(self._prompt.tokens) :]
        ids = [*self._prompt.tokens, *generated]
        options = self._options(tokens if cached else [*self._prompt.given, *generated], cached)
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
            cached: Whether the keys and values of all media are in the cache already.
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
            found = self._parts.model.get_input_embeddings(ids, None, mask=mask)
            inputs = {}
        else:
            found = self._parts.model.get_input_embeddings(ids, pixels, mask=mask, **inputs)
        known = {name: value for name, value in found.to_dict().items() if value is not None}
        stated = {**self._network.remembered(), **inputs, **known, **(positions or {})}
        # Without, a language model would number the rest of a prompt that is cached in part from the start.
        if self._network.has_positions and stated.get("position_ids") is None:
            stated |= self._positions(ids, inputs) or {}
        return stated

    def _positions(self, ids: mx.array, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """Return the positions of a prompt by what the processor says; None when they depend on the features."""
        if not self._network.has_positions:
            return {}
        if "input_features" in inputs:
            return None  # the number of positions of audio depends on its features
        index = getattr(self._parts.language, "get_rope_index", None)
        if index is None:
            return None
        try:
            found = index(ids, inputs.get("image_grid_thw"), inputs.get("video_grid_thw"), mx.ones_like(ids))
        except AttributeError:  # one of another family's, without tokens of its own: the whole model has the positions
            return None
        positions, offset = found
        return {"position_ids": positions, "rope_deltas": offset}

    def _last_layer(self, options: dict[str, Any]) -> RowPositions | RowFeatures:
        """Return the additional layer of the cache, with the position offsets or the features of every step."""
        always = {name: options[name] for name in _EVERY_STEP if name in options}
        if always or self._network.attends_ahead:  # the latter mask no padding of shorter rows
            return RowFeatures(always, {name: options[name] for name in _FIRST_STEP if name in options})
        if not self._network.has_positions:
            return RowPositions()
        offset = options.get("rope_deltas")
        return RowPositions(mx.zeros((1, 1), mx.int32) if offset is None else mx.array(offset).reshape(1, 1))

    def _inputs(self, length: int) -> dict[str, Any]:
        inputs = dict(self._prompt.inputs)
        for name in _PER_TOKEN:
            if name in inputs:
                values = np.asarray(inputs[name])
                inputs[name] = np.pad(values, ((0, 0), (0, length - values.shape[1])))
        found: dict[str, Any] = tree_map(lambda leaf: mx.array(leaf) if isinstance(leaf, np.ndarray) else leaf, inputs)
        return found


@attrs.define(eq=False, kw_only=True)
class VisionPrefill(Prefill):
    """The computation of one prompt with media."""

    language: Any
    ids: mx.array
    """Shape [1, L]."""
    embeddings: mx.array
    """Shape [1, L, D]."""
    options: dict[str, Any]
    """Other keyword arguments of the language model, for the complete prompt; it slices them by the cache's length."""
    chunked: bool
    """Whether the prompt may be computed in chunks; False when tokens attend to later ones."""

    def advance(self, max_tokens: int) -> int:
        """Compute the next chunk of at most so many tokens, or the complete prompt; return its size."""
        last = len(self.tokens) - 1
        if self.position == last:
            return 0
        # Where tokens attend to later ones, the last one is computed with the others, and then once more as any other.
        whole = not self.chunked and self.network.attends_ahead
        end = len(self.tokens) if whole else min(self.position + max_tokens, last) if self.chunked else last
        size = end - self.position
        if size:
            positions = self.options.get("position_ids")
            options = (
                {**self.options, "position_ids": self._between(positions, end)}
                if positions is not None
                else self.options
            )
            self.network.remember(positions, self.options.get("rope_deltas"))
            self.language(
                inputs=self.ids[:, self.position : end],
                inputs_embeds=self.embeddings[:, self.position : end],
                cache=self.cache[:-1],
                n_to_process=size,
                logits_to_keep=1,
                **options,
            )
            if whole:
                for layer in self.cache:
                    layer.trim(1)
            mx.eval([layer.state for layer in self.cache])
            self.position = min(end, last)
        return size

    def _between(self, positions: mx.array, end: int) -> mx.array:
        """Return the positions of the next chunk: most models take those of the prompt, all take these."""
        axis = next((axis for axis in (-1, -2) if positions.shape[axis] == self.embeddings.shape[1]), None)
        if axis is None:
            return positions
        found = positions[..., self.position : end] if axis == -1 else positions[..., self.position : end, :]
        return found


def _allows_chunks(
    parts: VisionParts, tokens: list[int], embeddings: mx.array, cache: list[Any], options: dict[str, Any]
) -> bool:
    """Whether the model allows a chunked prefill of a prompt."""
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


_NOT_AUTOREGRESSIVE = ("diffusion", "florence", "nemotron_parse", "nemotron_labs")
"""Substrings of the architectures that do not decode token by token, or have a decoder of their own."""


def load_vision_model(handle: ModelHandle, form: WeightForm = WeightForm.STORED) -> LoadedModel:
    """Load a model.

    Args:
        handle: The model.
        form: How to hold its weights.

    Raises:
        UntrustedModelCodeError: Loading would execute code that came with it.
        UnhealthyModelError: Files are missing or damaged.
        IncompatibleModelError: mlx-vlm knows no such architecture, or the engine cannot step it.
        BackendNotInstalledError: A package that this architecture needs is not installed.
        ExecutionError: Loading failed for another reason, such as lack of memory.
    """
    refuse_untrusted_code(handle)
    config = read_config(handle)
    refusal = foreign_tokenizer(str(config.get("model_type")))
    if refusal:
        raise UntrustedModelCodeError(f"{refusal}: '{handle.name}' is not loaded.")
    # mlx-vlm patches AutoProcessor once for each architecture; undoing that would break the next load.
    with translated(handle, "has an architecture mlx-vlm does not know"), offline(), quietly():
        model, processor = _load(handle)
        tokenizer = load_tokenizer(handle, _end_tokens(model, processor))
        _share_template(tokenizer, processor)
    _require_autoregressive(model, handle)
    held = widen(model, form) if form.widened else None
    parts = VisionParts(model, processor, with_cache(model))
    network = VisionNetwork(parts.language)
    loaded = assemble(handle, f"{identity_of(handle)}|{__name__}", network, tokenizer, config, held=held)
    return attrs.evolve(loaded, vision=VisionProcessor(parts, network, with_prepared(processor)))


def load_template(handle: ModelHandle, config: Mapping[str, Any], tokenizer: Any) -> VisionTemplate:  # noqa: ANN401
    """Load what rendering needs of a model, without its weights; on any thread.

    Args:
        handle: The model.
        config: Of the model.
        tokenizer: mlx-lm's wrapper, with the model's chat template.

    Raises:
        UntrustedModelCodeError: Loading would execute code that came with it.
        Exception: The library's, for ``translated``.
    """
    refuse_untrusted_code(handle)
    with offline(), quietly():
        # Importing the architecture registers its processor.
        architecture, _ = utils.get_model_and_args(dict(config))
        parsed = architecture.ModelConfig.from_dict(dict(config))
        with loading_directory(handle) as directory:
            processor = utils.load_processor(str(directory), add_detokenizer=False, trust_remote_code=False)
    disable_word_cache(processor)
    _share_template(tokenizer, processor)
    return VisionTemplate(processor, parsed)


def _load(handle: ModelHandle) -> tuple[Any, Any]:
    with loading_directory(handle) as directory:
        model, processor = utils.load(str(directory), trust_remote_code=False)
    disable_word_cache(processor)
    if getattr(model.config, "model_type", None) in _TEXT_OPTIONS:
        processor.image_processor = _ImageProcessor(processor.image_processor)
    return model, processor


class _ImageProcessor:
    """Drops the options of the text, which processors of transformers refuse and mlx-vlm's pass on.

    Args:
        wrapped: Of transformers.
    """

    def __init__(self, wrapped: Any) -> None:  # noqa: ANN401
        self._wrapped = wrapped

    def __call__(self, images: Any, **options: Any) -> Any:  # noqa: ANN401
        """Return what it makes of images."""
        return self._wrapped(images, **{name: value for name, value in options.items() if name != "padding"})

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Delegate everything else."""
        return getattr(self._wrapped, name)


def _share_template(tokenizer: Any, processor: Any) -> None:  # noqa: ANN401
    """Give the processor the model's chat template where mlx-vlm has found none."""
    inner = getattr(processor, "tokenizer", processor)
    found = [getattr(holder, "chat_template", None) for holder in (processor, inner)]
    if not any(has_default_template(templates) for templates in found):
        inner.chat_template = unwrapped(tokenizer).chat_template
        if found[0] is not None:
            processor.chat_template = inner.chat_template


def _end_tokens(model: Any, processor: Any) -> list[int]:  # noqa: ANN401
    """Return the end-of-sequence tokens of the config, the tokenizer and the processor."""
    stated = getattr(model.config, "eos_token_id", None)
    found = utils.resolve_eos_token_ids(stated, getattr(processor, "tokenizer", processor))
    return [*found, *getattr(processor, "additional_eos_token_ids", ())]


def _require_autoregressive(model: Any, handle: ModelHandle) -> None:  # noqa: ANN401
    named = str(getattr(model.config, "model_type", "")).lower()
    if not hasattr(model, "language_model") or any(part in named for part in _NOT_AUTOREGRESSIVE):
        raise IncompatibleModelError(
            f"'{handle.name}' ({named}) does not write one token after another, which is all the engine can do."
        )
