"""What a server offers, and which name means which model."""

import attrs
import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.clock import InMemoryClock
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.text_generator import InMemoryTextGenerator
from doubles.workspace_store import InMemoryWorkspaceStore
from serving.parts import BROKEN_MODEL, CHAT, CHAT_MODEL, COMMIT, OTHER_MODEL

from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.application.use_cases.serve_catalogue import FRESH_SECONDS, ServeCatalogue
from mlxk.domain.errors import (
    AmbiguousModelError,
    ModelNotFoundError,
    UnhealthyModelError,
    ValidationError,
)
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.model import Workspace

WORKSPACE = "/home/ada/models/mine"


class Shelf:
    """A machine with models in cache and workspaces, and the catalogue over it."""

    def __init__(self, *names: str, allow_paths: bool = False, home: str | None = "/home/ada/models") -> None:
        directories = [*(f"/cache/{name}/{COMMIT}" for name in names), WORKSPACE]
        self.model_files = InMemoryModelFiles({directory: dict(CHAT) for directory in directories})
        self.clock = InMemoryClock()
        self.generator = InMemoryTextGenerator()
        self.cache = InMemoryModelCache({name: CachedModel((COMMIT,)) for name in names})
        workspaces = InMemoryWorkspaceStore({WORKSPACE: Workspace(managed=False)}, home=home)
        built_in = InMemoryModelSource()
        registry = InMemoryBackendRegistry({"mlx-lm": {"llama"}})
        self.describe = DescribeModel(self.model_files, workspaces, registry, self.cache, default_owner="mlx-community")
        self.resolve = ResolveModel(self.cache, workspaces, built_in, default_owner="mlx-community")
        self.catalogue = ServeCatalogue(
            self.resolve,
            self.describe,
            self.generator,
            self.clock,
            allow_paths,
        )

    def load(self, reference: str) -> None:
        """Have a model in memory."""
        handle = self.resolve(reference)
        list(self.generator.submit(GenerationRequest(handle, "hi")))


def test_runnable_models_are_listed_by_the_names_clients_use_those_in_memory_first() -> None:
    shelf = Shelf(CHAT_MODEL, OTHER_MODEL)
    assert [served.id for served in shelf.catalogue()] == ["mine", CHAT_MODEL, OTHER_MODEL]
    shelf.load(OTHER_MODEL)
    assert [served.id for served in shelf.catalogue()] == [OTHER_MODEL, "mine", CHAT_MODEL]


def test_what_cannot_run_is_not_listed_and_is_refused_by_name() -> None:
    shelf = Shelf(CHAT_MODEL, BROKEN_MODEL)
    del shelf.model_files.directories[f"/cache/{BROKEN_MODEL}/{COMMIT}"]["model.safetensors"]
    assert BROKEN_MODEL not in [served.id for served in shelf.catalogue()]
    with pytest.raises(UnhealthyModelError, match=BROKEN_MODEL):
        shelf.catalogue.find(BROKEN_MODEL)


def test_a_client_may_write_less_than_the_whole_name() -> None:
    catalogue = Shelf(CHAT_MODEL, OTHER_MODEL).catalogue
    assert catalogue.find("chat-model").id == CHAT_MODEL
    assert catalogue.find(f"{CHAT_MODEL}@{COMMIT[:7]}").id == CHAT_MODEL
    with pytest.raises(AmbiguousModelError):
        catalogue.find("org")


@pytest.mark.parametrize("path", [WORKSPACE, "./mine", "../x", "~/models/mine", "/etc", " /etc"])
def test_a_path_means_nothing_where_paths_are_not_allowed(path: str) -> None:
    with pytest.raises(ValidationError, match="paths are not accepted"):
        Shelf(CHAT_MODEL).catalogue.find(path)


def test_a_path_is_a_model_where_the_operator_allows_it_and_is_never_shown() -> None:
    shelf = Shelf(CHAT_MODEL, allow_paths=True, home=None)
    assert shelf.catalogue.find(WORKSPACE).id == "mine"


def test_a_model_the_operator_named_by_path_has_a_short_name() -> None:
    shelf = Shelf(CHAT_MODEL, home=None)
    assert shelf.catalogue.offer(WORKSPACE).id == "mine"
    assert shelf.catalogue.find("mine").handle.directory == WORKSPACE
    assert shelf.catalogue.find(WORKSPACE).handle.directory == WORKSPACE
    assert [served.id for served in shelf.catalogue()] == ["mine", CHAT_MODEL]


def test_the_engine_gets_to_know_a_workspace_by_its_short_name_only() -> None:
    shelf = Shelf(CHAT_MODEL, home=None)
    handle = shelf.catalogue.offer(WORKSPACE).handle
    assert (handle.name, handle.label, handle.directory) == ("mine", "mine", WORKSPACE)
    list(shelf.generator.submit(GenerationRequest(handle, "hi")))
    assert set(shelf.catalogue.loaded()) == {"mine"}
    assert [served.id for served in shelf.catalogue()] == ["mine", CHAT_MODEL]


