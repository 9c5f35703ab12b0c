"""Weight conversion with the loaders of mlx-lm and mlx-vlm and their choice of layers; shards are written here.

Models are loaded lazily, so that memory holds one shard at a time. No code of a model is executed, and no processor or
tokenizer is loaded: the use case copies their files. Runs on the calling thread; nothing stays loaded.
"""

import contextlib
import copy
import importlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm

# isort: split
import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm import utils as text_utils

from mlxk.adapters.mlx.compatibility import Library
from mlxk.adapters.mlx.library_imports import contained, import_failure
from mlxk.adapters.mlx.loading.load_errors import in_words, mismatch
from mlxk.adapters.mlx.loading.model_files import loading_directory, require_regular
from mlxk.application.ports.backends import ConvertedWeights, WeightConverter
from mlxk.application.ports.system import Progress
from mlxk.domain.errors import Advice, ConversionFailedError, MlxkError, Remedy, StorageError, UntrustedModelCodeError
from mlxk.domain.models.model import ModelHandle, Quantization

_MISSING = re.compile(r"Missing \d+ parameters:\s*(.*)\.\s*$", re.DOTALL)


class MlxWeightConverter(WeightConverter):
    """Converts weights with the MLX libraries that are installed."""

    def quantize(
        self, source: ModelHandle, target: str, backend: str, scheme: Quantization, progress: Progress
    ) -> ConvertedWeights:
        """Write a model's weights in fewer bits, with their index and ``config.json``."""
        with _translated(source), _clean_memory(source):
            network, config = load_lazily(source, backend)
            if "quantization" in config:
                network = library_of(backend).dequantize_model(network)
                forget_quantization(config)
            before = _quantizable(network)
            network, changed_config = library_of(backend).quantize_model(
                network,
                copy.deepcopy(config),
                scheme.group_size,
                scheme.bits,
                mode=scheme.mode,
                quant_predicate=_predicate(network, backend),
            )
            after = _quantizable(network)
            changed = sorted(before.keys() - after.keys())
            if not changed:
                raise ConversionFailedError(
                    f"no layer of '{source.label}' is divisible into groups of {scheme.group_size}",
                    hint=Advice(Remedy.SMALLER_GROUPS),
                )
            config |= dict.fromkeys(("quantization", "quantization_config"), changed_config["quantization"])
            size = write_weights(network, config, target, "Quantizing", progress)
        unquantizable = (name for name, shape in after.items() if shape[-1] % scheme.group_size or _is_odd(shape))
        return ConvertedWeights(len(changed), tuple(sorted(unquantizable)), size)

    def dequantize(self, source: ModelHandle, target: str, backend: str, progress: Progress) -> ConvertedWeights:
        """Write a quantized model's weights in full precision, with their index and ``config.json``."""
        with _translated(source), _clean_memory(source):
            network, config = load_lazily(source, backend)
            before = _quantizable(network)
            network = library_of(backend).dequantize_model(network)
            forget_quantization(config)
            changed = len(_quantizable(network).keys() - before.keys())
            size = write_weights(network, config, target, "Dequantizing", progress)
        return ConvertedWeights(changed, (), size)

    def missing_tensors(self, model: ModelHandle, backend: str) -> tuple[str, ...]:
        """Return the names of tensors that the network needs and the files lack, sorted; reads headers only."""
        with _translated(model), _clean_memory(model):
            try:
                load_lazily(model, backend)
            except ValueError as error:
                match = _MISSING.search(str(error))
                if not match:
                    raise
                return tuple(sorted(name.strip() for name in match[1].split(",")))
        return ()


