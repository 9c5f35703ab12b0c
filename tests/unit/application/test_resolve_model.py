"""Resolution: what a typed reference means on this machine."""

import attrs
import pytest
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_source import InMemoryModelSource
from doubles.workspace_store import InMemoryWorkspaceStore
from hypothesis import given
from hypothesis import strategies as st

from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import (
    Advice,
    AmbiguousModelError,
    MlxkError,
    ModelNotFoundError,
    Remedy,
    RevisionNotFoundError,
    ValidationError,
)
from mlxk.domain.models.model import Origin, Workspace
from mlxk.domain.models.reference import ModelRef

OLD, NEW = "a" * 40, "ab" * 20


def resolver(*cached: str, home: tuple[str, ...] = (), elsewhere: tuple[str, ...] = ()) -> ResolveModel:
    models = {name: CachedModel((OLD, NEW), {"main": OLD, "v1": NEW}) for name in cached}
    places = [*(f"/ws/{name}" for name in home), *elsewhere]
    return ResolveModel(
        InMemoryModelCache(models),
        InMemoryWorkspaceStore({place: Workspace(managed=False) for place in places}, home="/ws"),
        InMemoryModelSource({"demo": "/built-in/demo"}),
        default_owner="mlx-community",
    )


def test_a_built_in_model_wins_over_every_other_meaning() -> None:
    resolve = resolver("demo", "mlx-community/demo", home=("demo",))
    assert resolve("demo").origin is Origin.BUILT_IN


def test_a_built_in_model_has_no_revisions() -> None:
    with pytest.raises(ValidationError, match="built-in model 'demo' has none"):
        resolver("mlx-community/demo")("demo@main")


def test_an_explicit_path_means_the_workspace_there() -> None:
    handle = resolver("org/gemma", elsewhere=("/home/me/gemma",))("./gemma")
    assert (handle.origin, handle.directory) == (Origin.WORKSPACE, "/home/me/gemma")


def test_an_explicit_path_never_means_a_cached_model() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model at '\./gemma'"):
        resolver("org/gemma")("./gemma")


def test_a_bare_name_never_means_a_directory_of_the_working_directory() -> None:
    resolve = resolver("org/gemma", elsewhere=("/home/me/org/gemma", "/home/me/llama"))
    assert resolve("org/gemma").origin is Origin.CACHE
    with pytest.raises(ModelNotFoundError):
        resolve("llama")


def test_a_workspace_of_the_home_wins_over_cached_models_by_its_exact_name() -> None:
    assert resolver("gemma", "mlx-community/gemma", home=("gemma",))("gemma").origin is Origin.WORKSPACE


@pytest.mark.parametrize(
    ("reference", "cached", "expected"),
    [
        ("org/gemma", ("org/gemma", "org/gemma-2"), "org/gemma"),
        ("gemma", ("mlx-community/gemma", "org/gemma"), "mlx-community/gemma"),
        ("gemma", ("org/gemma", "org/gemma-2"), "org/gemma"),
        ("GEMMA", ("org/Gemma", "org/Gemma-2"), "org/Gemma"),
        ("ORG/gemma", ("org/Gemma", "org/Gemma-2"), "org/Gemma"),
        ("Demo", ("org/demo", "org/my-demo"), "demo"),
        ("gemma", ("org/big-Gemma-2", "org/llama"), "org/big-Gemma-2"),
        ("org/gem", ("org/gemma", "other/gemma"), "org/gemma"),
        ("gpt2", ("gpt2", "org/gpt2-large"), "gpt2"),
        ("demo:latest", (), "demo"),
        ("org/gemma:latest", ("org/gemma", "org/gemma-2"), "org/gemma"),
    ],
)
def test_the_first_step_that_fits_decides(reference: str, cached: tuple[str, ...], expected: str) -> None:
    assert resolver(*cached)(reference).name == expected


