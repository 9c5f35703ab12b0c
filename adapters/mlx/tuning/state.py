"""Files of a training run: its state, in one file that is replaced atomically, and the adapter that it trained.

The state has the trained weights, the optimizer, the step and the measured points; its metadata identifies the run. The
step determines the position in the data and the random numbers, which depend on it and on the seed alone.
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
    """The state of a run after a step."""

    step: int
    weights: Mapping[str, mx.array]
    """Trained weights by their path in the network."""
    optimizer: Any
    """The optimizer's tree of arrays."""
    points: tuple[TrainingPoint, ...]
    losses: list[tuple[float, int]]
    """Mean loss of each batch since the last point, with its weight: tokens, or pairs."""


def write_state(directory: str, state: TrainingState, identity: str, fields: Mapping[str, object]) -> None:
    """Write a state, replacing an earlier one.

    Raises:
        StorageError: Writing fails; an earlier state is then intact.
    """
    arrays = {f"{_WEIGHTS}{name}": value for name, value in state.weights.items()}
    arrays |= {f"{_OPTIMIZER}{name}": value for name, value in tree_flatten(state.optimizer)}
    points = [attrs.asdict(point) for point in state.points]
    run: dict[str, object] = {"step": state.step, "identity": identity, "settings": dict(fields)}
    run |= {"points": points, "losses": state.losses}
    metadata = {"format": "mlx", "mlxk_training": _FORMAT, "run": json.dumps(run)}
    _save_atomically(os.path.join(directory, STATE), arrays, metadata)


def _save_atomically(path: str, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name, and move it into place.

    Raises:
        StorageError: Writing fails; an earlier file is then intact.
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
    """Return the unfinished run in a directory, from the header of its state alone; None if there is none."""
    run = _run_in(directory)
    return None if run is None else UnfinishedTraining(run["step"], run["identity"], run["settings"])


def read_state(directory: str) -> TrainingState:
    """Return the state in a directory.

    Raises:
        ValidationError: There is none, or it is damaged.
    """
    run = _run_in(directory)
    if run is None:
        raise ValidationError("there is no state of a training to continue, or it is damaged")
    arrays = mx.load(os.path.join(directory, STATE))
    assert isinstance(arrays, dict)
    mx.eval(arrays)
    groups = {
        prefix: [(name.removeprefix(prefix), value) for name, value in arrays.items() if name.startswith(prefix)]
        for prefix in (_WEIGHTS, _OPTIMIZER)
    }
    return TrainingState(
        step=run["step"],
        weights=dict(groups[_WEIGHTS]),
        optimizer=tree_unflatten(groups[_OPTIMIZER]),
        points=tuple(TrainingPoint(**point) for point in run["points"]),
        losses=[(loss, tokens) for loss, tokens in run["losses"]],
    )


def remove_state(directory: str) -> None:
    """Remove the state in a directory, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, STATE))


def _run_in(directory: str) -> dict[str, Any] | None:
    """Return the entry ``run`` of the state's metadata; None if there is no state or it is damaged."""
    try:
        header = header_of(os.path.join(directory, STATE))
        if header.damage is not None or header.metadata.get("mlxk_training") != _FORMAT:
            return None
        run = json.loads(str(header.metadata["run"]))
    except (OSError, ValueError, KeyError):
        return None
    return run if isinstance(run, dict) and {"step", "identity", "settings", "points", "losses"} <= run.keys() else None


def write_adapter(job: TrainingJob, network: nn.Module) -> None:
    """Write the trained weights in mlx-lm's format for adapters; full weights in the type of the model's files.

    Raises:
        StorageError: Writing fails.
    """
    settings = job.settings
    weights = dict(tree_flatten(network.trainable_parameters()))
    if settings.method is Method.FULL and job.form.widened:
        model = read_config(job.model.handle)
        stored = _TYPES.get(str(model.get("dtype", model.get("torch_dtype"))))
        weights = {name: array if stored is None else array.astype(stored) for name, array in weights.items()}
    _save_atomically(os.path.join(job.directory, WEIGHTS), weights, {"format": "mlx"})
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
"""16-bit types by their names in configs."""
