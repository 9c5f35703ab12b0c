"""Parsing of untrusted JSON files and safetensors headers: bounded, and checked against the size of the file.

JSON is UTF-8 without a byte order mark, as model libraries read it. Numbers that strict JSON lacks (NaN, infinities,
floats beyond the double range) become texts, so that every value can be written as strict JSON.
"""

import enum
import json
import math
from collections.abc import Iterable, Mapping
from operator import le, mul
from typing import Any

import attrs
import orjson

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Longer JSON files are refused. The largest real ones, weight indexes, are far smaller."""


@attrs.frozen
class Document:
    """A JSON file: its value, or the reason why it has none."""

    value: object = None
    problem: str | None = None
    """Why it could not be parsed, empty for a syntax error; None when it was parsed."""

    @property
    def valid(self) -> bool:
        """Whether it was parsed."""
        return self.problem is None

    @property
    def mapping(self) -> dict[str, object]:
        """The value when it is an object, else an empty object."""
        return self.value if isinstance(self.value, dict) else {}


ABSENT = Document(problem="missing")
"""A file that does not exist."""

UNREADABLE = Document(problem="cannot be read")
"""A file that exists and cannot be read."""


def _finite(text: str) -> float | str:
    """Parse a float; return the text if it is out of range."""
    number = float(text)
    return number if math.isfinite(number) else text


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=str)


def element_bits(dtype: str) -> int | None:
    """Return the bits of one element of a safetensors dtype; None for an unknown dtype."""
    return _BITS.get(dtype)


def read_document(data: bytes, limit: int = MAX_DOCUMENT_BYTES) -> Document:
    """Parse a JSON file. Never raises.

    Args:
        data: The complete file, or at least one byte more than the limit.
        limit: Most bytes of a file.
    """
    if len(data) > limit:
        return Document(problem=f"longer than {limit // 2**20} MiB")
    if data.startswith(b"\xef\xbb\xbf"):
        return Document(problem="starts with a byte order mark")
    try:
        return Document(_DECODER.decode(data.decode("utf-8")))
    except UnicodeDecodeError:
        return Document(problem="not UTF-8")
    except json.JSONDecodeError:
        return Document(problem="")
    except RecursionError:
        return Document(problem="nested too deeply")
    except ValueError:
        return Document(problem="contains a number that is too long")


MAX_HEADER_BYTES = 100 * 1024 * 1024
"""The limit of the safetensors format."""

PREFIX_BYTES = 8
"""Size of the header's length, with which a file begins."""

_PACKED_BITS = 32
"""Bits of a word of quantized weights."""

_MAX_DIMENSIONS = 64
"""Most dimensions of a shape, as in array libraries; it bounds the product of a hostile shape."""

