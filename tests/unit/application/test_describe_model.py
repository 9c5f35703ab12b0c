"""Describing one model: what its files say, and what is believed of a model that changes while it is read."""

import datetime
import json
import struct

import attrs
import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.ports.model_directories import FileListing
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.domain.errors import ModelNotFoundError
from mlxk.domain.models.model import Capability, Framework, ModelHandle, ModelType, Origin, Quantization, Workspace

NAME, COMMIT = "mlx-community/model", "a" * 40
DIRECTORY = f"/cache/{NAME}/{COMMIT}"
HANDLE = ModelHandle(NAME, DIRECTORY, Origin.CACHE, COMMIT)
WORKSPACE = ModelHandle("/ws/mine", "/ws/mine", Origin.WORKSPACE)
TENSORS = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
WHOLE = {
    "chat_template.jinja": b"{{ messages }}",
    "config.json": json.dumps({"model_type": "llama", "max_position_embeddings": 4096}).encode(),
    "model.safetensors": struct.pack("<Q", len(TENSORS)) + TENSORS + bytes(16),
    "tokenizer.json": b"{}",
}
CUT = WHOLE | {"model.safetensors": WHOLE["model.safetensors"][:-6]}
MODIFIED = datetime.datetime(2026, 5, 4, 3, 2, 1, tzinfo=datetime.UTC)


class ChangingFiles(InMemoryModelFiles):
    """Files of one directory that are others at each listing; the last ones stay. None: the directory is gone."""

    def __init__(self, directory: str, *states: dict[str, bytes] | None) -> None:
        super().__init__({directory: {}})
        self._directory = directory
        self._states = list(states)
        self.listings = 0

    def list(self, directory: str) -> FileListing:
        self.listings += 1
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        self.directories = {} if state is None else {self._directory: state}
        return super().list(directory)


def describing(
    files: InMemoryModelFiles, cached: CachedModel | None = None, workspace: Workspace | None = None
) -> DescribeModel:
    workspaces = InMemoryWorkspaceStore({} if workspace is None else {WORKSPACE.directory: workspace})
    cache = InMemoryModelCache({} if cached is None else {NAME: cached})
    return DescribeModel(
        files, workspaces, InMemoryBackendRegistry({"mlx-lm": {"llama"}}), cache, default_owner="mlx-community"
    )


def test_a_description_is_what_the_files_say() -> None:
    files = InMemoryModelFiles({DIRECTORY: WHOLE}, modified=MODIFIED)
    description = describing(files, CachedModel((COMMIT,)))(HANDLE)
    assert (description.handle, description.modified) == (HANDLE, MODIFIED)
    assert description.size_bytes == sum(map(len, WHOLE.values()))
    assert (description.framework, description.model_type) == (Framework.MLX, ModelType.CHAT)
    assert set(description.capabilities) == {Capability.TEXT_GENERATION, Capability.CHAT}
    assert description.context_length == 4096
    assert (description.health.healthy, description.runtime.compatible) == (True, True)
    assert description.workspace is None


@pytest.mark.parametrize(
    ("name", "source", "framework"),
    [
        ("/ws/mine", "mlx-community/model", Framework.MLX),
        ("/ws/mlx-community/model", None, Framework.MLX),
        ("/ws/mine", "org/mlx-community", Framework.PYTORCH),
        ("/ws/mine", None, Framework.PYTORCH),
    ],
)
def test_weights_of_the_default_owner_are_in_the_format_of_mlx(
    name: str, source: str | None, framework: Framework
) -> None:
    handle = attrs.evolve(WORKSPACE, name=name)
    describe = describing(
        InMemoryModelFiles({handle.directory: WHOLE}), workspace=Workspace(managed=True, source_repo=source)
    )
    assert describe(handle).framework is framework


def test_an_architecture_that_no_installed_backend_knows_cannot_run() -> None:
    config = json.dumps({"model_type": "unheard_of"}).encode()
    files = InMemoryModelFiles({DIRECTORY: WHOLE | {"config.json": config}})
    description = describing(files, CachedModel((COMMIT,)))(HANDLE)
    assert (description.health.healthy, description.runtime.compatible) == (True, False)
    assert description.runtime.reason


def test_health_and_details_agree_with_the_description() -> None:
    describe = describing(InMemoryModelFiles({DIRECTORY: CUT}), CachedModel((COMMIT,)))
    assert not describe(HANDLE).health.healthy
    assert describe.health(HANDLE) == describe.details(HANDLE).description.health == describe(HANDLE).health


def test_details_are_what_the_files_say() -> None:
    template = b"{% if enable_thinking %}<think></think>{% endif %}{{ tools }}{{ messages }}"
    tokens = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    config = {**json.loads(WHOLE["config.json"]), "quantization": {"bits": 4, "group_size": 32}}
    files = {
        **WHOLE,
        "README.md": b"---\nlicense: mit\n---\n",
        "chat_template.jinja": template,
        "config.json": json.dumps(config).encode(),
        "model.fp16.safetensors": WHOLE["model.safetensors"],
        "tokenizer_config.json": json.dumps(
            {"added_tokens_decoder": {str(index): {"content": token} for index, token in enumerate(tokens)}}
        ).encode(),
    }
    describe = describing(InMemoryModelFiles({DIRECTORY: files}), CachedModel((COMMIT,)))
    details = describe.details(HANDLE)
    assert details.description == describe(HANDLE)
    assert {entry.path: entry.size_bytes for entry in details.files} == {path: len(files[path]) for path in files}
    assert details.strays == ("model.fp16.safetensors",)
    assert details.description.size_bytes == sum(map(len, files.values())) - len(files["model.fp16.safetensors"])
    assert details.config == config
    assert details.quantization == Quantization(4, 32)
    assert (details.parameters, details.license) == (4, "mit")
    assert (details.chat_template, details.template_read, details.template_text) == (True, True, template.decode())
    assert (details.tools_missing, details.supports_reasoning, details.inserts) == (None, True, True)


