"""What of a model is fetched, and what the hub may not talk us into."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.errors import DownloadFailedError, IncompatibleModelError, ValidationError
from mlxk.domain.hub import (
    RemoteFile,
    RemoteModel,
    SkipReason,
    check_commit,
    check_file,
    check_revision,
    plan_download,
)
from mlxk.domain.models.reference import check_name

SHA1, SHA256 = "1" * 40, "2" * 64


def model(*paths: str) -> RemoteModel:
    files = tuple(RemoteFile(path, 10, f"{number:040x}") for number, path in enumerate(sorted(paths)))
    return RemoteModel("org/m", "c" * 40, files)


def test_weights_tokenizers_json_and_papers_are_fetched() -> None:
    wanted = [
        "config.json", "model.safetensors", "tokenizer.model", "merges.txt", "qwen.tiktoken", "chat_template.jinja",
        "LICENSE", "README.md", "NOTICE.txt", "1_Pooling/config.json", "2_Dense/model.safetensors", "tekken.json",
    ]  # fmt: skip
    plan = plan_download(model(*wanted))
    assert [file.path for file in plan.files] == sorted(wanted)
    assert plan.skipped == ()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("pytorch_model.bin", SkipReason.PICKLE),
        ("original/consolidated.00.pth", SkipReason.PICKLE),
        ("sub/WEIGHTS.PT", SkipReason.PICKLE),
        ("modeling_x.py", SkipReason.CODE),
        ("run.sh", SkipReason.CODE),
        ("m.Q4.gguf", SkipReason.OTHER_WEIGHTS),
        ("onnx/model.onnx_data", SkipReason.OTHER_WEIGHTS),
        ("consolidated.safetensors", SkipReason.OTHER_WEIGHTS),
        (".gitattributes", SkipReason.UNUSED),
        (".cache/x.json", SkipReason.UNUSED),
        ("picture.png", SkipReason.UNUSED),
    ],
)
def test_what_could_run_or_is_of_no_use_is_left_on_the_hub(path: str, reason: SkipReason) -> None:
    plan = plan_download(model("model.safetensors", path))
    assert [(file.path, file.reason) for file in plan.skipped] == [(path, reason)]


@pytest.mark.parametrize(
    ("reason", "names"),
    [
        (SkipReason.PICKLE, "a.bin a.pt a.pth a.pkl a.pickle a.ckpt a.joblib a.mar"),
        (SkipReason.CODE, "a.py a.pyc a.sh a.so a.dylib a.dll a.exe a.js a.whl a.ipynb"),
        (
            SkipReason.OTHER_WEIGHTS,
            "a.gguf a.ggml a.onnx a.onnx_data a.h5 a.msgpack a.tflite a.npz a.npy a.mlmodel "
            "consolidated-1.safetensors adapter_model.safetensors adapters.safetensors 0001_adapters.safetensors "
            "my-LoRA-2.safetensors optimizer.safetensors optim_0.safetensors scheduler.safetensors "
            "training_args.safetensors rng_state_0.safetensors pytorch_model.safetensors tf_model.safetensors "
            "flax_model.safetensors model.fp16.safetensors model-int8.safetensors model_ema.safetensors",
        ),
        (None, "a.json a.jsonl a.jinja a.model a.model.v3 a.tiktoken a.spm a.txt LICENCE Use_Policy.md Readme NOTICE"),
    ],
)
def test_each_kind_of_file_is_fetched_or_left_for_its_reason(reason: SkipReason | None, names: str) -> None:
    for name in names.split():
        plan = plan_download(model("model.safetensors", name, f"sub/{name}".upper()))
        skipped = {file.path: file.reason for file in plan.skipped}
        assert skipped.get(name) is reason, name
        assert skipped.get(f"sub/{name}".upper()) is reason or name.endswith(".safetensors"), name


def test_weights_of_another_name_are_fetched_when_there_are_no_others() -> None:
    assert [file.path for file in plan_download(model("consolidated.safetensors")).files] == [
        "consolidated.safetensors"
    ]


def test_a_model_without_safetensors_is_refused_and_its_weights_are_named() -> None:
    with pytest.raises(IncompatibleModelError, match=r"pytorch_model\.bin") as failure:
        plan_download(model("config.json", "pytorch_model.bin", "x.gguf"))
    assert failure.value.detail == {"weights": ["pytorch_model.bin", "x.gguf"]}


def test_a_content_that_several_files_share_counts_once() -> None:
    files = tuple(RemoteFile(path, 10, SHA1) for path in ("a.json", "b.json", "model.safetensors"))
    assert plan_download(RemoteModel("org/m", "c" * 40, files)).size_bytes == 10


@pytest.mark.parametrize("name", ["org/m", "a/b", "Org.x/Name_1-2.3", "0/_x", "o/" + "n" * 94])
def test_names_of_repositories_are_accepted(name: str) -> None:
    assert check_name(name) == name


@given(st.text(alphabet="ab/.-_@\\:\0\n é%~", max_size=20))
def test_no_accepted_name_leads_anywhere_but_one_directory(name: str) -> None:
    try:
        check_name(name)
    except ValidationError:
        return
    owner, _, rest = name.partition("/")
    assert owner not in {"", ".", ".."}
    assert rest not in {"", ".", ".."}
    assert not set(name) & set("@\\:\0\n é%~")


@given(st.text(alphabet="ab/.-_@\\:\0\n é%~+", max_size=20))
def test_no_accepted_revision_leads_out_of_a_directory(revision: str) -> None:
    try:
        check_revision(revision)
    except ValidationError:
        return
    assert not revision.startswith(("/", ".", "-"))
    assert ".." not in revision
    assert all(revision.split("/"))
    assert not set(revision) & set("@\\:\0\n é%~")


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0+mlx", "feature/x_y", "a" * 40])
def test_branches_tags_and_commits_are_accepted(revision: str) -> None:
    assert check_revision(revision) == revision


@pytest.mark.parametrize(
    "file",
    [
        RemoteFile("../x", 1, SHA1),
        RemoteFile("/etc/x", 1, SHA1),
        RemoteFile("a/../../x", 1, SHA1),
        RemoteFile("a//b", 1, SHA1),
        RemoteFile("a\\b", 1, SHA1),
        RemoteFile("C:/x", 1, SHA1),
        RemoteFile("a\nb", 1, SHA1),
        RemoteFile("", 1, SHA1),
        RemoteFile("a", 1, "../../../../x"),
        RemoteFile("a", 1, SHA1, "../" + "2" * 61),
        RemoteFile("a", 1, SHA1.upper().replace("1", "A")),
        RemoteFile("a", -1, SHA1),
    ],
)
def test_a_listing_that_leads_out_of_the_model_is_not_believed(file: RemoteFile) -> None:
    with pytest.raises(DownloadFailedError):
        check_file(file)


@pytest.mark.parametrize("commit", [None, "", "main", "../x", "A" * 40, "a" * 39])
def test_a_commit_that_is_none_is_not_believed(commit: str | None) -> None:
    with pytest.raises(DownloadFailedError):
        check_commit(commit)


def test_a_sound_file_is_believed() -> None:
    for file in (RemoteFile("a/b.json", 0, SHA1), RemoteFile("w", 9, SHA1, SHA256)):
        assert check_file(file) == file