_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits of an element of each dtype. Later versions of the format may have further dtypes."""


class Damage(enum.Enum):
    """Kinds of damage of a file, by its header."""

    TRUNCATED = "truncated"
    OVERLAPPING = "overlapping tensors"
    OVERLONG = "longer than its header says"
    MISSHAPEN = "shape does not fit its bytes"
    INVALID = "header cannot be read"


@attrs.frozen
class SafetensorsHeader:
    """The header of one file, and the damage in its layout."""

    tensors: Mapping[str, object] = attrs.field(factory=dict)
    """Tensor name to its entry (``dtype``, ``shape``, ``data_offsets``), as written."""
    metadata: Mapping[str, object] = attrs.field(factory=dict)
    """Metadata of the writer, such as ``format``."""
    data_bytes: int = 0
    """Size of the tensor data by the header."""
    damage: Damage | None = None
    missing_bytes: int = 0
    """Least number of bytes that a truncated file lacks."""
    misshapen: str | None = None
    """The first tensor whose shape does not fit its bytes; None when all fit, or the file is damaged otherwise."""

    @property
    def written_for_mlx(self) -> bool:
        """Whether MLX wrote the file."""
        return self.metadata.get("format") == "mlx"


def header_span(prefix: bytes) -> int:
    """Return the size of the prefix and the header, given at least the file's first 8 bytes.

    The number is untrusted: compare it with ``MAX_HEADER_BYTES`` before reading that much.
    """
    return PREFIX_BYTES + int.from_bytes(prefix[:PREFIX_BYTES], "little")


def read_header(data: bytes, size_bytes: int) -> SafetensorsHeader:
    """Read a header and check its layout. Never raises.

    Args:
        data: The file's first bytes, with the complete header if the file has it.
        size_bytes: Size of the complete file.
    """
    if size_bytes < PREFIX_BYTES or len(data) < PREFIX_BYTES:
        return SafetensorsHeader(damage=Damage.TRUNCATED, missing_bytes=max(0, PREFIX_BYTES - size_bytes))
    span = header_span(data)
    if span > MAX_HEADER_BYTES + PREFIX_BYTES:
        return SafetensorsHeader(damage=Damage.INVALID)
    if span > size_bytes:
        return SafetensorsHeader(damage=Damage.TRUNCATED, missing_bytes=span - size_bytes)
    tensors = _object(data[PREFIX_BYTES:span])
    if tensors is None:
        return SafetensorsHeader(damage=Damage.INVALID)
    metadata = tensors.pop("__metadata__", None)
    end, overlapping = _extent(tensors.values())
    if end is None:
        return SafetensorsHeader(damage=Damage.INVALID)
    missing = span + end - size_bytes
    damage = Damage.OVERLAPPING if overlapping else _size_damage(missing)
    misshapen = None if damage or _all_shapes_fit(tensors) else _first_misshapen(tensors)
    return SafetensorsHeader(
        tensors=tensors,
        metadata=metadata if isinstance(metadata, dict) else {},
        data_bytes=end,
        damage=damage if misshapen is None else Damage.MISSHAPEN,
        missing_bytes=max(0, missing),
        misshapen=misshapen,
    )


def _object(text: bytes) -> dict[str, object] | None:
    """Return a header as a JSON object; None when it is not one.

    Listings mostly parse headers, hence the fastest parser first; text that it refuses, such as NaN in the metadata, is
    parsed like all other JSON files.
    """
    try:
        value: object = orjson.loads(text)
    except ValueError:
        value = read_document(text, MAX_HEADER_BYTES).value
    return value if isinstance(value, dict) else None


def _size_damage(missing: int) -> Damage | None:
    """Judge a file by the number of missing bytes, negative for surplus bytes."""
    if missing > 0:
        return Damage.TRUNCATED
    return Damage.OVERLONG if missing < 0 else None


def _extent(tensors: Iterable[object]) -> tuple[int | None, bool]:
    """Return the end of the last tensor's data, None when an entry has no valid range, and whether tensors overlap.

    Listings check every tensor of every model: hence operations on complete lists, and a fast path for undamaged files,
    in which each tensor begins where the previous one ends.
    """
    try:
        spans = sorted([tensor["data_offsets"] for tensor in tensors])  # type: ignore[index]  # other types raise
        begins, ends = zip(*spans, strict=True) if spans else ((), ())
    except (KeyError, TypeError, ValueError):
        return None, False
    if {*map(type, begins), *map(type, ends)} - {int}:
        return None, False
    if begins == (0, *ends[:-1]) and begins[-1] <= ends[-1]:
        return ends[-1], False
    if not all(map(le, begins, ends)) or min(begins, default=0) < 0:
        return None, False
    filled = [span for span in spans if span[0] < span[1]]
    overlapping = any(begin < reached for (begin, _), (_, reached) in zip(filled[1:], filled, strict=False))
    return max((end for _, end in filled), default=0), overlapping


def _all_shapes_fit(tensors: Mapping[str, Any]) -> bool:
    """Whether all shapes fit their bytes, as in nearly every file; False means that each tensor must be checked.

    Listings check every tensor of every model: hence operations on complete lists.
    """
    values = tensors.values()
    try:
        shapes = [tensor["shape"] for tensor in values]
        bits = [_BITS[tensor["dtype"]] for tensor in values]
        # Serialised again, flat lists of non-negative integers have only digits, commas and one pair of brackets each.
        written = orjson.dumps(shapes)
        if written.translate(None, b"0123456789,[]") or written.count(b"[") != len(shapes) + 1:
            return False
        if max(map(len, shapes), default=0) > _MAX_DIMENSIONS:
            return False
        lengths = [8 * (end - begin) for begin, end in [tensor["data_offsets"] for tensor in values]]
        return [*map(mul, bits, map(math.prod, shapes))] == lengths
    except (KeyError, TypeError):
        return False


def _first_misshapen(tensors: Mapping[str, Any]) -> str | None:
    """Return the first tensor whose shape is invalid or does not fit its bytes; None when all fit."""
    return next((name for name, tensor in tensors.items() if not _fits(tensor)), None)


def _fits(tensor: Mapping[str, Any]) -> bool:
    """Whether a tensor's shape is valid and fits its bytes; of unknown dtypes only the shape is checked."""
    elements = _elements(tensor)
    dtype = tensor.get("dtype")
    if elements is None or not isinstance(dtype, str):
        return False
    begin, end = tensor["data_offsets"]
    return dtype not in _BITS or elements[0] * _BITS[dtype] == 8 * (end - begin)


