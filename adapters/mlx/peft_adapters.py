"""Adapters of PEFT, in the form of mlx-lm: other names, and matrices that are transposed.

Only LoRA without further parts is read; anything else is refused by its field, before MLX is needed.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

WEIGHTS = "adapter_model.safetensors"

_TENSOR = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
_IN_A_LAYER = re.compile(r".*?\blayers\.\d+\.(?P<key>.+)")
_EVERY_LAYER = 10_000
"""Layers; networks have fewer, and all of theirs are meant then."""


def config_fault(config: Mapping[str, Any], tensors: Iterable[str]) -> str | None:
    """Return what is wrong with an adapter, as the end of a sentence that begins with its config; None for nothing.

    Args:
        config: Its ``adapter_config.json``.
        tensors: The names of its weights.
    """
    if config.get("peft_type") != "LORA":
        return f"has a peft_type that is not LORA ({config.get('peft_type')})"
    for field in ("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias"):
        if config.get(field):
            return f"has {field}, which is not read"
    if config.get("bias") not in (None, "none"):
        return "has bias, which is not read"
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        return "needs r, a whole number from 1"
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        return "needs lora_alpha, a number"
    unread = next((name for name in tensors if not _TENSOR.fullmatch(name)), None)
    return None if unread is None else f"has a tensor that is not read: {unread[:120]}"


def config_of(config: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
    """Return the config as mlx-lm has it, of an adapter without fault."""
    rank = config["r"]
    divisor = rank**0.5 if config.get("use_rslora") else rank
    paths = {found["path"] for name in tensors if (found := _TENSOR.fullmatch(name))}
    keys = {found["key"] if (found := _IN_A_LAYER.fullmatch(path)) else path for path in paths}
    return {
        "fine_tune_type": "lora",
        "num_layers": _EVERY_LAYER,
        "lora_parameters": {
            "rank": rank,
            "scale": config["lora_alpha"] / divisor,
            "dropout": 0.0,
            "keys": sorted(keys),
        },
        "model": config.get("base_model_name_or_path"),
    }


@contextlib.contextmanager
def converted(directory: str, config: Mapping[str, Any], names: tuple[str, str]) -> Iterator[str]:
    """Yield a folder with an adapter in mlx-lm's form, which is gone after the block.

    Args:
        directory: With the adapter of PEFT.
        config: As ``config_of`` returns it.
        names: Of mlx-lm's config and weights.
    """
    import mlx.core as mx

    weights = mx.load(os.path.join(directory, WEIGHTS))
    assert isinstance(weights, dict)
    made = {}
    for name, array in weights.items():
        found = _TENSOR.fullmatch(name)
        assert found is not None
        made[f"{found['path']}.lora_{found['part'].lower()}"] = mx.contiguous(array.T)
    with tempfile.TemporaryDirectory(prefix="mlxk-adapter-") as folder:
        with open(os.path.join(folder, names[0]), "w", encoding="utf-8") as file:
            json.dump(config, file)
        mx.save_safetensors(os.path.join(folder, names[1]), made, metadata={"format": "mlx"})
        yield folder
