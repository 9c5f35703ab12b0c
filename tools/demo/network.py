"""The network of the demo model: its configuration, its training loop and the saved weights."""

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
from mlx_lm.models.llama import Model, ModelArgs

CONTEXT = 2048
_WARM_UP = 60
_REPORT_EVERY = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training run measured."""

    steps: int
    tokens: int
    seconds: float
    loss: float


def configuration(vocabulary: int, *, end_of_turn: int, padding: int) -> dict[str, Any]:
    """Return ``config.json`` for a llama of about 0.9 million parameters."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": end_of_turn,
        "pad_token_id": padding,
        "torch_dtype": "bfloat16",
    }


def build(config: dict[str, Any]) -> Model:
    """Return the network with random weights."""
    return Model(ModelArgs.from_dict(config))


def parameters(model: Model) -> int:
    """Return the number of parameters."""
    return sum(int(value.size) for _, value in tree_flatten(model.parameters()))


def fit(model: Model, batches: Iterator[Batch], *, steps: int, rate: float) -> Outcome:
    """Train with AdamW under a cosine schedule and return what was measured."""
    schedule = optim.join_schedules(
        [optim.linear_schedule(0.0, rate, _WARM_UP), optim.cosine_decay(rate, steps - _WARM_UP, rate * 0.01)],
        [_WARM_UP],
    )
    optimizer = optim.AdamW(learning_rate=schedule, betas=[0.9, 0.98], weight_decay=0.01)
    loss_and_gradient: Callable[..., Any] = nn.value_and_grad(model, _loss)
    started, seen, average = time.monotonic(), 0, 0.0
    model.train()
    for step in range(steps):
        batch = next(batches)
        seen += batch.ids.size
        loss, gradient = loss_and_gradient(model, mx.array(batch.ids), mx.array(batch.weights))
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state, loss)
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        if step % _REPORT_EVERY == 0 or step == steps - 1:
            elapsed = time.monotonic() - started
            sys.stderr.write(f"step {step} loss {average:.4f} {elapsed:.0f} s {seen / elapsed:.0f} tokens/s\n")
            sys.stderr.flush()
    return Outcome(steps, seen, time.monotonic() - started, average)


def save(model: Model, config: dict[str, Any], directory: Path) -> None:
    """Write the weights in bf16 with ``config.json`` and ``generation_config.json``."""
    weights = {name: value.astype(mx.bfloat16) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    generation = {
        "do_sample": False,
        "temperature": 0.0,
        "eos_token_id": [config["eos_token_id"], config["pad_token_id"]],
        "pad_token_id": config["pad_token_id"],
        "max_new_tokens": 512,
    }
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", generation)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _loss(model: Model, ids: mx.array, weights: mx.array) -> mx.array:
    losses = nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:]) * weights[:, 1:]
    loss: mx.array = losses.sum() / weights[:, 1:].sum()
    return loss
