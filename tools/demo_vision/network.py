"""The network of the vision demo: its configuration, its training loop and the saved weights."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import tokenizer as words
from batches import Batch
from drawings import COLOURS, SHAPES
from mlx.utils import tree_flatten
from mlx_vlm.utils import get_model_and_args, update_module_configs
from tokenizers import Tokenizer

CONTEXT = 2048
PATCH = 14
SIDE = 112
"""Pictures are scaled to about this many pixels squared before the model sees them."""

_HIDDEN = 128
_MERGED = 4
"""Patches that become one token."""

_WARM_UP = 60
_REPORT_EVERY = 50


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training run measured."""

    steps: int
    images: int
    seconds: float
    loss: float


def configuration(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return ``config.json`` for a qwen2_vl of about a million parameters."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_size": _HIDDEN,
        "num_hidden_layers": 3,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "max_position_embeddings": CONTEXT,
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        "tie_word_embeddings": True,
        "image_token_id": tokenizer.token_to_id(words.IMAGE),
        "video_token_id": tokenizer.token_to_id(words.VIDEO),
        "vision_start_token_id": tokenizer.token_to_id(words.VISION_START),
        "vision_end_token_id": tokenizer.token_to_id(words.VISION_END),
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(words.END_OF_TURN),
        "pad_token_id": tokenizer.token_to_id(words.END_OF_TEXT),
        "torch_dtype": "bfloat16",
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": 3,
            "embed_dim": 96,
            "hidden_size": _HIDDEN,
            "num_heads": 4,
            "mlp_ratio": 2,
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def write_configuration(config: dict[str, Any], directory: Path) -> None:
    """Write everything but the weights, the tokenizer and the card."""
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": SIDE**2,
        "max_pixels": SIDE**2,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    generation = {
        "do_sample": False,
        "temperature": 0.0,
        "eos_token_id": [config["eos_token_id"], config["pad_token_id"]],
        "pad_token_id": config["pad_token_id"],
    }
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", generation)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        write_json(directory / name, processor)


def build(config: dict[str, Any]) -> Any:  # noqa: ANN401 - mlx-vlm has no types to name
    """Return the network with random weights."""
    stated = {**json.loads(json.dumps(config)), "text_config": {}}
    architecture, _ = get_model_and_args(stated)
    parts = update_module_configs(
        architecture.ModelConfig.from_dict(stated), architecture, stated, ["text", "vision"]
    )
    return architecture.Model(parts)


def parameters(model: Any) -> int:  # noqa: ANN401
    """Return the number of parameters."""
    return sum(int(value.size) for _, value in tree_flatten(model.parameters()))


def fit(model: Any, draw: Callable[[float], Batch], *, steps: int, rate: float) -> Outcome:  # noqa: ANN401
    """Train with AdamW under a cosine schedule and return what was measured.

    Args:
        model: As ``build`` made it.
        draw: Returns the next batch; told which share of the training is over.
        steps: Optimizer steps.
        rate: The highest learning rate.
    """
    schedule = optim.join_schedules(
        [optim.linear_schedule(0.0, rate, _WARM_UP), optim.cosine_decay(rate, steps - _WARM_UP, rate * 0.02)],
        [_WARM_UP],
    )
    optimizer = optim.AdamW(learning_rate=schedule, betas=[0.9, 0.98], weight_decay=0.01)
    lesson = _Lesson(model)
    loss_and_gradient: Callable[..., Any] = nn.value_and_grad(lesson, _Lesson.loss)
    started, seen, average = time.monotonic(), 0, 0.0
    lesson.train()
    for step in range(steps):
        batch = draw(step / steps)
        seen += len(batch.grids)
        places = _places(model, batch)
        loss, gradient = loss_and_gradient(lesson, batch, places)
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        optimizer.update(lesson, gradient)
        mx.eval(lesson.parameters(), optimizer.state, loss)
        average = loss.item() if step == 0 else 0.96 * average + 0.04 * loss.item()
        if step % _REPORT_EVERY == 0 or step == steps - 1:
            elapsed = time.monotonic() - started
            sys.stderr.write(f"step {step} loss {average:.4f} {elapsed:.0f} s {seen / max(elapsed, 1):.0f} images/s\n")
            sys.stderr.flush()
    return Outcome(steps, seen, time.monotonic() - started, average)


def save(model: Any, directory: Path) -> None:  # noqa: ANN401
    """Write the weights in bf16."""
    weights = {name: value.astype(mx.bfloat16) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _places(model: Any, batch: Batch) -> mx.array:  # noqa: ANN401
    """Return the positions of all tokens, shape [3, B, L]: time, row and column for the tokens of a picture."""
    ids, grids = mx.array(batch.ids), mx.array(batch.grids)
    places, _ = model.language_model.get_rope_index(ids, grids, None, mx.array(batch.present))
    return places


class _Lesson(nn.Module):
    """The model with a probe that names figures straight from what the vision tower sees.

    The probe teaches the tower to see long before the language model has learnt to ask it; it is not saved.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.model = model
        self.probe = nn.Linear(_HIDDEN, len(COLOURS) + len(SHAPES))

    def loss(self, batch: Batch, places: mx.array) -> mx.array:
        """Return the loss of the answers plus that of the probe."""
        ids, weights = mx.array(batch.ids), mx.array(batch.weights)
        language, settings = self.model.language_model.model, self.model.config
        features = self.model.vision_tower(mx.array(batch.pixels), mx.array(batch.grids))
        embedded = self.model.merge_input_ids_with_image_features(
            settings.image_token_id, settings.video_token_id, features, language.embed_tokens(ids), ids
        )
        logits = language.embed_tokens.as_linear(language(ids, inputs_embeds=embedded, position_ids=places))
        losses = nn.losses.cross_entropy(logits[:, :-1], ids[:, 1:]) * weights[:, 1:]
        answers: mx.array = losses.sum() / weights[:, 1:].sum()
        return answers + self._probed(features, batch)

    def _probed(self, features: mx.array, batch: Batch) -> mx.array:
        ends = np.cumsum(np.prod(batch.grids, axis=1) // _MERGED)
        pieces = mx.split(features, ends[:-1].tolist(), axis=0)
        guesses = self.probe(mx.stack([piece.mean(axis=0) for piece in pieces]))
        colours, shapes = guesses[:, : len(COLOURS)], guesses[:, len(COLOURS) :]
        figures = mx.array(batch.figures)
        loss: mx.array = nn.losses.cross_entropy(colours, figures[:, 0], reduction="mean")
        return loss + nn.losses.cross_entropy(shapes, figures[:, 1], reduction="mean")
