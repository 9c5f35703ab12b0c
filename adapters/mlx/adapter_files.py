"""LoRA adapters on disk, in the format of mlx-lm (adapter_config.json and adapters.safetensors) or that of PEFT.

They are read without trust and without MLX: facts for every process, and faults that name the file and the field.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from mlxk.adapters.mlx import peft_adapters
from mlxk.adapters.mlx.weight_headers import header_of
from mlxk.domain.errors import ValidationError
from mlxk.domain.models.file_formats import read_document
from mlxk.domain.models.snapshot import adapter_base

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"

FULL = "full"
"""The kind that replaces weights of the model instead of adding to them."""

_KINDS = ("lora", "dora", FULL)
_MAX_CONFIG_BYTES = 2**20
_MAX_RANK = 4096
"""Far beyond real ones; matrices that the weights lack are made at this size."""
_PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_FORMAT_HINT = f"mlx-lm writes adapters as {CONFIG} and {WEIGHTS}, PEFT as {CONFIG} and {peft_adapters.WEIGHTS}."


@attrs.frozen
class AdapterFiles:
    """The files of an adapter whose config is right."""

    directory: str
    kind: str
    """``lora``, ``dora`` or ``full``."""
    config: Mapping[str, Any]
    """As mlx-lm has it."""
    trained_on: str | None
    """The model that it was trained on, as its config names it."""
    tensors: tuple[str, ...] = ()
    """The names of its weights, sorted."""
    weights: str = WEIGHTS
    """The file with them."""

    @property
    def name(self) -> str:
        """Its name in messages, which clients see: never a path."""
        return _name_of(self.directory)

    @property
    def weight_bytes(self) -> int:
        """Size of its weights on disk."""
        return os.stat(os.path.join(self.directory, self.weights)).st_size

    @contextlib.contextmanager
    def as_mlx(self) -> Iterator[str]:
        """Yield a folder with the adapter in mlx-lm's format: its own, or that of a copy.

        The copy is gone after the block; MLX holds the files that it reads later.
        """
        if self.weights == WEIGHTS:
            yield self.directory
        else:
            with peft_adapters.converted(self.directory, self.config, (CONFIG, WEIGHTS)) as folder:
                yield folder

    @property
    def digest(self) -> str:
        """Identifies exactly this adapter, equally on every machine."""
        return _digest(self.directory, state_of(self.directory))


def state_of(directory: str) -> tuple[str, ...]:
    """Return what changes with the files of an adapter; cheap enough for every request.

    Raises:
        ValidationError: One of them is missing.
    """
    found = []
    for name in (CONFIG, _weights_in(directory)):
        path = os.path.join(directory, name)
        if not os.path.isfile(path):
            raise _missing(directory, name)
        with_stat = os.stat(path)
        found.append(f"{with_stat.st_mtime_ns}:{with_stat.st_size}")
    return tuple(found)


def _weights_in(directory: str) -> str:
    """Return the name of the file with the weights; that of mlx-lm where there is none."""
    other = os.path.isfile(os.path.join(directory, peft_adapters.WEIGHTS))
    return peft_adapters.WEIGHTS if other and not os.path.isfile(os.path.join(directory, WEIGHTS)) else WEIGHTS


def read_adapter(directory: str) -> AdapterFiles:
    """Read an adapter's config, and the header of its weights.

    Args:
        directory: Absolute.

    Raises:
        ValidationError: It is not an adapter that mlx-lm could apply; names the file and the field.
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
    peft = weights == peft_adapters.WEIGHTS
    fault = _config_fault(config) if not peft else peft_adapters.config_fault(config, header.tensors)
    fault = "is not a JSON object" if not config else fault
    if fault is not None:
        raise ValidationError(f"adapter: {CONFIG} of '{_name_of(directory)}' {fault}", hint=_FORMAT_HINT)
    config = peft_adapters.config_of(config, header.tensors) if peft else config
    kind = str(config.get("fine_tune_type", _KINDS[0]))
    return AdapterFiles(directory, kind, config, adapter_base(config), tuple(sorted(header.tensors)), weights)


def _config(directory: str) -> Mapping[str, Any]:
    """Return what is in ``CONFIG``; nothing where that is no JSON object.

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
    """Return the model that the adapter in a directory was trained on; None where there is no adapter alone.

    Raises:
        ValidationError: It does not say, or cannot be read.
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
    """Return the error for a file that is not there, which says what there is instead."""
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
    """Return what is wrong with a config, as the end of a sentence that begins with its file; None for nothing."""
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
    """Return the digest of both files; ``state`` changes with them."""
    digest = hashlib.sha256()
    for name in (CONFIG, _weights_in(directory)):
        with open(os.path.join(directory, name), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
