"""Loading a vision model with mlx-vlm."""

import importlib.util
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from mlx_vlm import utils
from mlx_vlm.generate.diffusion import is_diffusion_model

from mlxk.adapters.mlx.compatibility import OWN_PROCESSORS, foreign_tokenizer
from mlxk.adapters.mlx.engine.prefill import Media
from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files import (
    CODE_KEYS,
    identity_of,
    loading_directory,
    offline,
    quietly,
    read_config,
    refuse_untrusted_code,
    require_regular,
)
from mlxk.adapters.mlx.loading.plain_kernels import run_without_metal
from mlxk.adapters.mlx.loading.text_model import LoadedModel, assemble, load_tokenizer
from mlxk.adapters.mlx.loading.widening import widen
from mlxk.adapters.mlx.prompting.detokenizer import disable_word_cache, unwrapped
from mlxk.adapters.mlx.prompting.templates import RenderedPrompt, RenderedText
from mlxk.adapters.mlx.vision import clips
from mlxk.adapters.mlx.vision.encoded import ENCODING, EncodedNetwork, EncodedPrompt, decoded
from mlxk.adapters.mlx.vision.encoder import FeatureCounters, with_cache
from mlxk.adapters.mlx.vision.network import VisionNetwork, VisionParts, VisionTemplate
from mlxk.adapters.mlx.vision.prefill import VisionPrompt
from mlxk.adapters.mlx.vision.prepared import SHARE, PreparedImages, WithoutTextOptions, with_prepared
from mlxk.adapters.mlx.vision.prompts import known_tokens, process_prompt, render_prompt
from mlxk.domain.errors import CapabilityError, IncompatibleModelError, UntrustedModelCodeError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.models.snapshot import has_default_template

_EXPANDING = frozenset({"granite_vision", "llava_next"})
"""Architectures whose number of features differs from the number of their processors' placeholder tokens."""

_TEXT_OPTIONS = frozenset({"llava"})
"""Architectures whose processors pass text options to the image processor."""


_ON_PYTORCH = {"phi4-siglip": "transformers.models.siglip2.image_processing_siglip2"}
"""By architecture, a module that mlx-vlm's processor imports and that itself cannot be imported without PyTorch."""


@attrs.frozen(eq=False)
class VisionProcessor:
    """Renders and processes the prompts of one vision-language model."""

    parts: VisionParts
    network: VisionNetwork
    prepared: PreparedImages | None = None

    def keep_features(self, max_bytes: int) -> None:
        """Set the size limit of the caches of features and processed images; on the owner thread."""
        if self.parts.encoder is not None:
            self.parts.encoder.kept_features.max_bytes = max_bytes
        if self.prepared is not None:
            self.prepared.kept.max_bytes = max_bytes // SHARE

    def over(self, model: Any) -> "VisionProcessor":  # noqa: ANN401 - mlx-vlm has no types to name
        """Return a copy for another network with the same encoder, such as the same model with an adapter."""
        parts = attrs.evolve(self.parts, model=model)
        return attrs.evolve(self, parts=parts, network=_network_of(parts))

    @property
    def features(self) -> FeatureCounters:
        """Counters of the feature cache; on any thread."""
        return FeatureCounters() if self.parts.encoder is None else self.parts.encoder.counters

    def render(self, request: GenerationRequest, model: LoadedModel) -> RenderedText | None:
        """Render the prompt of a request, on any thread. Raises as ``render_prompt``."""
        return render_prompt(request, model, self.parts)

    def process(
        self, request: GenerationRequest, model: LoadedModel, text: RenderedText | None
    ) -> tuple[RenderedPrompt, Media]:
        """Process the rendered prompt of a request; on the owner thread. Raises as ``process_prompt``."""
        rendered, processed = process_prompt(request, model, self.parts, text)
        if isinstance(self.network, EncodedNetwork):
            if not processed.identity and not ENCODING[self.parts.type]:
                fault = f"this model ({self.parts.type}) answers about an image only"
                raise CapabilityError.in_field("prompt" if text is None else "messages", fault, hint="Show one.")
            tokens = known_tokens(decoded(processed.tokens, self.parts.template), model)
            return attrs.evolve(rendered, tokens=tokens), EncodedPrompt(self.parts, self.network, processed)
        prompt = VisionPrompt(self.parts, self.network, processed)
        expands = self.parts.type in _EXPANDING or min(processed.tokens, default=0) < 0
        expands = expands or ("pixel_values_videos" in processed.inputs and clips.prunes(self.parts.template))
        if text is None or not processed.identity or not expands:
            return rendered, prompt
        expanded = processed.expanded(prompt.embedded_length())
        return text.with_tokens(known_tokens(expanded.tokens, model)), VisionPrompt(self.parts, self.network, expanded)


_NOT_AUTOREGRESSIVE = ("diffusion", "nemotron_labs")
"""Substrings of the names of architectures that do not decode token by token."""


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
    require_regular(handle)
    config = read_config(handle)
    _refuse_code(handle, config)
    refusal = foreign_tokenizer(str(config.get("model_type")))
    if refusal:
        raise UntrustedModelCodeError(f"{refusal}: '{handle.name}' is not loaded.")
    # mlx-vlm's patches of AutoProcessor stay: it makes them once for each architecture.
    with translated(handle, "has an architecture mlx-vlm does not know"), offline(), quietly():
        _substitute_pillow_processor(config.get("model_type"))
        model, processor = _load(handle)
        tokenizer = load_tokenizer(handle, _end_tokens(model, processor))
        _share_tokens(tokenizer, processor)
        _share_template(tokenizer, processor)
    _require_autoregressive(model, handle)
    widened_bytes = widen(model, form) if form.widened else None
    parts = VisionParts(model, processor, with_cache(model))
    network = _network_of(parts)
    loaded = assemble(
        handle, f"{identity_of(handle)}|{__name__}", network, tokenizer, config, widened_bytes=widened_bytes
    )
    encoded = isinstance(network, EncodedNetwork)
    if encoded:
        begin = unwrapped(tokenizer).bos_token_id  # the first token that such models generate
        loaded = attrs.evolve(loaded, decoder=loaded.decoder.without(begin))
    return attrs.evolve(
        loaded,
        vision=VisionProcessor(parts, network, with_prepared(processor)),
        # Not by ``LoadedModel``'s default rule, which is about mlx-lm's network of the same architecture.
        shares_batches=not encoded,
        encodes_prompts=ENCODING.get(parts.type, False),
    )