def test_a_refused_workspace_is_named_without_its_directory() -> None:
    shelf = Shelf(CHAT_MODEL, allow_paths=True, home=None)
    del shelf.model_files.directories[WORKSPACE]["model.safetensors"]
    with pytest.raises(UnhealthyModelError) as refused:
        shelf.catalogue.find(WORKSPACE)
    assert "/home" not in f"{refused.value.message} {refused.value.hint}"


def test_a_new_model_is_listed_and_found_after_a_moment() -> None:
    shelf = Shelf(CHAT_MODEL)
    shelf.catalogue()
    shelf.cache.models[OTHER_MODEL] = CachedModel((COMMIT,))
    shelf.model_files.directories[f"/cache/{OTHER_MODEL}/{COMMIT}"] = CHAT
    assert OTHER_MODEL not in [served.id for served in shelf.catalogue()]
    shelf.clock.advance(FRESH_SECONDS)
    assert OTHER_MODEL in [served.id for served in shelf.catalogue()]
    assert shelf.catalogue.find(OTHER_MODEL).id == OTHER_MODEL


def test_a_removed_model_is_not_found_after_a_moment() -> None:
    shelf = Shelf(CHAT_MODEL, OTHER_MODEL)
    assert shelf.catalogue.find(OTHER_MODEL).id == OTHER_MODEL
    del shelf.cache.models[OTHER_MODEL]
    shelf.clock.advance(FRESH_SECONDS)
    with pytest.raises(ModelNotFoundError):
        shelf.catalogue.find(OTHER_MODEL)


def test_a_fingerprint_is_of_the_weights_and_not_of_the_machine() -> None:
    first, second = Shelf(CHAT_MODEL, OTHER_MODEL), Shelf(CHAT_MODEL)
    assert first.catalogue.find(CHAT_MODEL).fingerprint == second.catalogue.find("chat-model").fingerprint
    assert first.catalogue.find(CHAT_MODEL).fingerprint != first.catalogue.find(OTHER_MODEL).fingerprint


def test_an_alias_whose_model_cannot_be_served_is_named_with_the_reason() -> None:
    shelf = Shelf(CHAT_MODEL, BROKEN_MODEL)
    del shelf.model_files.directories[f"/cache/{BROKEN_MODEL}/{COMMIT}"]["model.safetensors"]
    aliases = {"fine": CHAT_MODEL, "gone": "org/nosuch", "torn": BROKEN_MODEL}
    resolve = attrs.evolve(shelf.resolve, aliases=aliases)
    catalogue = ServeCatalogue(resolve, shelf.describe, shelf.generator, shelf.clock, False)
    reasons = dict(catalogue.unusable())
    assert list(reasons) == ["gone", "torn"]
    assert reasons["gone"] == "'gone' means org/nosuch: no model found matching 'org/nosuch'"
    assert "is damaged or incomplete" in reasons["torn"]
    assert [(served.id, served.alias_of) for served in catalogue()] == [
        ("fine", CHAT_MODEL),
        ("mine", None),
        (CHAT_MODEL, None),
    ]
    with pytest.raises(ModelNotFoundError, match="'gone' stands for a model that is not here"):
        catalogue.find("gone")


def test_the_ending_that_means_the_usual_version_is_ignored() -> None:
    shelf = Shelf(CHAT_MODEL, "org/mine-4bit", "org/mine-8bit", home=None)
    shelf.catalogue.offer(WORKSPACE)
    assert shelf.catalogue.find("chat-model:latest").id == CHAT_MODEL
    assert shelf.catalogue.find("mine:latest").handle.directory == WORKSPACE
    for name in (":latest", "nosuch:latest", "chat-model:8b"):
        with pytest.raises((ModelNotFoundError, ValidationError)):
            shelf.catalogue.find(name)


def test_an_adapter_is_listed_as_a_further_name_of_its_base_and_not_at_all_without_it() -> None:
    shelf = Shelf(CHAT_MODEL, OTHER_MODEL)
    bases = {WORKSPACE: CHAT_MODEL, f"/cache/{OTHER_MODEL}/{COMMIT}": "org/nosuch"}
    resolve = attrs.evolve(shelf.resolve, base_of=bases.get)
    catalogue = ServeCatalogue(resolve, shelf.describe, shelf.generator, shelf.clock, False)
    assert [(served.id, served.alias_of) for served in catalogue()] == [("mine", CHAT_MODEL), (CHAT_MODEL, None)]


def test_remembered_names_are_bounded() -> None:
    shelf = Shelf(CHAT_MODEL)
    for number in range(600):
        shelf.catalogue.find(f"chat-model{' ' * (number % 300)}")
    assert len(shelf.catalogue._found) <= 256
