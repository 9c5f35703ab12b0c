"""Tiny voices with random weights, which speak noise: made in a fraction of a second."""

import copy
import functools
import importlib
import json
import math
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mlxk.domain.models.model import ModelHandle, Origin

SOPRANO_RATE, QWEN_RATE, VOXCPM_RATE, VOXCPM2_RATE = 32_000, 24_000, 16_000, 32_000
CODES = 64
END_OF_CODES = 100
SAMPLES_PER_TOKEN = 160
SPEAKERS = ("ryan", "vivian")

_SPEAKER_ENCODER = {
    "enc_dim": 32,
    "enc_channels": [72, 72, 72],  # as of the codec below
    "enc_kernel_sizes": [5, 3, 1],
    "enc_dilations": [1, 2, 1],
    "enc_attention_channels": 72,
    "enc_res2net_scale": 2,
    "enc_se_channels": 72,
}
"""Of a Qwen3-TTS."""

Weights = dict[str, mx.array]

_TEXTS = ("Hello world, how are you? It is a fine day. Yes, no, maybe; one two three.",) * 3


def build_soprano(directory: Path, seed: int = 0) -> ModelHandle:
    """Write a Soprano of one layer, which has one voice without a name and divides texts by itself."""
    from mlx_audio.tts.models.soprano.soprano import Model, ModelConfig

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer("[STOP]", "[TEXT]", "[START]")
    config = {
        "model_type": "soprano",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "vocab_size": tokenizer.get_vocab_size(),
        "rope_theta": 10_000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "sample_rate": SOPRANO_RATE,
    }
    mx.random.seed(seed)
    model = Model(ModelConfig.from_dict({**config, "model_path": str(directory)}))
    _end_soon(model.language_model.embed_tokens, model.language_model.lm_head, tokenizer.token_to_id("[STOP]"))
    _save(directory, model, config, tokenizer, "[STOP]")
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def build_qwen3_tts(directory: Path, kind: str = "custom_voice", seed: int = 0, tokens: int = 5) -> ModelHandle:
    """Write a Qwen3-TTS of one layer, with its codec in a folder of its own.

    Args:
        directory: Where; made if need be.
        kind: ``custom_voice`` has named voices, ``voice_design`` makes one from a description, ``base`` imitates those
            of recordings.
        seed: Of the weights.
        tokens: Of a sentence, in the mean; one that divides 100.
    """
    from mlx_audio.tts.models.qwen3_tts.qwen3_tts import Model, ModelConfig

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer("<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_bos>", "<tts_eos>")
    vocabulary = tokenizer.get_vocab_size()
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 1, "head_dim": 16, "num_code_groups": 4}
    scaling = {"interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"}
    config = {
        "model_type": "qwen3_tts",
        "tts_model_type": kind,
        "tts_model_size": "0b6",
        "im_start_token_id": tokenizer.token_to_id("<|im_start|>"),
        "im_end_token_id": tokenizer.token_to_id("<|im_end|>"),
        "tts_pad_token_id": tokenizer.token_to_id("<tts_pad>"),
        "tts_bos_token_id": tokenizer.token_to_id("<tts_bos>"),
        "tts_eos_token_id": tokenizer.token_to_id("<tts_eos>"),
        "sample_rate": QWEN_RATE,
        "speaker_encoder_config": _SPEAKER_ENCODER,
        "talker_config": {
            **small,
            "vocab_size": CODES + 1024,  # the last 1024 are no sound
            "text_hidden_size": 32,
            "text_vocab_size": vocabulary,
            "rope_scaling": scaling,
            "codec_eos_token_id": END_OF_CODES,
            "codec_think_id": 101,
            "codec_nothink_id": 102,
            "codec_think_bos_id": 103,
            "codec_think_eos_id": 104,
            "codec_pad_id": 105,
            "codec_bos_id": 106,
            "codec_language_id": {"english": 107},
            "spk_id": {name: 110 + index for index, name in enumerate(SPEAKERS)} if kind == "custom_voice" else {},
            "spk_is_dialect": dict.fromkeys(SPEAKERS, False),
            "code_predictor_config": {**small, "vocab_size": CODES},
        },
    }
    mx.random.seed(seed)
    model = Model(ModelConfig.from_dict(config))
    _end_soon(model.talker.model.codec_embedding, model.talker.codec_head, END_OF_CODES, tokens)
    _save(directory, model, config, tokenizer, "<|im_end|>", Model.sanitize)
    _write_codec(directory / "speech_tokenizer", hears=kind == "base")
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def build_voxcpm(directory: Path, version: int = 1, seed: int = 0) -> ModelHandle:
    """Write a VoxCPM of one layer, which makes seven patches of sound of every text.

    Args:
        directory: Where; made if need be.
        version: 1 hears and speaks at one sample rate, 2 at two of them.
        seed: Of the weights.
    """
    module = importlib.import_module("mlx_audio.tts.models." + ("voxcpm" if version == 1 else "voxcpm2"))
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer("<s>", "</s>")
    layers = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    scaling = {"type": "longrope", "long_factor": [1.0] * 8, "short_factor": [1.0] * 8}
    part = {"hidden_dim": 32, "ffn_dim": 32, "num_heads": 2, "num_layers": 1}
    codec: dict[str, object] = {"encoder_dim": 8, "encoder_rates": [8, 10], "latent_dim": 8, "decoder_dim": 32}
    codec |= {"decoder_rates": [10, 8], "sample_rate": VOXCPM_RATE}
    if version == 2:
        codec |= {"decoder_rates": [10, 16], "out_sample_rate": VOXCPM2_RATE, "cond_dim": 8}
    config = {
        "model_type": "voxcpm" if version == 1 else "voxcpm2",
        "lm_config": {
            **layers,
            "hidden_size": 32,
            "intermediate_size": 32,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 1024,
            "rope_scaling": {**scaling, "original_max_position_embeddings": 1024},
        },
        "encoder_config": part,
        "dit_config": {**part, "cfm_config": {}},
        "audio_vae_config": codec,
        "patch_size": 2,
        "feat_dim": 8,
        "scalar_quantization_latent_dim": 8,
        "residual_lm_num_layers": 1,
    }
    mx.random.seed(seed)
    model = module.Model(module.ModelConfig.from_dict(copy.deepcopy(config)))  # which changes what it is given
    model.stop_proj.bias = mx.ones_like(model.stop_proj.bias)
    model.stop_proj.weight = mx.zeros_like(model.stop_proj.weight)
    model.stop_head.weight = mx.broadcast_to(mx.array([[0.0], [1.0]]), model.stop_head.weight.shape)
    _save(directory, model, config, tokenizer, "</s>")
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def write_recording(path: Path, seconds: float = 1.5, level: int = 8000, rate: int = 16_000, pitch: int = 200) -> Path:
    """Write a WAV file of a tone, in which somebody could speak."""
    tone = (math.sin(2 * math.pi * pitch / rate * index) for index in range(int(seconds * rate)))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"".join(struct.pack("<h", int(level * each)) for each in tone))
    return path


