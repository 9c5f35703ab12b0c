"""Loading a vision model with mlx-vlm, and the cache of vision-encoder outputs."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from mlx_vlm import utils
from transformers.utils import logging

from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.loaded_model import LoadedModel, identity_of
from mlxk.adapters.mlx.loading.text_model import assemble, has_default_template, load_tokenizer, read_config
from mlxk.adapters.mlx.loading.untrusted_code import offline, refuse_untrusted_code
from mlxk.adapters.mlx.loading.weights_on_disk import loading_directory
from mlxk.adapters.mlx.prompting.detokenizer import disable_word_cache, unwrapped
from mlxk.adapters.mlx.vision import encoder_cache
from mlxk.adapters.mlx.vision.network import VisionNetwork, VisionParts, VisionTemplate
from mlxk.adapters.mlx.vision.prefill import VisionProcessor
from mlxk.domain.errors import (
    CapabilityError,
    IncompatibleModelError,
)
from mlxk.domain.models.model import ModelHandle

_NOT_AUTOREGRESSIVE = ("diffusion", "florence", "nemotron_parse", "nemotron_labs")
"""Substrings of the architectures that do not decode token by token, or have a decoder of their own."""


def load_vision_model(handle: ModelHandle, adapter: str | None = None) -> LoadedModel:
    """Load a model.

    Args:
        handle: The model.
        adapter: Refused: mlx-vlm's adapters differ from mlx-lm's.

    Raises:
        UntrustedModelCodeError: Loading would execute code that came with it.
        UnhealthyModelError: Files are missing or damaged.
        IncompatibleModelError: mlx-vlm knows no such architecture, or the engine cannot step it.
        CapabilityError: An adapter is given.
        BackendNotInstalledError: A package that this architecture needs is not installed.
        ExecutionError: Loading failed for another reason, such as lack of memory.
    """
    if adapter is not None:
        raise CapabilityError("adapter: models that look at images take no adapter.")
    refuse_untrusted_code(handle)
    config = read_config(handle)
    # mlx-vlm patches AutoProcessor once for each architecture; undoing that would break the next load.
    with translated(handle, "has an architecture mlx-vlm does not know"), offline(), _quietly():
        model, processor = _load(handle)
        tokenizer = load_tokenizer(handle, _end_tokens(model, processor))
        _share_template(tokenizer, processor)
    _require_autoregressive(model, handle)
    parts = VisionParts(model, processor, encoder_cache.install(model))
    network = VisionNetwork(parts.language)
    loaded = assemble(handle, f"{identity_of(handle)}|{__name__}", network, tokenizer, config)
    return attrs.evolve(loaded, vision=VisionProcessor(parts, network))


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
    with offline(), _quietly():
        # Importing the architecture registers its processor.
        architecture, _ = utils.get_model_and_args(dict(config))
        parsed = architecture.ModelConfig.from_dict(dict(config))
        with loading_directory(handle) as directory:
            processor = utils.load_processor(str(directory), add_detokenizer=False, trust_remote_code=False)
    disable_word_cache(processor)
    _share_template(tokenizer, processor)
    return VisionTemplate(processor, parsed)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress transformers' warnings about configs on standard error."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(before)


def _load(handle: ModelHandle) -> tuple[Any, Any]:
    with loading_directory(handle) as directory:
        model, processor = utils.load(str(directory), trust_remote_code=False)
    disable_word_cache(processor)
    return model, processor


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