def test_details_of_a_model_without_a_template_or_a_config_claim_nothing() -> None:
    files = {"model.safetensors": WHOLE["model.safetensors"], "tokenizer.json": b"{}", "config.json": b"[1]"}
    details = describing(InMemoryModelFiles({DIRECTORY: files}), CachedModel((COMMIT,))).details(HANDLE)
    assert (details.config, details.quantization, details.license) == (None, None, None)
    assert (details.chat_template, details.template_read, details.supports_reasoning) == (False, False, False)
    assert (details.tools_missing is None, details.inserts) == (False, False)


def test_only_a_whole_model_that_generates_text_has_its_formats_checked() -> None:
    unread = {**WHOLE, "chat_template.jinja": b"{% for m in messages %}{{ m.content }}"}
    for files, healthy, problems in (
        (WHOLE, True, 0),
        (unread, True, 1),
        ({**unread, "model.safetensors": CUT["model.safetensors"]}, False, 0),
        ({**unread, "config.json": json.dumps({"model_type": "bert"}).encode()}, True, 0),
    ):
        describe = describing(InMemoryModelFiles({DIRECTORY: files}), CachedModel((COMMIT,)))
        report, found = describe.checked(HANDLE)
        assert (report, report.healthy, len(found)) == (describe.health(HANDLE), healthy, problems), found


def test_a_model_that_is_whole_is_read_once() -> None:
    files = ChangingFiles(DIRECTORY, WHOLE)
    assert describing(files, CachedModel((COMMIT,))).health(HANDLE).healthy
    assert files.listings == 1


def test_a_model_that_is_completed_while_it_is_read_is_whole() -> None:
    files = ChangingFiles(DIRECTORY, {"config.json": WHOLE["config.json"]}, CUT, WHOLE)
    assert describing(files, CachedModel((COMMIT,))).health(HANDLE).healthy


def test_damage_is_believed_when_the_directory_stays_as_it_was() -> None:
    files = ChangingFiles(DIRECTORY, CUT)
    assert describing(files, CachedModel((COMMIT,))).health(HANDLE).files == ("model.safetensors",)
    assert files.listings == 2


def test_a_directory_that_never_stops_changing_is_reported_as_it_is_found() -> None:
    states = [CUT | {f"{number}.txt": b"x"} for number in range(100)]
    files = ChangingFiles(DIRECTORY, *states)
    assert not describing(files, CachedModel((COMMIT,))).health(HANDLE).healthy
    assert files.listings < 10


@pytest.mark.parametrize("cached", [None, CachedModel(("b" * 40,))], ids=["all of it", "this revision"])
@pytest.mark.parametrize("states", [(None,), (CUT, None)], ids=["before it is read", "while it is read"])
def test_a_cached_model_that_was_removed_is_not_found(
    cached: CachedModel | None, states: tuple[dict[str, bytes] | None, ...]
) -> None:
    with pytest.raises(ModelNotFoundError, match=NAME):
        describing(ChangingFiles(DIRECTORY, *states), cached)(HANDLE)


@pytest.mark.parametrize("states", [(None,), (CUT, None)], ids=["before it is read", "while it is read"])
def test_a_workspace_that_was_removed_is_not_found(states: tuple[dict[str, bytes] | None, ...]) -> None:
    with pytest.raises(ModelNotFoundError):
        describing(ChangingFiles(WORKSPACE.directory, *states)).details(WORKSPACE)


def test_a_directory_that_is_there_and_cannot_be_read_is_damage() -> None:
    description = describing(ChangingFiles(DIRECTORY, None), CachedModel((COMMIT,)))(HANDLE)
    assert not description.health.healthy
    assert description.health.reason.startswith("Directory cannot be read")
    assert description.size_bytes == 0
    assert not description.runtime.compatible


def test_a_workspace_that_cannot_be_read_is_still_a_workspace() -> None:
    unreadable = describing(ChangingFiles(WORKSPACE.directory, None), workspace=Workspace(managed=True))(WORKSPACE)
    assert unreadable.workspace is not None
    assert not unreadable.health.healthy


def test_a_workspace_is_described_with_its_provenance() -> None:
    workspace = Workspace(managed=True, source_repo=NAME, clean=False)
    describe = describing(InMemoryModelFiles({WORKSPACE.directory: WHOLE}), workspace=workspace)
    assert describe(WORKSPACE).workspace == workspace
    assert describe(WORKSPACE).framework is Framework.MLX


def test_unfinished_downloads_explain_what_a_cached_model_lacks_and_harm_none_that_is_whole() -> None:
    lacking = InMemoryModelFiles({DIRECTORY: {"config.json": WHOLE["config.json"]}})
    whole = InMemoryModelFiles({DIRECTORY: WHOLE})
    unfinished = CachedModel((COMMIT,), unfinished=2)
    assert describing(whole, unfinished).health(HANDLE).healthy
    reports = [describing(lacking, cached).health(HANDLE) for cached in (CachedModel((COMMIT,)), unfinished)]
    assert not any(report.healthy for report in reports)
    assert reports[0].reason != reports[1].reason
    assert "Partial download" in reports[1].reason
