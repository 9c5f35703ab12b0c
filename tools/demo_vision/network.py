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
import tokenizer as words
from batches import PATCH, Batches
from mlx.utils import tree_flatten, tree_map
from mlx_vlm.utils import get_model_and_args, update_module_configs
from sight import Lesson, Probes, Sight
from tokenizers import Tokenizer

CONTEXT = 2048
SIDE = 112
"""Pictures are scaled to about this many pixels squared before the model sees them."""

_HIDDEN = 128
_PICTURES = 32
"""Looked at in one step, before the model talks."""

_WARM_UP = 60
_REPORT_EVERY = 50


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training run measured."""

    steps: int
    images: int
    seconds: float
    loss: float

    def then(self, later: Outcome) -> Outcome:
        """Return what this run and a later one measured together."""
        return Outcome(self.steps + later.steps, self.images + later.images, self.seconds + later.seconds, later.loss)


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
        "vocab_size": tokenizer.get_vocab_size(),
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
    parts = update_module_configs(architecture.ModelConfig.from_dict(stated), architecture, stated, ["text", "vision"])
    return architecture.Model(parts)


def parameters(model: Any) -> int:  # noqa: ANN401
    """Return the number of parameters."""
    return sum(int(value.size) for _, value in tree_flatten(model.parameters()))


def fit(model: Any, batches: Batches, lengths: tuple[int, int], rate: float) -> Outcome:  # noqa: ANN401
    """Train and return what was measured: first to see, then to talk about it.

    Args:
        model: As ``build`` made it.
        batches: Where the data come from.
        lengths: Steps of both parts.
        rate: The highest learning rate.
    """
    started = time.monotonic()
    probes = Probes(_HIDDEN)
    seeing, talking = lengths
    seen, _ = _train(Sight(model.vision_tower, probes), Sight.loss, lambda _: batches.pictures(_PICTURES), seeing, rate)
    shown, loss = _train(Lesson(model, probes), Lesson.loss, batches.conversations, talking, rate)
    return Outcome(seeing + talking, seen + shown, time.monotonic() - started, loss)


def go_on(model: Any, batches: Batches, steps: int, rate: float, kept: float) -> Outcome:  # noqa: ANN401
    """Have a trained model learn to talk about clips, and return what was measured.

    Its sight is probed anew, without which it forgets some of what it saw.

    Args:
        model: The model.
        batches: Where the data come from.
        steps: Of the optimizer.
        rate: The highest learning rate.
        kept: Share of what changed that is kept, 0 to 1: the weights are averaged with those before.
    """
    started = time.monotonic()
    before = tree_map(mx.array, model.parameters())
    shown, loss = _train(Lesson(model, Probes(_HIDDEN)), Lesson.loss, batches.with_clips, steps, rate)
    model.update(tree_map(lambda old, new: old + kept * (new - old), before, model.parameters()))
    return Outcome(steps, shown, time.monotonic() - started, loss)


def _train(
    pupil: nn.Module, loss_of: Callable[..., mx.array], draw: Callable[[float], Any], steps: int, rate: float
) -> tuple[int, float]:
    """Train with AdamW under a cosine schedule; return how many pictures were shown, and the last average loss."""
    schedule = optim.join_schedules(
        [optim.linear_schedule(0.0, rate, _WARM_UP), optim.cosine_decay(rate, max(1, steps - _WARM_UP), rate * 0.02)],
        [_WARM_UP],
    )
    optimizer = optim.AdamW(learning_rate=schedule, betas=[0.9, 0.98], weight_decay=0.01)
    loss_and_gradient: Callable[..., Any] = nn.value_and_grad(pupil, lambda batch: loss_of(pupil, batch))
    started, shown, average = time.monotonic(), 0, 0.0
    pupil.train()
    for step in range(steps):
        batch = draw(step / steps)
        shown += len(getattr(batch, "pictures", batch).grids)
        loss, gradient = loss_and_gradient(batch)
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        optimizer.update(pupil, gradient)
        mx.eval(pupil.parameters(), optimizer.state, loss)
        average = loss.item() if step == 0 else 0.96 * average + 0.04 * loss.item()
        if step % _REPORT_EVERY == 0 or step == steps - 1:
            sys.stderr.write(f"step {step} loss {average:.4f} {time.monotonic() - started:.0f} s\n")
            sys.stderr.flush()
    return shown, average


def save(model: Any, directory: Path) -> None:  # noqa: ANN401
    """Write the weights in bf16."""
    weights = {name: value.astype(mx.bfloat16) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
