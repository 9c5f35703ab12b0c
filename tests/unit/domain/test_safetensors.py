"""Safetensors headers against the size of their file."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.models.file_formats import (
    MAX_HEADER_BYTES,
    Damage,
    SafetensorsHeader,
    count_parameters,
    read_header,
    unpacked_bytes,
)


def header(tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def tensor(begin: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


def read(tensors: object, data_bytes: int) -> SafetensorsHeader:
    data = header(tensors)
    return read_header(data, len(data) + data_bytes)


@given(st.binary(max_size=200), st.integers(0, 2**40))
def test_any_bytes_and_any_size_give_a_header(data: bytes, size_bytes: int) -> None:
    assert isinstance(read_header(data, size_bytes), SafetensorsHeader)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["data_offsets", "shape", "dtype", "__metadata__", "w.weight", "w.scales"]), inner
        )
    ),
    max_leaves=20,
)


@given(JSON, st.integers(0, 10_000))
def test_any_json_gives_a_header_whose_parameters_can_be_asked(value: object, data_bytes: int) -> None:
    found = read(value, data_bytes)
    assert found.missing_bytes >= 0
    assert count_parameters([found], {"bits": value}) is None or found.tensors


def test_a_whole_file_has_no_damage() -> None:
    found = read({"__metadata__": {"format": "mlx"}, "b": tensor(256, 512), "a": tensor(0, 256)}, 512)
    assert (found.damage, found.data_bytes, found.written_for_mlx) == (None, 512, True)
    assert set(found.tensors) == {"a", "b"}


@given(st.integers(1, 512))
def test_a_truncated_file_lacks_exactly_the_bytes_cut_off(cut: int) -> None:
    found = read({"a": tensor(0, 256), "b": tensor(256, 512)}, 512 - cut)
    assert (found.damage, found.missing_bytes) == (Damage.TRUNCATED, cut)


def test_a_file_cut_within_its_header_is_truncated() -> None:
    data = header({"a": tensor(0, 256)})[:20]
    assert read_header(data, len(data)).damage is Damage.TRUNCATED
    assert read_header(b"", 0).damage is Damage.TRUNCATED


def test_overlapping_tensors_are_found_in_any_order() -> None:
    assert read({"a": tensor(128, 384), "b": tensor(0, 256)}, 384).damage is Damage.OVERLAPPING


def test_bytes_beyond_the_last_tensor_are_found() -> None:
    assert read({"a": tensor(0, 256)}, 257).damage is Damage.OVERLONG


def test_empty_tensors_overlap_nothing() -> None:
    assert read({"a": tensor(0, 256), "b": tensor(128, 128), "c": tensor(0, 0)}, 256).damage is None


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        {"a": 1},
        {"a": {}},
        {"a": {"data_offsets": "ab"}},
        {"a": {"data_offsets": [0]}},
        {"a": {"data_offsets": [4, 0]}},
        {"a": {"data_offsets": [-4, 0]}},
        {"a": {"data_offsets": [0.0, 4.0]}},
    ],
)
def test_a_header_that_makes_no_sense_is_invalid(tensors: object) -> None:
    assert read(tensors, 4).damage is Damage.INVALID


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("F32", [-1]),
        ("F32", [-1, -1]),
        ("F32", [1.0]),
        ("F32", [True]),
        ("F32", ["1"]),
        ("F32", "1"),
        ("F32", None),
        ("F32", [2]),
        ("F16", []),
        ("F32", [2**40, 2**40]),
        ("F32", [2**62] * 100_000),
        ("F4", [9]),
        (None, [1]),
        (["F32"], [1]),
        ("Q99", [-1]),
    ],
)
def test_a_shape_that_does_not_fit_its_bytes_is_named_by_its_tensor(dtype: object, shape: object) -> None:
    tensors = {"whole": tensor(0, 4), "odd": {"dtype": dtype, "shape": shape, "data_offsets": [4, 8]}}
    found = read(tensors, 8)
    assert (found.damage, found.misshapen) == (Damage.MISSHAPEN, "odd")
    assert count_parameters([found], {}) is None


@pytest.mark.parametrize(
    ("dtype", "shape"), [("F32", []), ("F32", [1, 1]), ("F4", [8]), ("F8_E4M3", [4]), ("C64", [0]), ("Q99", [3])]
)
def test_shapes_that_fit_and_types_that_are_not_known_yet_are_whole(dtype: str, shape: list[int]) -> None:
    size = 0 if 0 in shape else 4
    tensors = {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}, "b": tensor(size, size + 4)}
    assert read(tensors, size + 4).damage is None


def test_a_header_over_the_limit_of_the_format_is_invalid() -> None:
    data = struct.pack("<Q", MAX_HEADER_BYTES + 1)
    assert read_header(data, 2**40).damage is Damage.INVALID


def test_quantized_weights_are_counted_unpacked_and_their_scales_not() -> None:
    tensors = {
        "layer.weight": tensor(0, 256, "U32", [8, 8]),
        "layer.scales": tensor(256, 260, "F16", [2]),
        "layer.biases": tensor(260, 264, "F16", [2]),
        "layer.bias": tensor(264, 280, "F16", [8]),
        "norm.weight": tensor(280, 300, "F16", [10]),
    }
    found = read(tensors, 300)
    assert count_parameters([found], {"bits": 4}) == 8 * 8 * 8 + 8 + 10
    assert count_parameters([found], {"bits": 4, "layer": {"bits": 8}}) == 8 * 8 * 4 + 8 + 10


def test_plain_weights_are_counted_as_they_are_and_scales_without_weight_too() -> None:
    found = read({"a": tensor(0, 256, "F32", [8, 8]), "b.scales": tensor(256, 264, "F32", [2])}, 264)
    assert count_parameters([found], {}) == 66


def test_parameters_of_a_damaged_header_are_unknown() -> None:
    assert count_parameters([read([], 0)], {}) is None
    assert count_parameters([], {}) is None


def test_weights_without_packing_take_four_bytes_a_number_and_unknown_ones_are_unknown() -> None:
    tensors = {
        "layer.weight": tensor(0, 256, "U32", [8, 8]),
        "layer.scales": tensor(256, 260, "F16", [2]),
        "layer.biases": tensor(260, 264, "F16", [2]),
        "layer.bias": tensor(264, 280, "F16", [8]),
        "experts.weight": tensor(280, 344, "U32", [2, 2, 4]),
        "experts.scales": tensor(344, 348, "F16", [2]),
        "norm.weight": tensor(348, 388, "F32", [10]),
    }
    found = read(tensors, 388)
    assert unpacked_bytes([found], {"bits": 4}) == 4 * 8 * 8 * 8 + 2 * 16 + 64 + 2 * 4 + 40
    assert unpacked_bytes([found, read(tensors, 387)], {"bits": 4}) is None
    assert unpacked_bytes([read({"a": tensor(0, 256)}, 256)], {}) is None
