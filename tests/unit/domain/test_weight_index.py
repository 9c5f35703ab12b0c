"""Rebuilding an index, and refusing to where weights are absent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.errors import ConversionFailedError
from mlxk.domain.models.file_formats import Damage, SafetensorsHeader
from mlxk.domain.models.weights import absent_layers, absent_shards, absent_tensors, build_index, require_complete


def header(*tensors: str, size: int = 4) -> SafetensorsHeader:
    return SafetensorsHeader(tensors=dict.fromkeys(tensors), data_bytes=size)


@given(st.dictionaries(st.text(min_size=1), st.sampled_from(["a", "b", "c"]), max_size=20))
def test_the_index_names_for_every_tensor_the_file_that_holds_it(where: dict[str, str]) -> None:
    headers = {
        file: header(*(tensor for tensor, holder in where.items() if holder == file)) for file in ("a", "b", "c")
    }
    index = build_index(headers)
    assert index["weight_map"] == where
    assert index["metadata"] == {"total_size": 12}


def test_a_tensor_in_two_files_or_a_damaged_file_stops_it() -> None:
    with pytest.raises(ConversionFailedError, match="x is in two files: a and b"):
        build_index({"a": header("x"), "b": header("x")})
    with pytest.raises(ConversionFailedError, match="b is damaged"):
        build_index({"a": header("x"), "b": SafetensorsHeader(damage=Damage.TRUNCATED)})


def test_files_that_count_themselves_tell_which_are_absent() -> None:
    here = ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "other.safetensors"]
    assert absent_shards(here) == ["model-00002-of-00003.safetensors"]
    assert absent_shards(["model.safetensors"]) == []


def test_thousands_of_shards_are_compared_at_once() -> None:
    here = [f"model-{number:05d}-of-09999.safetensors" for number in range(1, 9999)]
    assert absent_shards(here) == ["model-09999-of-09999.safetensors"]


def test_tensors_of_an_old_index_are_absent_only_when_no_file_holds_them() -> None:
    old = {"weight_map": {"a": "gone", "b": "gone", "c": "here"}}
    assert absent_tensors(old, ["here"], frozenset({"b", "c"})) == ["a"]
    assert absent_tensors({}, ["here"], frozenset()) == []


def test_layers_are_counted_in_the_stack_that_comes_nearest_to_the_config() -> None:
    whole = frozenset({"model.layers.0.w", "model.layers.1.w", "model.layers.2.w", "vision.blocks.0.w", "lm_head.w"})
    assert absent_layers({"num_hidden_layers": 3}, whole) == ([], 0)
    assert absent_layers({"num_hidden_layers": 3}, whole - {"model.layers.1.w"}) == (["model.layers.1"], 1)
    assert absent_layers({"text_config": {"num_hidden_layers": 4}}, whole) == (["model.layers.3"], 1)
    for config in ({}, {"num_hidden_layers": "three"}, {"num_hidden_layers": 0}, {"num_hidden_layers": 2}):
        assert absent_layers(config, whole) == ([], 0)


def test_what_is_missing_is_named_and_counted() -> None:
    names = ["m-00001-of-00002.safetensors"]
    old = {"weight_map": {f"layers.{number}.w": "m-00002-of-00002.safetensors" for number in range(7)}}
    with pytest.raises(ConversionFailedError, match=r"layers\.0\.w, .* and 2 more \(absent: m-00002") as failure:
        require_complete(names, frozenset(), old, {})
    assert failure.value.detail is not None
    assert len(failure.value.detail["missing"]) == 7  # type: ignore[arg-type]
    require_complete(["m.safetensors"], frozenset(), {}, {})


def test_layers_beyond_number_are_counted_and_only_the_first_listed() -> None:
    config, present = (
        {"num_hidden_layers": 10**12},
        frozenset({"model.layers.1.w", "model.layers." + "9" * 5000 + ".w"}),
    )
    listed, count = absent_layers(config, present)
    assert (listed[:2], count) == (["model.layers.0", "model.layers.2"], 10**12 - 1)
    with pytest.raises(ConversionFailedError, match=f"and {10**12 - 6} more"):
        require_complete(["m.safetensors"], present, {}, config)
