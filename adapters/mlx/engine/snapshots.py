"""Snapshots of KV caches as files in the safetensors format, with our own JSON in its metadata.

The ``state`` of an mlx-lm cache is a tree of arrays, numbers and strings. ``layout`` is that tree with each array
replaced by its index. Keys and values are stored without the space reserved for further tokens.
"""

import json
import os
import secrets
import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from mlxk.adapters.mlx.engine.quantized_cache import QuantizedCache, kept_state
from mlxk.adapters.mlx.engine.turbo_cache import TurboCache

SCHEMA = 1
"""Version of the file format; files of other versions are not read."""

_MAX_HEADER_BYTES = 64 * 2**20
_METADATA = "mlxk"
"""The key of our JSON in the metadata of a file."""


@attrs.frozen
class Tensor:
    """One array of a snapshot."""

    kind: str
    """The dtype, as safetensors names it."""
    shape: tuple[int, ...]
    data: bytes
    """Row-major, in the byte order of the machine."""


@attrs.frozen
class Snapshot:
    """The content of a file."""

    facts: Mapping[str, str]
    """Facts that a prompt must share to use the snapshot: model, kind of cache, versions, device."""
    tokens: bytes
    """The packed tokens, four bytes each."""
    layout: Any
    """The cache as a JSON tree with indices of ``tensors``."""
    tensors: tuple[Tensor, ...]

    @property
    def data(self) -> tuple[bytes, ...]:
        """The parts of the file after its header."""
        return (self.tokens, *(each.data for each in self.tensors))

    @property
    def size_bytes(self) -> int:
        """Size of ``data``, bytes."""
        return sum(map(len, self.data))