def load_lazily(source: ModelHandle, backend: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network with lazy weights, and the content of ``config.json``."""
    require_regular(source)
    with open(os.path.join(source.directory, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    if not isinstance(config, dict) or not config:
        raise ConversionFailedError(f"'{source.label}' has no config.json to go by")
    if config.get("model_file"):
        # mlx-vlm would execute it even with trust_remote_code=False.
        raise UntrustedModelCodeError(
            f"'{source.label}' wants to run code of its own (config.json: model_file); it is never executed."
        )
    config.pop("_name_or_path", None)  # a path on its author's machine
    with loading_directory(source) as directory:
        if backend == Library.MLX_VLM.value:
            # Not at the top, since mlx-vlm takes a second to import, and text models do not need it.
            from mlx_vlm import utils as vision

            network = vision.load_model(directory, lazy=True, trust_remote_code=False)
        else:
            network, _ = text_utils.load_model(directory, lazy=True, trust_remote_code=False)
    return network, config


def library_of(backend: str) -> ModuleType:
    """Return the module with the library's quantization functions."""
    return importlib.import_module("mlx_vlm.quant_utils" if backend == Library.MLX_VLM.value else "mlx_lm.utils")


def _predicate(network: nn.Module, backend: str) -> Callable[[str, nn.Module], object] | None:
    """Return a predicate for the layers to quantize: the network's own, without image and audio towers."""
    own: Callable[[str, nn.Module], object] | None = getattr(network, "quant_predicate", None)
    if backend != Library.MLX_VLM.value:
        return own
    from mlx_vlm.utils import skip_multimodal_module

    def choose(path: str, module: nn.Module) -> object:
        if skip_multimodal_module(path) or _is_odd(module.weight.shape):
            return False
        return True if own is None else own(path, module)

    return choose


def _is_odd(shape: tuple[int, ...]) -> bool:
    """Whether mlx-vlm's loader expects weights of this shape to be unquantized."""
    return math.prod(shape) % 64 != 0


def _quantizable(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights by name of layer, for quantizable layers in full precision."""
    return {
        name: tuple(module.weight.shape)
        for name, module in network.named_modules()
        if isinstance(module, nn.Module) and hasattr(module, "to_quantized") and "weight" in module
    }


def forget_quantization(config: dict[str, Any]) -> None:
    """Remove the quantization from a config."""
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)


def write_weights(network: nn.Module, config: dict[str, Any], target: str, activity: str, progress: Progress) -> int:
    """Write the weights in shards with an index, and then the config; return the size of the weights, bytes."""
    weights = dict(tree_flatten(network.parameters()))
    size = int(sum(value.nbytes for value in weights.values()))
    shards = text_utils.make_shards(weights)
    names = [_shard_name(number, len(shards)) for number in range(len(shards))]
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    sizes = {name: sum(value.nbytes for value in shard.values()) for name, shard in zip(names, shards, strict=True)}
    weights.clear()
    network.update(tree_map(lambda _: mx.array([]), network.parameters()))
    progress.begin(activity, sizes)
    try:
        done: dict[str, int] = {}
        for number, name in enumerate(names):
            shard, shards[number] = shards[number], {}
            _save(os.path.join(target, name), shard)
            done[name] = sizes[name]
            progress.advance(done)
            del shard
    finally:
        progress.end()
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    if len(names) > 1:
        _write_json(os.path.join(target, "model.safetensors.index.json"), index)
    _write_json(os.path.join(target, "config.json"), dict(sorted(config.items())))
    return size


def _save(path: str, shard: dict[str, mx.array]) -> None:
    try:
        mx.save_safetensors(path, shard, metadata={"format": "mlx"})
    except RuntimeError as error:
        if not str(error).startswith("[write]"):
            raise
        raise StorageError(
            "the weights cannot be written; the disk of the workspace is probably full",
            hint="Make space and run the same command again.",
        ) from error
    _sync(path)


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _write_json(path: str, value: object) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=4) + "\n")
    _sync(path)


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _clean_memory(source: ModelHandle) -> Iterator[None]:
    """Contain the side effects of the libraries, and free MLX's buffers afterwards."""
    try:
        with contained(source.label):
            yield
    finally:
        mx.clear_cache()


@contextlib.contextmanager
def _translated(source: ModelHandle) -> Iterator[None]:
    try:
        yield
    except MlxkError:
        raise
    except ImportError as error:
        raise import_failure(error, f"Converting '{source.label}'", "mlx", "mlx-lm", "mlx-vlm") from error
    except OSError as error:
        raise StorageError(
            f"'{source.label}' cannot be converted: {error.strerror or 'input or output failed'}"
        ) from error
    except Exception as error:
        # The messages of these classes tell a user nothing; those of others do.
        internal = isinstance(error, (ArithmeticError, AttributeError, LookupError, TypeError))
        message = (
            f"its files do not fit together: {in_words(error)}" if internal else " ".join(str(error).split())[:300]
        )
        reason = mismatch(error) or message or in_words(error)
        raise ConversionFailedError(f"'{source.label}' cannot be converted: {reason}") from error
