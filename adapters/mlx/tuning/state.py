"""What a run leaves on disk: its state, in one file that appears whole, and the adapter that it trained.

The state has trained weights, optimizer, step and figures; its metadata says which run it belongs to. The step is the
position in the data and in the random numbers: both depend on it and on the seed alone.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

import attrs
import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxk.adapters.mlx.adapter_files import CONFIG, WEIGHTS
from mlxk.adapters.mlx.loading.model_files import read_config
from mlxk.adapters.mlx.weight_headers import header_of
from mlxk.application.ports.tuning import TrainingJob, UnfinishedTraining
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.tuning.training import Method, TrainingPoint

STATE = "training-state.safetensors"
_WEIGHTS, _OPTIMIZER = "weights:", "optimizer:"
_FORMAT = "1"


@attrs.frozen
class TrainingState:
    """A run after a step."""

    step: int
    weights: Mapping[str, mx.array]
    """The trained ones, by their path in the network."""
    optimizer: Any
    """Its tree of arrays."""
    points: tuple[TrainingPoint, ...]
    losses: list[tuple[float, int]]
    """Of the steps since the last point, each with the tokens that it is the mean of."""


def write_state(directory: str, state: TrainingState, identity: str, fields: Mapping[str, object]) -> None:
    """Write a state in place of an earlier one.

    Raises:
        StorageError: The disk refuses; the earlier one is then intact.
    """
    arrays = {f"{_WEIGHTS}{name}": value for name, value in state.weights.items()}
    arrays |= {f"{_OPTIMIZER}{name}": value for name, value in tree_flatten(state.optimizer)}
    points = [attrs.asdict(point) for point in state.points]
    described: dict[str, object] = {"step": state.step, "identity": identity, "settings": dict(fields)}
    described |= {"points": points, "losses": state.losses}
    metadata = {"format": "mlx", "mlxk_training": _FORMAT, "run": json.dumps(described)}
    _save_whole(os.path.join(directory, STATE), arrays, metadata)


def _save_whole(path: str, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under another name, and move it into place.

    Raises:
        StorageError: The disk refuses; what was there is then intact.
    """
    temporary = f"{path.removesuffix('.safetensors')}.unfinished.safetensors"
    try:
        mx.save_safetensors(temporary, dict(arrays), metadata=dict(metadata))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, RuntimeError) and not str(error).startswith(("[write]", "[save")):
            raise
        raise StorageError(
            "the state of training cannot be written; the disk is probably full",
            hint="Make space, and continue from the state before.",
        ) from error


def read_unfinished(directory: str) -> UnfinishedTraining | None:
    """Return the run whose state a directory holds, from its header alone; None where it holds none."""
    run = _described(directory)
    return None if run is None else UnfinishedTraining(run["step"], run["identity"], run["settings"])


def read_state(directory: str) -> TrainingState:
    """Return the state in a directory.

    Raises:
        ValidationError: There is none, or it is damaged.
    """
    run = _described(directory)
    if run is None:
        raise ValidationError("there is no state of a training to continue, or it is damaged")
    arrays = mx.load(os.path.join(directory, STATE))
    assert isinstance(arrays, dict)
    mx.eval(arrays)
    found = {
        kind: [(name.removeprefix(kind), value) for name, value in arrays.items() if name.startswith(kind)]
        for kind in (_WEIGHTS, _OPTIMIZER)
    }
    return TrainingState(
        step=run["step"],
        weights=dict(found[_WEIGHTS]),
        optimizer=tree_unflatten(found[_OPTIMIZER]),
        points=tuple(TrainingPoint(**point) for point in run["points"]),
        losses=[(loss, tokens) for loss, tokens in run["losses"]],
    )


def remove_state(directory: str) -> None:
    """Remove a state, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, STATE))


def _described(directory: str) -> dict[str, Any] | None:
    try:
        header = header_of(os.path.join(directory, STATE))
        if header.damage is not None or header.metadata.get("mlxk_training") != _FORMAT:
            return None
        run = json.loads(str(header.metadata["run"]))
    except (OSError, ValueError, KeyError):
        return None
    return run if isinstance(run, dict) and {"step", "identity", "settings", "points", "losses"} <= run.keys() else None


def write_adapter(job: TrainingJob, network: nn.Module) -> None:
    """Write what was trained as mlx-lm does; whole weights in the type that the model has on disk.

    Raises:
        StorageError: The disk refuses.
    """
    settings = job.settings
    weights = dict(tree_flatten(network.trainable_parameters()))
    if settings.method is Method.FULL and job.form.widened:
        named = read_config(job.model.handle)
        stored = _TYPES.get(str(named.get("dtype", named.get("torch_dtype"))))
        weights = {name: array if stored is None else array.astype(stored) for name, array in weights.items()}
    _save_whole(os.path.join(job.directory, WEIGHTS), weights, {"format": "mlx"})
    parameters = {"rank": settings.rank, "scale": settings.scale, "dropout": settings.dropout}
    config = {
        "fine_tune_type": settings.method.value,
        "num_layers": settings.layers,
        "lora_parameters": None if settings.method is Method.FULL else parameters,
        "model": job.base,
    }
    try:
        with open(os.path.join(job.directory, CONFIG), "w", encoding="utf-8") as file:
            file.write(json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"{CONFIG} cannot be written: {error.strerror}") from error


_TYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16}
"""Types of 16 bits, as configs name them."""