def header_of(snapshot: Snapshot, secret: bytes) -> bytes:
    """Return the header of a snapshot's file.

    Args:
        snapshot: The snapshot.
        secret: Key of the checksum, at most 64 bytes.
    """
    document: dict[str, Any] = {}
    position = 0
    parts = [Tensor("U32", (len(snapshot.tokens) // 4,), snapshot.tokens), *snapshot.tensors]
    for number, each in enumerate(parts):
        end = position + len(each.data)
        # The first part is the prompt; the others are named by their indices in the layout.
        name = str(number - 1) if number else "tokens"
        document[name] = {"dtype": each.kind, "shape": list(each.shape), "data_offsets": [position, end]}
        position = end
    content = {"schema": SCHEMA, "facts": dict(snapshot.facts), "layout": snapshot.layout}
    metadata = document["__metadata__"] = {_METADATA: json.dumps(content, sort_keys=True)}
    metadata["checksum"] = _checksum(secret, document, [each.data for each in parts])
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _checksum(secret: bytes, document: dict[str, Any], data: Sequence[bytes]) -> str:
    digest = blake2b(json.dumps(document, sort_keys=True).encode(), key=secret, digest_size=32)
    for each in data:
        digest.update(each)
    return digest.hexdigest()


def read_snapshot(file: Any, secret: bytes) -> Snapshot:  # noqa: ANN401 - a binary file
    """Read a snapshot and verify all of it.

    Args:
        file: Open for reading, at its beginning.
        secret: Key of the checksum.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OSError: The file is damaged.
    """
    (size,) = struct.unpack("<Q", _exactly(file, 8))
    if size > _MAX_HEADER_BYTES:
        raise ValueError("header")
    document = json.loads(_exactly(file, size))
    checksum = document["__metadata__"].pop("checksum")
    left = os.fstat(file.fileno()).st_size - 8 - size
    data = []
    for name in ("tokens", *map(str, range(len(document) - 2))):
        begin, end = document[name]["data_offsets"]
        if not 0 <= end - begin <= left:
            raise ValueError("size")
        data.append(_exactly(file, end - begin))
    if file.read(1) or not secrets.compare_digest(checksum, _checksum(secret, document, data)):
        raise ValueError("checksum")
    content = json.loads(document["__metadata__"][_METADATA])
    tokens, *others = data
    entries = [document[str(number)] for number in range(len(others))]
    return Snapshot(
        content["facts"],
        tokens,
        content["layout"],
        tuple(Tensor(entry["dtype"], tuple(entry["shape"]), each) for entry, each in zip(entries, others, strict=True)),
    )


def _exactly(file: Any, size: int) -> bytes:  # noqa: ANN401 - a binary file
    data: bytes = file.read(size)
    if len(data) < size:
        raise ValueError("truncated")
    return data


_CLASSES: Mapping[str, Any] = {
    each.__name__: each
    for each in (
        ArraysCache,
        ChunkedKVCache,
        ConcatenateKVCache,
        KVCache,
        QuantizedCache,
        QuantizedKVCache,
        RotatingKVCache,
        TurboCache,
    )
}
"""Classes of layers that can be stored, by name; a ``CacheList`` of these can be stored, too."""

_KINDS = {
    mx.bool_: "BOOL",
    mx.uint8: "U8",
    mx.uint16: "U16",
    mx.uint32: "U32",
    mx.uint64: "U64",
    mx.int8: "I8",
    mx.int16: "I16",
    mx.int32: "I32",
    mx.int64: "I64",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.float32: "F32",
    mx.float64: "F64",
}
_TYPES = {kind: each for each, kind in _KINDS.items()}


def can_be_stored(cache: Sequence[Any]) -> bool:
    """Whether every layer of a cache is of a class in ``_CLASSES``."""
    return all(
        can_be_stored(layer.caches) if type(layer) is CacheList else _CLASSES.get(type(layer).__name__) is type(layer)
        for layer in cache
    )


def stored_layer(layer: Any, tensors: list[Tensor]) -> Any:  # noqa: ANN401 - JSON
    """Copy a layer of a cache; on the owner thread.

    Args:
        layer: A layer of a class that can be stored.
        tensors: Copies of its arrays are appended to this list.

    Returns:
        The layer's part of the layout, JSON.
    """
    if type(layer) is CacheList:
        return {"class": "CacheList", "layers": [stored_layer(each, tensors) for each in layer.caches]}
    state = kept_state(layer)
    if isinstance(layer, (KVCache, QuantizedKVCache)):
        used = layer.offset
        state = tree_map(lambda leaf: leaf[..., :used, :] if isinstance(leaf, mx.array) else leaf, state)
    return {"class": type(layer).__name__, "state": _stored(state, tensors)}


def _stored(state: Any, tensors: list[Tensor]) -> Any:  # noqa: ANN401 - JSON
    if isinstance(state, mx.array):
        flat = mx.contiguous(state).reshape(-1)
        data = bytes(memoryview(flat.view(mx.uint8))) if flat.size else b""  # type: ignore[arg-type]
        tensors.append(Tensor(_KINDS[state.dtype], tuple(state.shape), data))
        return {"tensor": len(tensors) - 1}
    if isinstance(state, (list, tuple)):
        return [_stored(each, tensors) for each in state]
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    raise TypeError(type(state).__name__)


def restored_cache(snapshot: Snapshot) -> list[Any]:
    """Build the cache of a snapshot; on the owner thread.

    Raises:
        ValueError, KeyError, TypeError, IndexError, AttributeError: Its layout does not fit these classes.
    """
    arrays = [_array(each) for each in snapshot.tensors]
    mx.eval(arrays)
    return [_restored_layer(each, arrays) for each in snapshot.layout]


def _restored_layer(stored: Any, arrays: Sequence[mx.array]) -> Any:  # noqa: ANN401 - one of many classes
    if stored["class"] == "CacheList":
        return CacheList(*(_restored_layer(each, arrays) for each in stored["layers"]))
    return _CLASSES[stored["class"]].from_state(_restored(stored["state"], arrays))


def _restored(stored: Any, arrays: Sequence[mx.array]) -> Any:  # noqa: ANN401 - a state tree
    if isinstance(stored, dict):
        return arrays[stored["tensor"]]
    return [_restored(each, arrays) for each in stored] if isinstance(stored, list) else stored


def _array(tensor: Tensor) -> mx.array:
    kind = _TYPES[tensor.kind]
    if not tensor.data:
        return mx.zeros(tensor.shape, kind)
    return mx.array(np.frombuffer(tensor.data, np.uint8)).view(kind).reshape(tensor.shape)