def _write_codec(directory: Path, *, hears: bool) -> None:
    from mlx_audio.tts.models.qwen3_tts.config import Qwen3TTSTokenizerConfig
    from mlx_audio.tts.models.qwen3_tts.speech_tokenizer import Qwen3TTSSpeechTokenizer

    directory.mkdir()
    decoder = {
        # The library tells a convolution of one sample from another by more than 64 channels.
        "latent_dim": 72,
        "codebook_dim": 144,
        "codebook_size": CODES,
        "decoder_dim": 288,
        "hidden_size": 32,
        "intermediate_size": 32,
        "head_dim": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "num_quantizers": 4,
        "semantic_codebook_size": CODES,
        "vector_quantization_hidden_dimension": 72,
        "upsample_rates": [8, 5],
    }
    config: dict[str, Any] = {"decoder_config": decoder}
    if hears:
        config["encoder_config"] = {
            "codebook_dim": 16,
            "codebook_size": CODES,
            "head_dim": 16,
            "hidden_size": 72,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_filters": 4,
            "num_hidden_layers": 1,
            "num_key_value_heads": 2,
            "num_quantizers": 4,
        }
    codec = Qwen3TTSSpeechTokenizer(Qwen3TTSTokenizerConfig(**config))
    weights = dict(tree_flatten(codec.parameters()))
    # The library takes the encoder's under other names only, so that most keep the values that it is made with.
    heard = {name for name in weights if name.startswith("encoder_model.")}
    sums = {name: _nearest_to_one(weights[name]) for name in heard if name.endswith(".codebook.embedding_sum")}
    weights = {name: each for name, each in weights.items() if name not in heard}
    weights = {**_as_stored(weights, Qwen3TTSSpeechTokenizer.sanitize), **sums}
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write(directory / "config.json", {**config, "decode_upsample_rate": SAMPLES_PER_TOKEN})


def _nearest_to_one(codebook: mx.array) -> mx.array:
    """Return a codebook in which 1 is nearest to every sound: a code after which no sentence ends."""
    return mx.where(mx.arange(len(codebook))[:, None] == 1, 0.0, 1e4) + mx.zeros_like(codebook)


@functools.cache
def _tokenizer(*control: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.add_special_tokens(list(control))
    return tokenizer


def _end_soon(embedding: Any, head: Any, end: int, tokens: int = 5) -> None:
    """Make a sentence some tokens long, and never empty: it ends after a token of a number that is a multiple.

    Args:
        embedding: The first number of a token says whether the end follows.
        head: Reads that number for the end only.
        end: The token of the end.
        tokens: Of a sentence, in the mean.
    """
    follows = mx.where(mx.arange(embedding.weight.shape[0]) % tokens == 0, 4.0, -4.0)
    embedding.weight = mx.concatenate([follows[:, None], embedding.weight[:, 1:]], axis=1)
    numbers = mx.zeros_like(head.weight)
    numbers[end, 0] = 20.0
    head.weight = mx.concatenate([mx.zeros_like(head.weight[:, :1]), head.weight[:, 1:]], axis=1)
    is_end = mx.arange(head.weight.shape[0])[:, None] == end
    head.weight = mx.where(is_end, numbers, head.weight)


def _as_stored(weights: Weights, sanitize: Callable[[Weights], Weights]) -> Weights:
    """Return weights as they have to be stored: the library guesses from its shape which way round a convolution is."""
    stored = {}
    for name, value in weights.items():
        ways = [value.transpose(order) for order in ((0, 1, 2), (0, 2, 1), (2, 0, 1))] if value.ndim == 3 else [value]
        fitting = (way for way in ways if sanitize({name: way}).get(name, value).shape == value.shape)
        stored[name] = next(fitting, value)
    return stored


def _save(
    directory: Path,
    model: Any,
    config: dict[str, Any],
    tokenizer: Tokenizer,
    end: str,
    sanitize: Callable[[Weights], Weights] = dict,
) -> None:
    weights = {
        name: value
        for name, value in tree_flatten(model.parameters())
        if not any(part.startswith("_") for part in name.split("."))
    }
    weights = _as_stored(weights, sanitize)
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write(directory / "config.json", config)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    _write(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": end},
    )


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document))
