"""Tiny models of architectures that see and hear; as those of ``tiny_vision``."""

import copy
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from models.tiny_vision import write_model
from models.vision_tokenizer import tokenizer_with

from mlxk.domain.models.model import ModelHandle

OMNI: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("omni_families.json").read_text(encoding="utf-8"))
"""What the files of each architecture say, by which tokens it marks images and sounds, and what is shown of it."""

_THINKERS_TOKENS = {
    "audio_end_token_id": "<|audio_end|>",
    "audio_start_token_id": "<|audio_start|>",
    "audio_token_id": "<|audio_pad|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_end_token_id": "<|vision_end|>",
    "vision_start_token_id": "<|vision_start|>",
}


def build_omni(directory: Path, architecture: str, seed: int = 3) -> ModelHandle:
    """Write a model and return its handle.

    Args:
        directory: Where; made if need be.
        architecture: One of ``OMNI``.
        seed: Of the weights.
    """
    wanted = OMNI[architecture]
    if "codec" in wanted:
        _write_codec(directory / "audio_tokenizer", wanted["codec"], seed)
    if "thinker" not in wanted:
        return write_model(directory, wanted, seed, model_type=architecture)
    tokenizer = tokenizer_with(tuple(wanted["named"].values()), ())
    thinker = copy.deepcopy(wanted["thinker"])
    thinker |= {name: tokenizer.token_to_id(token) for name, token in _THINKERS_TOKENS.items()}
    thinker["text_config"]["vocab_size"] = tokenizer.get_vocab_size()
    # The one that writes speech is not loaded, but read.
    parts = {"code2wav_config": {}, "talker_config": wanted["talker"], "thinker_config": thinker}
    return write_model(directory, wanted, seed, model_type=architecture, **parts)


def _write_codec(directory: Path, settings: dict[str, Any], seed: int) -> None:
    """Write the model that makes tokens of sounds, which lies in a folder of its own."""
    from mlx_audio.codec.models.mimo_audio_tokenizer.config import ModelConfig
    from mlx_audio.codec.models.mimo_audio_tokenizer.model import MiMoAudioTokenizer

    directory.mkdir(parents=True)
    mx.random.seed(seed)
    weights = dict(tree_flatten(MiMoAudioTokenizer(ModelConfig.from_dict(settings)).parameters()))
    mx.save_safetensors(str(directory / "model.safetensors"), weights)
    (directory / "config.json").write_text(json.dumps(settings))
