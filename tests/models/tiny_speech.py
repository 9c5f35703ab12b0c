"""Tiny Whispers with random weights, and recordings to give them: made in a fraction of a second."""

import functools
import json
import math
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mlxk.domain.models.model import ModelHandle, Origin

RATE = 16_000
TEXTS = ("Hello world, how are you? It is a fine day. Yes, no, maybe; one two three.",) * 3
MULTILINGUAL_VOCABULARY = 51_865
LANGUAGES = ("en", "zh", "de", "es", "ru")
"""The first five of Whisper's; with fewer tokens for languages than 99, the others are never found."""


def build_whisper(directory: Path, *, multilingual: bool = False, seed: int = 0, scale: float = 3.0) -> ModelHandle:
    """Write a Whisper of two layers whose answers look like transcripts, with timestamps, of nonsense.

    Args:
        directory: Where; made if need be.
        multilingual: Whether it has tokens for languages and tasks; the file is then a hundred times as large.
        seed: Of the weights.
        scale: How much wider than usual the weights are drawn, so that what it hears makes a difference.
    """
    from mlx_audio.stt.models.whisper.whisper import Model, ModelDimensions

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(multilingual)
    config = {
        "model_type": "whisper",
        "num_mel_bins": 80,
        "max_source_positions": 1500,
        "max_target_positions": 64,
        "d_model": 16 if multilingual else 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "vocab_size": tokenizer.get_vocab_size(),
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "decoder_start_token_id": tokenizer.token_to_id("<|startoftranscript|>"),
    }
    mx.random.seed(seed)
    model = Model(ModelDimensions.from_dict(config), mx.float32)
    model.decoder.positional_embedding = mx.random.normal(model.decoder.positional_embedding.shape)
    weights = {
        name: value * scale if value.ndim > 1 else value
        for name, value in tree_flatten(model.parameters())
        if not any(part.startswith("_") for part in name.split("."))
    }
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write(directory / "config.json", config)
    _write_processor(directory, tokenizer, multilingual)
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def build_moonshine(directory: Path, seed: int = 0) -> ModelHandle:
    """Write a Moonshine of one layer, a family without windows and timestamps."""
    from mlx_audio.stt.models.moonshine import Model, ModelConfig

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(False)
    config = {
        "model_type": "moonshine",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 32,
        "encoder_num_hidden_layers": 1,
        "decoder_num_hidden_layers": 1,
        "encoder_num_attention_heads": 2,
        "decoder_num_attention_heads": 2,
        "eos_token_id": 299,
    }
    mx.random.seed(seed)
    model = Model(ModelConfig.from_dict(config))
    # As Hugging Face stores convolutions: mlx-audio turns them round.
    weights = {
        name: value.transpose(0, 2, 1) if "conv" in name and value.ndim == 3 else value
        for name, value in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write(directory / "config.json", config)
    _write_processor(directory, tokenizer, multilingual=False)
    _write(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def write_wav(path: Path, samples: Sequence[float] | np.ndarray[Any, Any], rate: int = RATE) -> Path:
    """Write samples from -1 to 1 as 16-bit WAV."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.clip(np.rint(np.asarray(samples) * 32767), -32768, 32767).astype("<i2").tobytes())
    return path


def murmur(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray[Any, Any]:
    """Return sound with something like syllables in it."""
    chance = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 40 * np.sin(2 * math.pi * 0.7 * time + chance.uniform(0, 6))
    voice = np.sin(2 * math.pi * np.cumsum(pitch) / rate) + 0.5 * np.sin(4 * math.pi * np.cumsum(pitch) / rate)
    syllables = np.clip(np.sin(2 * math.pi * 3.1 * time + chance.uniform(0, 6)), 0, 1)
    return (0.3 * voice * syllables + 0.005 * chance.standard_normal(len(time))).astype(np.float32)


@functools.cache
def _tokenizer(multilingual: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    languages = [f"<|{code}|>" for code in LANGUAGES] if multilingual else ["<|en|>"]
    tasks = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    control = ["<|endoftext|>", "<|startoftranscript|>", *languages, *tasks]
    if multilingual:
        filling = MULTILINGUAL_VOCABULARY - tokenizer.get_vocab_size() - len(control) - 1501
        tokenizer.add_tokens([AddedToken(f"<unused{index}>") for index in range(filling)])
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>", normalized=False) for step in range(1501)])
    return tokenizer


def _write_processor(directory: Path, tokenizer: Tokenizer, multilingual: bool) -> None:
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    end = "<|endoftext|>"
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "WhisperTokenizer",
            "bos_token": end,
            "eos_token": end,
            "pad_token": end,
            "unk_token": end,
            "model_max_length": 64,
        },
    )
    _write(
        directory / "preprocessor_config.json",
        {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80},
    )
    _write(directory / "generation_config.json", {"is_multilingual": multilingual})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
