"""The network of the speech model: its configuration, its training loop and the saved weights."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from examples import Batch
from mlx.utils import tree_flatten
from mlx_audio.stt.models.whisper.whisper import Model, ModelDimensions
from recordings import MEL_BANDS

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "adapters" / "builtin" / "models" / "demo-speech"
"""Where the model lives."""

_WARM_UP = 60
_REPORT_EVERY = 50


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training run measured."""

    steps: int
    recordings: int
    seconds: float
    loss: float


def configuration(vocabulary: int, *, end_of_text: int, start: int) -> dict[str, Any]:
    """Return ``config.json`` for a Whisper of about 0.4 million parameters."""
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "num_mel_bins": MEL_BANDS,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 256,
        "decoder_ffn_dim": 256,
        "vocab_size": vocabulary,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "decoder_start_token_id": start,
        "torch_dtype": "float16",
    }


def build(config: dict[str, Any]) -> Model:
    """Return the network with random weights."""
    dimensions = ModelDimensions.from_dict(config)
    model = Model(dimensions, mx.float32)
    # The library starts from zeros, which training can leave only slowly.
    model.decoder.positional_embedding = mx.random.normal((dimensions.n_text_ctx, dimensions.n_text_state)) * 0.02
    return model


def parameters(model: Model) -> int:
    """Return the number of parameters."""
    return sum(int(value.size) for value in _weights(model).values())


def fit(model: Model, batches: Iterator[Batch], *, steps: int, rate: float) -> Outcome:
    """Train with AdamW under a cosine schedule and return what was measured."""
    schedule = optim.join_schedules(
        [optim.linear_schedule(0.0, rate, _WARM_UP), optim.cosine_decay(rate, steps - _WARM_UP, rate * 0.02)],
        [_WARM_UP],
    )
    optimizer = optim.AdamW(learning_rate=schedule, betas=[0.9, 0.98], weight_decay=0.01)
    loss_and_gradient: Callable[..., Any] = nn.value_and_grad(model, _loss)
    started, seen, average = time.monotonic(), 0, 0.0
    for step in range(steps):
        batch = next(batches)
        seen += len(batch.spectrograms)
        arrays = (mx.array(batch.spectrograms), mx.array(batch.tokens), mx.array(batch.weights))
        loss, gradient = loss_and_gradient(model, *arrays)
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state, loss)
        average = loss.item() if step == 0 else 0.96 * average + 0.04 * loss.item()
        if step % _REPORT_EVERY == 0 or step == steps - 1:
            sys.stderr.write(f"step {step} loss {average:.4f} {time.monotonic() - started:.0f} s\n")
            sys.stderr.flush()
    return Outcome(steps, seen, time.monotonic() - started, average)


def save(model: Model, config: dict[str, Any], directory: Path) -> None:
    """Write the weights in fp16, in which Whisper runs, and ``config.json``, ``preprocessor_config.json``."""
    weights = {name: value.astype(mx.float16) for name, value in _weights(model).items()}
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    extractor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": MEL_BANDS,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "sampling_rate": 16000,
        "padding_value": 0.0,
        "padding_side": "right",
        "return_attention_mask": False,
    }
    write_json(directory / "config.json", config)
    write_json(directory / "preprocessor_config.json", extractor)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _weights(model: Model) -> dict[str, mx.array]:
    """Return what is trained; sinusoids and masks are made anew at every load."""
    named = dict(tree_flatten(model.parameters()))
    return {name: value for name, value in named.items() if not any(part.startswith("_") for part in name.split("."))}


def _loss(model: Model, spectrograms: mx.array, tokens: mx.array, weights: mx.array) -> mx.array:
    logits = model.decoder(tokens[:, :-1], _encode(model, spectrograms))[0]
    losses = nn.losses.cross_entropy(logits, tokens[:, 1:]) * weights[:, 1:]
    loss: mx.array = losses.sum() / weights[:, 1:].sum()
    return loss


def _encode(model: Model, spectrograms: mx.array) -> mx.array:
    """Encode a window of any length: the same as the model's encoder, which only takes 30 seconds."""
    encoder = model.encoder
    hidden = nn.gelu(encoder.conv2(nn.gelu(encoder.conv1(spectrograms))))
    hidden = hidden + encoder._positional_embedding[: hidden.shape[1]]
    for block in encoder.blocks:
        hidden, _, _ = block(hidden)
    encoded: mx.array = encoder.ln_post(hidden)
    return encoded
