"""LoRA adapters on disk, in mlx-lm's format (adapter_config.json and adapters.safetensors) or in PEFT's.

Their files are untrusted and read without MLX; faults name the file and the field. A PEFT adapter is converted to
mlx-lm's format when it is loaded.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from mlxk.adapters.mlx.weight_headers import header_of
from mlxk.domain.errors import ValidationError
from mlxk.domain.models.file_formats import read_document
from mlxk.domain.models.snapshot import adapter_base

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
PEFT_WEIGHTS = "adapter_model.safetensors"

FULL = "full"
"""The kind of adapter that replaces weights of the model instead of adding to them."""

_KINDS = ("lora", "dora", FULL)
_MAX_CONFIG_BYTES = 2**20
_MAX_RANK = 4096
"""Far beyond real ranks; matrices that the weights lack are created with the rank of the config."""
_PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_FORMAT_HINT = f"mlx-lm writes adapters as {CONFIG} and {WEIGHTS}, PEFT as {CONFIG} and {PEFT_WEIGHTS}."

_TENSOR = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
"""Matches the names of PEFT's LoRA matrices."""

_IN_A_LAYER = re.compile(r".*?\blayers\.\d+\.(?P<key>.+)")
_EVERY_LAYER = 10_000
"""More layers than any network has, for mlx-lm's ``num_layers``."""


@attrs.frozen
class AdapterFiles:
    """The files of an adapter with a valid config."""

    directory: str
    kind: str
    """``lora``, ``dora`` or ``full``."""
    config: Mapping[str, Any]
    """In mlx-lm's form."""
    trained_on: str | None
    """The base model that its config names."""
    tensors: tuple[str, ...] = ()
    """The names of its weights, sorted."""
    weights: str = WEIGHTS
    """Name of the file with the weights."""

    @property
    def name(self) -> str:
        """Its name in messages to clients, which must not contain paths."""
        return _name_of(self.directory)

    @property
    def weight_bytes(self) -> int:
        """Size of its weights on disk."""
        return os.stat(os.path.join(self.directory, self.weights)).st_size

    @contextlib.contextmanager
    def as_mlx(self) -> Iterator[str]:
        """Yield a folder with the adapter in mlx-lm's format: its own, or that of a converted copy.

        The copy is deleted after the block; MLX keeps the files open that it reads later.
        """
        if self.weights == WEIGHTS:
            yield self.directory
        else:
            with _converted(self.directory, self.config) as folder:
                yield folder

    @property
    def digest(self) -> str:
        """Digest of the files' content, equal on every machine."""
        return _digest(self.directory, state_of(self.directory))


def state_of(directory: str) -> tuple[str, ...]:
    """Return a value that changes with the files of an adapter; cheap enough for every request.

    Raises:
        ValidationError: One of them is missing.
    """
    state = []
    for name in (CONFIG, _weights_in(directory)):
        path = os.path.join(directory, name)
        if not os.path.isfile(path):
            raise _missing(directory, name)
        status = os.stat(path)
        state.append(f"{status.st_mtime_ns}:{status.st_size}")
    return tuple(state)


def _weights_in(directory: str) -> str:
    """Return the name of the file with the weights; mlx-lm's name where there is none."""
    is_peft = os.path.isfile(os.path.join(directory, PEFT_WEIGHTS))
    return PEFT_WEIGHTS if is_peft and not os.path.isfile(os.path.join(directory, WEIGHTS)) else WEIGHTS


def read_adapter(directory: str) -> AdapterFiles:
    """Read an adapter's config, and the header of its weights.

    Args:
        directory: Absolute path of the adapter.

    Raises:
        ValidationError: mlx-lm could not apply the adapter; names the file and the field.
    """
    state_of(directory)
    weights = _weights_in(directory)
    config = _config(directory)
    try:
        header = header_of(os.path.join(directory, weights))
    except OSError as error:
        raise _unreadable(directory, error) from error
    if header.damage is not None or not header.tensors:
        damage = header.damage.value if header.damage is not None else "no tensors in it"
        raise ValidationError(
            f"adapter: {weights} of '{_name_of(directory)}' is damaged: {damage}", hint="Copy or train it again."
        )
    is_peft = weights == PEFT_WEIGHTS
    fault = peft_fault(config, header.tensors) if is_peft else _config_fault(config)
    fault = "is not a JSON object" if not config else fault
    if fault is not None:
        raise ValidationError(f"adapter: {CONFIG} of '{_name_of(directory)}' {fault}", hint=_FORMAT_HINT)
    config = _mlx_config(config, header.tensors) if is_peft else config
    kind = str(config.get("fine_tune_type", _KINDS[0]))
    return AdapterFiles(directory, kind, config, adapter_base(config), tuple(sorted(header.tensors)), weights)