def _network_of(parts: VisionParts) -> VisionNetwork:
    return (EncodedNetwork if parts.type in ENCODING else VisionNetwork)(parts.language)


def load_template(handle: ModelHandle, config: Mapping[str, Any], tokenizer: Any) -> VisionTemplate:  # noqa: ANN401
    """Load the parts of a model that rendering needs, without its weights; on any thread.

    Args:
        handle: The model.
        config: The model's config.
        tokenizer: mlx-lm's wrapper, with the model's chat template.

    Raises:
        UntrustedModelCodeError: Loading would execute code that came with it.
        Exception: From the library, for ``translated``.
    """
    _refuse_code(handle, config)
    with offline(), quietly():
        _substitute_pillow_processor(config.get("model_type"))
        # Importing the architecture registers its processor.
        architecture, _ = utils.get_model_and_args(dict(config))
        parsed = architecture.ModelConfig.from_dict(dict(config))
        with loading_directory(handle) as directory:
            processor = utils.load_processor(str(directory), add_detokenizer=False, trust_remote_code=False)
    disable_word_cache(processor)
    _share_tokens(tokenizer, processor)
    _share_template(tokenizer, processor)
    return VisionTemplate(processor, parsed)


def _refuse_code(handle: ModelHandle, config: Mapping[str, Any]) -> None:
    own = str(config.get("model_type")).lower() in OWN_PROCESSORS
    refuse_untrusted_code(handle, ("model_file",) if own else CODE_KEYS)


def _load(handle: ModelHandle) -> tuple[Any, Any]:
    with loading_directory(handle) as directory:
        model, processor = utils.load(str(directory), trust_remote_code=False)
        _point_home(processor, directory, Path(handle.directory))
    run_without_metal(model)
    disable_word_cache(processor)
    if getattr(model.config, "model_type", None) in _TEXT_OPTIONS:
        processor.image_processor = WithoutTextOptions(processor.image_processor)
    return model, processor


def _point_home(processor: Any, view: Path, home: Path) -> None:  # noqa: ANN401
    """Replace paths in a temporary view of the model's directory, for processors that read files later."""
    for name, value in list(vars(processor).items()):
        if isinstance(value, Path) and value.is_relative_to(view):
            setattr(processor, name, home / value.relative_to(view))


def _substitute_pillow_processor(architecture: object) -> None:
    """Without PyTorch, register transformers' Pillow image processor under the module that mlx-vlm imports."""
    name = _ON_PYTORCH.get(str(architecture))
    if name is None or importlib.util.find_spec("torchvision") is not None:
        return
    package, _, module = name.rpartition(".")
    on_pillow = importlib.import_module(f"{package}.{module.replace('processing_', 'processing_pil_')}")
    substitute = types.ModuleType(name)
    vars(substitute)["Siglip2ImageProcessor"] = on_pillow.Siglip2ImageProcessorPil
    sys.modules[name] = substitute


def _share_tokens(tokenizer: Any, processor: Any) -> None:  # noqa: ANN401
    """Add the tokens to a tokenizer that mlx-vlm adds to the processor's, such as Florence-2's image locations."""
    ours, theirs = unwrapped(tokenizer), getattr(processor, "tokenizer", processor)
    added = sorted(getattr(theirs, "added_tokens_decoder", {}).items())
    if getattr(ours, "added_tokens_decoder", None) is not None:
        ours.add_tokens([token for index, token in added if index >= len(ours)])


def _share_template(tokenizer: Any, processor: Any) -> None:  # noqa: ANN401
    """Give the processor the model's chat template if mlx-vlm has found none."""
    inner = getattr(processor, "tokenizer", processor)
    existing = [getattr(holder, "chat_template", None) for holder in (processor, inner)]
    if not any(has_default_template(templates) for templates in existing):
        inner.chat_template = unwrapped(tokenizer).chat_template
        if existing[0] is not None:
            processor.chat_template = inner.chat_template


def _end_tokens(model: Any, processor: Any) -> list[int]:  # noqa: ANN401
    """Return the end-of-sequence tokens of the config, the tokenizer and the processor."""
    in_config = getattr(model.config, "eos_token_id", None)
    tokens = utils.resolve_eos_token_ids(in_config, getattr(processor, "tokenizer", processor))
    return [*tokens, *getattr(processor, "additional_eos_token_ids", ())]


def _require_autoregressive(model: Any, handle: ModelHandle) -> None:  # noqa: ANN401
    architecture = str(getattr(model.config, "model_type", "")).lower()
    diffuses = any(part in architecture for part in _NOT_AUTOREGRESSIVE) or is_diffusion_model(model)
    if not hasattr(model, "language_model") or diffuses:
        raise IncompatibleModelError(
            f"'{handle.name}' ({architecture}) does not write one token after another, which is all the engine can do."
        )