def count_parameters(headers: Iterable[SafetensorsHeader], quantization: Mapping[str, object]) -> int | None:
    """Count the parameters of a model, quantized weights as if unpacked.

    Args:
        headers: The headers of all weight files.
        quantization: The config's ``quantization`` object: ``bits``, and for a layer an object with other ``bits``.

    Returns:
        The count, or None when a header is damaged or a shape is invalid.
    """
    shapes: dict[str, tuple[int, object]] = {}
    for header in headers:
        if header.damage in {Damage.INVALID, Damage.OVERLAPPING, Damage.MISSHAPEN}:
            return None
        for name, tensor in header.tensors.items():
            elements = _elements(tensor)
            if elements is None:
                return None
            shapes[name] = elements
    total = 0
    for name, (count, dtype) in shapes.items():
        layer, _, kind = name.rpartition(".")
        if kind in {"scales", "biases"} and f"{layer}.weight" in shapes:
            continue
        packed = dtype == "U32" and kind == "weight" and f"{layer}.scales" in shapes
        total += count * _PACKED_BITS // _bits(layer, quantization) if packed else count
    return total or None


_HALF_TYPES = frozenset({"F16", "BF16"})


def half_bytes(header: SafetensorsHeader, size_bytes: int) -> int:
    """Return the bytes of a weight file that are 16-bit floating-point numbers.

    Args:
        header: The header of the file.
        size_bytes: Size of the file, returned as an upper bound where the header is damaged.
    """
    if header.damage is not None:
        return size_bytes
    tensors: Iterable[Any] = header.tensors.values()
    spans = (tensor["data_offsets"] for tensor in tensors if tensor["dtype"] in _HALF_TYPES)
    return sum(end - begin for begin, end in spans)


def outside_layers(header: SafetensorsHeader) -> int:
    """Return the bytes of a weight file outside of layers, such as embeddings; 0 where the header is damaged."""
    if header.damage is not None:
        return 0
    tensors: Iterable[tuple[str, Any]] = header.tensors.items()
    spans = (tensor["data_offsets"] for name, tensor in tensors if ".layers." not in f".{name}")
    return sum(end - begin for begin, end in spans)


def unpacked_bytes(headers: Iterable[SafetensorsHeader], quantization: Mapping[str, object]) -> int | None:
    """Return the size of weights as 32-bit floating-point numbers, with quantized layers unpacked.

    Expert layers stay packed: their weights have three dimensions.

    Args:
        headers: The headers of all weight files.
        quantization: The config's ``quantization`` object; see ``count_parameters``.

    Returns:
        The bytes; None when a header is damaged, or no layer is unpacked.
    """
    tensors: dict[str, Any] = {}
    for header in headers:
        if header.damage is not None:
            return None
        tensors |= header.tensors
    total, unpacked = 0, set[str]()
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and tensor["dtype"] == "U32" and len(tensor["shape"]) == 2 and f"{layer}.scales" in tensors:
            unpacked.add(layer)
            total += 4 * math.prod(tensor["shape"]) * _PACKED_BITS // _bits(layer, quantization)
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer not in unpacked or kind not in {"weight", "scales", "biases"}:
            begin, end = tensor["data_offsets"]
            total += (end - begin) * (2 if tensor["dtype"] in _HALF_TYPES else 1)
    return total if unpacked else None


def is_quantized(header: SafetensorsHeader) -> bool:
    """Whether a file has quantized weights, which MLX packs into 32-bit integers."""
    tensors: Iterable[Any] = header.tensors.values()
    return header.damage is None and any(tensor["dtype"] == "U32" for tensor in tensors)


def _elements(tensor: object) -> tuple[int, object] | None:
    """Return a tensor's number of elements and its dtype; None when its shape is invalid."""
    if not isinstance(tensor, dict):
        return None
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        return None
    if not all(type(size) is int and 0 <= size < 2**48 for size in shape):
        return None
    return math.prod(shape), tensor.get("dtype")


def _bits(layer: str, quantization: Mapping[str, object]) -> int:
    """Return the bits to which a layer is quantized; 4 where the config does not state them."""
    override = quantization.get(layer)
    bits = override.get("bits") if isinstance(override, dict) else None
    bits = bits if bits is not None else quantization.get("bits")
    return bits if type(bits) is int and 1 <= bits <= _PACKED_BITS else 4