def _config(directory: str) -> Mapping[str, Any]:
    """Return the content of ``CONFIG``; empty where it is not a JSON object.

    Raises:
        ValidationError: It cannot be read.
    """
    try:
        with open(os.path.join(directory, CONFIG), "rb") as file:
            return read_document(file.read(_MAX_CONFIG_BYTES + 1), _MAX_CONFIG_BYTES).mapping
    except OSError as error:
        raise _unreadable(directory, error) from error


def _unreadable(directory: str, error: OSError) -> ValidationError:
    return ValidationError(f"adapter: '{_name_of(directory)}' cannot be read: {error.strerror}")


def base_of(directory: str) -> str | None:
    """Return the base model of the adapter in a directory; None for a directory without one, or with a model.

    Raises:
        ValidationError: The config does not name the base model, or cannot be read.
    """
    if os.path.isfile(os.path.join(directory, "config.json")) or not os.path.isfile(os.path.join(directory, CONFIG)):
        return None
    named = adapter_base(_config(directory))
    if named is None:
        raise ValidationError(
            "adapter: it does not say which model it was trained on", hint="Name the model, and the adapter beside it."
        )
    return named


def _name_of(directory: str) -> str:
    return os.path.basename(os.path.normpath(directory))


def _missing(directory: str, name: str) -> ValidationError:
    """Return the error for a missing file; its hint depends on the other files."""
    try:
        present = sorted(os.listdir(directory))
    except OSError:
        present = []
    pickled = next((each for each in present if each.endswith(_PICKLED)), None)
    hint = _FORMAT_HINT
    if pickled is not None:
        hint = f"{pickled} is a pickle, which can run code, and is never read. {_FORMAT_HINT}"
    elif "adapters.npz" in present:
        hint = f"Its format is that of an old release of mlx-lm. {_FORMAT_HINT}"
    return ValidationError(f"adapter: there is no LoRA adapter in '{_name_of(directory)}' (no {name}).", hint=hint)


def _config_fault(config: Mapping[str, Any]) -> str | None:
    """Return the fault of mlx-lm's config, as the end of a sentence that begins with its name; None without."""
    if "peft_type" in config:
        return "is of PEFT (peft_type), not of mlx-lm"
    kind = config.get("fine_tune_type", _KINDS[0])
    if kind not in _KINDS:
        return f"has a fine_tune_type that is not one of {', '.join(_KINDS)}"
    if kind == FULL:
        return None
    if not _is_whole(config.get("num_layers")):
        return "needs num_layers, a whole number"
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        return "needs lora_parameters, an object"
    if not _is_whole(parameters.get("rank")) or not 1 <= parameters["rank"] <= _MAX_RANK:
        return f"needs lora_parameters.rank, a whole number from 1 to {_MAX_RANK}"
    if not _is_number(parameters.get("scale")):
        return "needs lora_parameters.scale, a number"
    if not _is_number(parameters.get("dropout")) or not 0 <= parameters["dropout"] < 1:
        return "needs lora_parameters.dropout, a number from 0 to below 1"
    keys = parameters.get("keys")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        return "has lora_parameters.keys that are not a list of names"
    return None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@functools.lru_cache(maxsize=64)
def _digest(directory: str, state: tuple[str, ...]) -> str:
    """Return the digest of both files; ``state`` is part of the cache key."""
    digest = hashlib.sha256()
    for name in (CONFIG, _weights_in(directory)):
        with open(os.path.join(directory, name), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def peft_fault(config: Mapping[str, Any], tensors: Iterable[str]) -> str | None:
    """Return the fault of a PEFT adapter, as the end of a sentence that begins with its config's name; None without.

    Only LoRA without further parts is supported; everything else is refused by its field.

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


def _mlx_config(config: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
    """Return the config of a valid PEFT adapter in mlx-lm's form."""
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
def _converted(directory: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a temporary folder with a PEFT adapter in mlx-lm's form: other names, and transposed matrices.

    Args:
        directory: The directory of the adapter.
        config: Its config in mlx-lm's form.
    """
    import mlx.core as mx

    weights = mx.load(os.path.join(directory, PEFT_WEIGHTS))
    assert isinstance(weights, dict)
    converted = {}
    for name, array in weights.items():
        found = _TENSOR.fullmatch(name)
        assert found is not None
        converted[f"{found['path']}.lora_{found['part'].lower()}"] = mx.contiguous(array.T)
    with tempfile.TemporaryDirectory(prefix="mlxk-adapter-") as folder:
        with open(os.path.join(folder, CONFIG), "w", encoding="utf-8") as file:
            json.dump(config, file)
        mx.save_safetensors(os.path.join(folder, WEIGHTS), converted, metadata={"format": "mlx"})
        yield folder