@pytest.mark.parametrize(
    ("reference", "cached", "home", "matches"),
    [
        ("gemma", ("b/gemma", "a/gemma", "c/gemma-2"), (), ("a/gemma", "b/gemma")),
        ("gem", ("b/gemma", "a/gemma"), ("gem-mine",), ("a/gemma", "b/gemma", "gem-mine")),
        ("gemma@main", ("b/gemma", "a/gemma"), (), ("a/gemma", "b/gemma")),
    ],
)
def test_several_models_at_one_step_are_an_error_with_sorted_matches(
    reference: str, cached: tuple[str, ...], home: tuple[str, ...], matches: tuple[str, ...]
) -> None:
    with pytest.raises(AmbiguousModelError) as caught:
        resolver(*cached, home=home)(reference)
    assert caught.value.matches == matches


@pytest.mark.parametrize("reference", ["org/gemma", "gemma", "GEM"])
@pytest.mark.parametrize(("revision", "commit"), [("main", OLD), ("v1", NEW), ("abab", NEW), (NEW, NEW)])
def test_a_revision_is_found_by_branch_tag_or_commit(reference: str, revision: str, commit: str) -> None:
    handle = resolver("org/gemma", home=("gemma",))(f"{reference}@{revision}")
    assert (handle.name, handle.revision) == ("org/gemma", commit)


@pytest.mark.parametrize("revision", ["nope", "a"])
def test_an_unknown_or_ambiguous_revision_is_refused(revision: str) -> None:
    with pytest.raises(RevisionNotFoundError):
        resolver("org/gemma")(f"gemma@{revision}")


def test_a_name_that_means_nothing_says_how_to_get_it() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolver()("org/gemma@v2")
    assert caught.value.hint == Advice(Remedy.FETCH, {"name": "org/gemma@v2"})


def test_an_address_is_no_name_and_is_refused_as_one() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolver("org/gemma")("https://huggingface.co/org/gemma")
    assert caught.value.message.endswith("'https://huggingface.co/org/gemma', which is an address")
    assert caught.value.hint == "Write only ORG/NAME."


@pytest.mark.parametrize("base", ["/home/maker/base", "./base", "../base", "~/base"])
def test_a_cached_adapter_whose_base_is_a_path_is_refused_and_one_of_a_workspace_is_found(base: str) -> None:
    resolve = attrs.evolve(resolver("org/lora", home=("lora",)), base_of=lambda directory: base)
    with pytest.raises(ValidationError) as caught:
        resolve("org/lora")
    assert caught.value.message == "'org/lora' is an adapter whose base is named by a path of its maker's machine"
    beside = attrs.evolve(resolver(home=("lora", "base")), base_of=lambda directory: "../base")("lora")
    assert (beside.directory, beside.adapter, beside.alias) == ("/ws/base", "/ws/lora", "lora")


def test_close_names_are_suggested_but_never_taken() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolver("mlx-community/Llama-3.2-1B", "org/unrelated")("lamma-3.2-1b")
    assert "mlx-community/Llama-3.2-1B" in str(caught.value.hint)
    assert "unrelated" not in str(caught.value.hint)


def test_a_parsed_reference_means_the_same_as_its_text() -> None:
    resolve = resolver("org/gemma")
    assert resolve(ModelRef.parse("gemma")) == resolve("gemma")


NAMES = st.lists(st.text("abAB-/", min_size=1, max_size=6).filter(lambda name: "//" not in name), max_size=8)


@given(NAMES, st.randoms(), st.text("abAB-", min_size=1, max_size=3))
def test_the_answer_does_not_depend_on_the_order_of_the_disk(names: list[str], chance: object, wanted: str) -> None:
    def answer(cached: list[str]) -> object:
        try:
            return resolver(*cached)(wanted)
        except AmbiguousModelError as error:
            assert list(error.matches) == sorted(error.matches)
            assert len(error.matches) > 1
            return error.matches
        except MlxkError as error:
            return type(error), error.hint

    shuffled = list(names)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert answer(names) == answer(shuffled)
