"""Whether a model's files are whole: every fault found and named, and nothing claimed that was not looked at."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.errors import Remedy
from mlxk.domain.models.file_formats import Damage, SafetensorsHeader
from mlxk.domain.models.integrity import check, weight_index
from mlxk.domain.models.model import HealthStatus, Origin
from mlxk.domain.models.snapshot import ModelSnapshot

Snapshots = Callable[..., ModelSnapshot]
INDEX = "model.safetensors.index.json"
SHARDS = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


def indexed(*here: str, total_size: object = None) -> dict[str, Any]:
    """The files of a model in three shards, of which some are here."""
    index = {"metadata": {"total_size": total_size}, "weight_map": {f"t{i}": name for i, name in enumerate(SHARDS)}}
    return {"model.safetensors": None, INDEX: index} | dict.fromkeys(here, 400)


@given(data=st.data())
def test_any_snapshot_can_be_checked(data: st.DataObject, any_snapshot: st.SearchStrategy[ModelSnapshot]) -> None:
    report = check(data.draw(any_snapshot))
    assert report.reason
    assert list(report.files) == sorted(report.files)
    assert report.missing_bytes is None or report.missing_bytes > 0


def test_a_whole_model_is_healthy(make_snapshot: Snapshots) -> None:
    assert check(make_snapshot()).status is HealthStatus.HEALTHY
    assert check(make_snapshot(indexed(*SHARDS))).reason == "Multi-file model complete"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "config.json contains invalid JSON"),
        (b"[" * 50_000, "config.json contains invalid JSON (nested too deeply)"),
        (b'{"a":' + b"9" * 5000 + b"}", "config.json contains invalid JSON (contains a number that is too long)"),
        (b'{"a":"\xff"}', "config.json contains invalid JSON (not UTF-8)"),
        (b'\xef\xbb\xbf{"a":1}', "config.json contains invalid JSON (starts with a byte order mark)"),
        (b"[1]", "config.json is empty or invalid"),
        (b"{}", "config.json is empty or invalid"),
        (b"NaN", "config.json is empty or invalid"),
    ],
)
def test_a_config_that_cannot_be_used_says_why(content: bytes, reason: str, make_snapshot: Snapshots) -> None:
    assert check(make_snapshot({"config.json": content})).reason == reason


def test_numbers_and_repeated_keys_that_the_libraries_accept_are_healthy(make_snapshot: Snapshots) -> None:
    config = b'{"model_type": "mamba2", "model_type": "mamba2", "time_step_limit": [0.0, Infinity]}'
    assert check(make_snapshot({"config.json": config})).healthy


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layer", "depth", "encoder_layers", "num_blocks"])
@pytest.mark.parametrize("nested", [False, True])
def test_layers_without_end_are_found_before_a_library_builds_them(
    name: str, nested: bool, make_snapshot: Snapshots
) -> None:
    def report(count: object, tensors: int = 9) -> str:
        config = {"model_type": "llama", **({"text_config": {name: count}} if nested else {name: count})}
        header = SafetensorsHeader(tensors={f"t{index}": {} for index in range(tensors)})
        return check(make_snapshot({"config.json": config}, headers={"model.safetensors": header})).reason

    assert report(10**9) == f"config.json counts 1000000000 layers ({name}), the weights hold 9 tensors"
    for harmless in (1000, 10**9 + 0.0, "10000", True, None, -(10**9)):
        assert report(harmless) == "Model is healthy"
    assert report(2000, tensors=2000) == "Model is healthy"


def test_what_only_speaks_of_layers_counts_none(make_snapshot: Snapshots) -> None:
    config = {"model_type": "gemma3n", "vocab_size_per_layer_input": 262144, "layer_types": [], "depth_scale": 10**6}
    header = SafetensorsHeader(tensors={"t": {}})
    assert check(make_snapshot({"config.json": config}, headers={"model.safetensors": header})).healthy


def test_a_missing_shard_is_a_partial_download_and_the_index_says_how_much_is_missing(make_snapshot: Snapshots) -> None:
    headers = {name: SafetensorsHeader(data_bytes=300) for name in SHARDS[:2]}
    report = check(make_snapshot(indexed(*SHARDS[:2], total_size=1000), headers=headers))
    assert report.reason == f"Partial download: missing weight shards: {SHARDS[2]} (400 bytes missing)"
    assert (report.files, report.missing_bytes) == ((SHARDS[2],), 400)


def test_what_the_hub_recorded_says_exactly_how_much_is_missing(make_snapshot: Snapshots) -> None:
    expected = {SHARDS[1]: 111, SHARDS[2]: 222}
    report = check(make_snapshot(indexed(SHARDS[0], total_size=10**9), expected=expected))
    assert (report.files, report.missing_bytes) == (SHARDS[1:], 333)
    assert report.reason.startswith("Partial download: ")


def test_a_shard_missing_from_a_workspace_is_not_called_a_download(make_snapshot: Snapshots) -> None:
    report = check(make_snapshot(indexed(*SHARDS[:2]), origin=Origin.WORKSPACE))
    assert report.reason == f"Missing weight shards: {SHARDS[2]}"


def test_an_index_that_names_other_files_than_those_here_can_be_repaired(make_snapshot: Snapshots) -> None:
    files = indexed() | {"model-00001-of-00002.safetensors": 400, "model-00002-of-00002.safetensors": 400}
    report = check(make_snapshot(files))
    assert report.reason == "Index/shard mismatch. Index references 3 shards but found 2 different files."
    assert report.fix is Remedy.REPAIR_INDEX
    assert report.files == SHARDS


def test_an_index_whose_files_the_hub_still_has_is_a_partial_download_not_a_wrong_index(
    make_snapshot: Snapshots,
) -> None:
    report = check(make_snapshot(indexed() | {"extra.safetensors": 400}, expected=dict.fromkeys(SHARDS, 400)))
    assert report.reason.startswith("Partial download: missing weight shards")


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({}, "Empty or invalid weight_map in index"),
        ([], "Empty or invalid weight_map in index"),
        ({"a": 1}, "Empty or invalid weight_map in index"),
    ],
)
def test_an_index_without_files_is_invalid(weight_map: object, reason: str, make_snapshot: Snapshots) -> None:
    assert check(make_snapshot({INDEX: {"weight_map": weight_map}})).reason == reason


def test_an_index_that_is_not_json_is_invalid(make_snapshot: Snapshots) -> None:
    assert check(make_snapshot({INDEX: b"{"})).reason == "Invalid index file"


def test_gaps_in_the_numbering_are_named_without_an_index(make_snapshot: Snapshots) -> None:
    report = check(make_snapshot({"model.safetensors": None, SHARDS[0]: 400}))
    assert report.reason == "Partial download: missing shards by pattern: 1/3 present"
    assert report.files == SHARDS[1:]


@pytest.mark.parametrize(
    ("files", "reason", "named"),
    [
        ({"model.safetensors": None}, "No model weights found", ()),
        ({"model.safetensors": 0}, "Empty weight files: model.safetensors", ("model.safetensors",)),
        ({"config.json": None}, "config.json missing", ("config.json",)),
        ({"weights.partial": 3}, "Partial download marker detected", ("weights.partial",)),
        ({"a/x.incomplete": 3}, "Partial download marker detected", ("a/x.incomplete",)),
    ],
)
def test_what_is_missing_or_unfinished_is_named(
    files: dict[str, Any], reason: str, named: tuple[str, ...], make_snapshot: Snapshots
) -> None:
    report = check(make_snapshot(files))
    assert (report.reason, report.files) == (reason, named)


def test_missing_weights_beside_an_unfinished_file_are_a_partial_download(make_snapshot: Snapshots) -> None:
    report = check(make_snapshot({"model.safetensors": None}, unfinished=1))
    assert report.reason == "Partial download: no model weights found"


def test_a_missing_file_that_the_hub_recorded_is_a_partial_download(make_snapshot: Snapshots) -> None:
    recorded = {"model.safetensors": 400, "config.json": 77}
    report = check(make_snapshot({"config.json": None}, expected=recorded))
    assert (report.reason, report.missing_bytes) == ("Partial download: config.json missing (77 bytes missing)", 77)
    report = check(make_snapshot({"model.safetensors": None, "1_Dense/model.safetensors": 400}, expected=recorded))
    assert report.files == ("model.safetensors",)


def test_a_complete_indexed_model_is_healthy_beside_a_stray_marker(make_snapshot: Snapshots) -> None:
    assert check(make_snapshot(indexed(*SHARDS) | {"a.partial": 1})).healthy


def test_a_model_without_any_snapshot_is_a_broken_download(make_snapshot: Snapshots) -> None:
    assert check(make_snapshot(incomplete=True)).reason == "No snapshots found"
    assert check(make_snapshot(incomplete=True, unfinished=2)).reason == "Partial download: no snapshots found"


def test_broken_links_are_named_before_anything_else(make_snapshot: Snapshots) -> None:
    report = check(make_snapshot({"config.json": None}, dangling=("config.json",), expected={"config.json": 9}))
    assert report.reason == "Broken links: config.json (9 bytes missing)"
    assert (report.files, report.missing_bytes) == (("config.json",), 9)


def test_pointers_are_named_although_their_headers_make_no_sense_either(make_snapshot: Snapshots) -> None:
    damaged = {"model.safetensors": SafetensorsHeader(damage=Damage.INVALID)}
    report = check(make_snapshot(pointers=("model.safetensors",), headers=damaged))
    assert report.reason == "LFS pointers instead of files: model.safetensors"


def test_truncated_weights_are_named_with_the_bytes_they_lack(make_snapshot: Snapshots) -> None:
    headers = {
        SHARDS[0]: SafetensorsHeader(),
        SHARDS[1]: SafetensorsHeader(damage=Damage.TRUNCATED, missing_bytes=10),
        SHARDS[2]: SafetensorsHeader(damage=Damage.TRUNCATED, missing_bytes=5),
    }
    report = check(make_snapshot(indexed(*SHARDS), headers=headers))
    assert report.reason == f"Damaged safetensors, truncated: {SHARDS[1]}, {SHARDS[2]} (15 bytes missing)"
    assert (report.files, report.missing_bytes) == (SHARDS[1:], 15)


@pytest.mark.parametrize("damage", list(Damage))
def test_every_damage_a_header_shows_is_named(damage: Damage, make_snapshot: Snapshots) -> None:
    report = check(make_snapshot(headers={"model.safetensors": SafetensorsHeader(damage=damage)}))
    assert report.files == ("model.safetensors",)
    assert damage.value in report.reason


def test_a_file_shorter_or_longer_than_the_hub_recorded_is_named(make_snapshot: Snapshots) -> None:
    report = check(make_snapshot(expected={"tokenizer.json": 150}))
    assert report.reason == "Partial download: tokenizer.json (50 bytes missing)"
    assert report.missing_bytes == 50
    report = check(make_snapshot(expected={"tokenizer.json": 99}))
    assert report.reason == "Size differs from the download: tokenizer.json"


def test_a_recorded_file_that_is_not_needed_may_be_absent(make_snapshot: Snapshots) -> None:
    assert check(make_snapshot(expected={"original/consolidated.pth": 10**9, ".gitattributes": 10})).healthy


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.model": 100},
        {"spiece.model": 100},
        {"sentencepiece.bpe.model": 100},
        {"tekken.json": 100},
        {"vocab.txt": 100},
        {"vocab.json": 100, "merges.txt": 100},
        {"qwen.tiktoken": 100},
    ],
)
def test_a_tokenizer_counts_in_every_form_the_libraries_read(files: dict[str, Any], make_snapshot: Snapshots) -> None:
    assert check(make_snapshot({"tokenizer.json": None, "tokenizer_config.json": {}} | files)).healthy


def test_a_text_model_without_a_tokenizer_will_not_run(make_snapshot: Snapshots) -> None:
    assert check(make_snapshot({"tokenizer.json": None})).reason == "No tokenizer found"
    report = check(make_snapshot({"tokenizer.json": None, "tokenizer_config.json": {}}))
    assert report.reason == "tokenizer_config.json present but tokenizer.json missing"


def test_a_model_that_needs_no_tokenizer_file_is_healthy_without(make_snapshot: Snapshots) -> None:
    assert check(make_snapshot({"tokenizer.json": None, "config.json": {"model_type": "whisper"}})).healthy
    assert check(make_snapshot({"tokenizer.json": None, "model.safetensors": None, "x.gguf": 400})).healthy


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "Vision model missing preprocessor_config.json or processor_config.json"),
        ({"preprocessor_config.json": b"{"}, "preprocessor_config.json invalid JSON"),
        ({"preprocessor_config.json": []}, "preprocessor_config.json invalid"),
        ({"processor_config.json": b"{"}, "processor_config.json invalid JSON"),
        ({"processor_config.json": {}}, "Model is healthy"),
    ],
)
def test_a_vision_model_needs_a_processor(files: dict[str, Any], reason: str, make_snapshot: Snapshots) -> None:
    config = {"config.json": {"model_type": "llava", "vision_config": {"a": 1}}}
    assert check(make_snapshot(config | files)).reason == reason


def test_a_vision_model_whose_config_says_it_all_needs_no_processor_unless_it_was_listed(
    make_snapshot: Snapshots,
) -> None:
    config = {"config.json": {"model_type": "x", "vision_n_layers": 2}}
    assert check(make_snapshot(config)).healthy
    listed = make_snapshot(config, expected={"processor_config.json": 300})
    assert not check(listed).healthy


def test_a_directory_that_cannot_be_read_says_so(make_snapshot: Snapshots) -> None:
    assert check(make_snapshot(unreadable="Permission denied")).reason == "Directory cannot be read: Permission denied"


def test_many_files_are_counted_in_the_sentence_and_all_named_beside_it(make_snapshot: Snapshots) -> None:
    links = tuple(f"f{number}" for number in range(8))
    report = check(make_snapshot(dangling=links))
    assert report.reason == "Broken links: f0, f1, f2, f3, f4 and 3 more"
    assert report.files == links


def test_a_tokenizer_that_was_cut_is_named(make_snapshot: Snapshots) -> None:
    report = check(make_snapshot(cut=("tokenizer.json",)))
    assert (report.reason, report.files) == (
        "Cut short, no whole JSON object: tokenizer.json",
        ("tokenizer.json",),
    )


def test_the_first_tensor_that_cannot_be_as_it_says_is_named_with_its_file(make_snapshot: Snapshots) -> None:
    headers = {"model.safetensors": SafetensorsHeader(damage=Damage.MISSHAPEN, misshapen="layers.0.w")}
    report = check(make_snapshot(headers=headers))
    assert report.reason == (
        "Damaged safetensors, shape does not fit its bytes: model.safetensors (first tensor: layers.0.w)"
    )


CONFIG = "adapter_config.json"
ADAPTER = {"config.json": None, "model.safetensors": None, CONFIG: {"lora_parameters": {"rank": 8}}}
NAME = "adapters.safetensors"


@pytest.mark.parametrize(
    ("files", "header", "reason", "named"),
    [
        ({NAME: 9}, SafetensorsHeader(tensors={"a": {}}), "Adapter is healthy", ()),
        ({NAME: 9}, SafetensorsHeader(), f"{NAME} has no tensors in it", (NAME,)),
        ({NAME: 9}, SafetensorsHeader(damage=Damage.TRUNCATED), f"{NAME}: truncated", (NAME,)),
        ({}, SafetensorsHeader(), f"{NAME} missing", (NAME,)),
        ({CONFIG: b"{"}, SafetensorsHeader(), f"{CONFIG} is no JSON object", (CONFIG,)),
        ({CONFIG: []}, SafetensorsHeader(), f"{CONFIG} is no JSON object", (CONFIG,)),
    ],
)
def test_what_is_wrong_with_an_adapter_is_named(
    files: dict[str, Any],
    header: SafetensorsHeader,
    reason: str,
    named: tuple[str, ...],
    make_snapshot: Snapshots,
) -> None:
    report = check(make_snapshot(ADAPTER | files, headers={NAME: header}))
    assert (report.reason, report.files) == (reason, named)


def test_an_index_counts_only_for_weights_of_its_format(make_snapshot: Snapshots) -> None:
    pytorch = "pytorch_model.bin.index.json"
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    torn = {"model.safetensors": None, pytorch: index, "pytorch_model-1.bin": 300}
    assert weight_index(make_snapshot(torn)) == pytorch
    assert check(make_snapshot(torn)).files == ("pytorch_model-2.bin",)
    whole = make_snapshot({pytorch: index})
    assert (weight_index(whole), check(whole).healthy) == (None, True)
    assert weight_index(make_snapshot(torn | {INDEX: index})) == pytorch
    assert weight_index(make_snapshot({INDEX: index, "model.safetensors": None})) == INDEX
