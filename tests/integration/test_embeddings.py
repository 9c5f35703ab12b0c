"""Embedding models through mlx-vlm: vectors, batches, windows, prefixes and tokens."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from doubles.event_log import InMemoryEventLog
from hypothesis import given
from hypothesis import strategies as st
from models.tiny_embedding import WINDOW, build_bert, build_qwen3

from mlxk.adapters.mlx.embedding.batching import MAX_PAIRS, MAX_ROWS, MAX_TOKENS, batches
from mlxk.adapters.mlx.embedding.embedder import MlxTextEmbedder
from mlxk.adapters.mlx.embedding.encoding import Prompts, prompts_of
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.embedding import EmbeddingRequest, Embeddings, EmbeddingSettings, Input, InputKind
from mlxk.domain.errors import (
    CapabilityError,
    ContextLengthError,
    IncompatibleModelError,
    MlxkError,
    UnhealthyModelError,
    ValidationError,
)
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx

TEXTS = (
    "a man is eating food",
    "a cheetah runs behind its prey",
    "bread",
    "the girl is carrying the baby and the bread",
)
SWITCHES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
QUERY = EmbeddingSettings(kind=InputKind.QUERY)


@pytest.fixture(scope="module")
def embedder() -> Iterator[MlxTextEmbedder]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield MlxTextEmbedder(generator.leases)
    generator.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedding")


@pytest.fixture(scope="module")
def bert(folder: Path) -> ModelHandle:
    return build_bert(folder / "bert")


@pytest.fixture(scope="module")
def qwen3(folder: Path) -> ModelHandle:
    return build_qwen3(folder / "qwen3-embedding")


def embed(embedder: MlxTextEmbedder, model: ModelHandle, *inputs: Input, **settings: Any) -> Embeddings:
    """Return the vectors of some inputs."""
    return embedder.embed(EmbeddingRequest(model, inputs, EmbeddingSettings(**settings)))


def by_mlx_vlm(model: ModelHandle, texts: tuple[str, ...]) -> Any:
    """Return what mlx-vlm's own model makes of the texts, padded together by its tokenizer."""
    from mlx_vlm.embedding_loader import load_embedding_model
    from mlx_vlm.models.pooling import read_pooling_config
    from transformers import AutoTokenizer

    network = load_embedding_model(Path(model.directory))
    network.pooling_config = read_pooling_config(model.directory)
    tokenizer = AutoTokenizer.from_pretrained(model.directory)
    encoded = tokenizer(list(texts), padding=True, return_tensors="np")
    output = network(mx.array(encoded["input_ids"]), attention_mask=mx.array(encoded["attention_mask"]))
    return np.array(output.text_embeds)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_vectors_are_those_of_the_library(kind: str, request: pytest.FixtureRequest, embedder: MlxTextEmbedder) -> None:
    model: ModelHandle = request.getfixturevalue(kind)
    assert np.allclose(embed(embedder, model, *TEXTS).vectors, by_mlx_vlm(model, TEXTS), atol=1e-5)


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
@pytest.mark.parametrize(("stated", "window"), [(16, 16), (10**6, None), ("16", None), (0, None), (None, None)])
def test_the_smallest_limit_that_a_model_states_holds(
    name: str, stated: object, window: int | None, embedder: MlxTextEmbedder, tmp_path: Path
) -> None:
    model = build_bert(tmp_path / "limited")
    (tmp_path / "limited" / name).write_text(json.dumps({"max_seq_length": stated, "do_lower_case": False}))
    window = window or WINDOW
    assert embed(embedder, model, "bread " * 200, truncate=True).tokens == window
    with pytest.raises(ContextLengthError, match=rf"input\[0\] has 202 tokens; the model reads {window}\."):
        embed(embedder, model, "bread " * 200)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_many_texts_of_many_lengths_have_the_vectors_they_have_alone(
    kind: str, request: pytest.FixtureRequest, embedder: MlxTextEmbedder
) -> None:
    model: ModelHandle = request.getfixturevalue(kind)
    texts = [f"{text} {'bread ' * (index % 9)}" for index, text in enumerate(TEXTS * 40)]
    together = embed(embedder, model, *texts)
    for index in range(0, len(texts), 17):
        assert np.allclose(together.vectors[index], embed(embedder, model, texts[index]).vectors[0], atol=1e-5)


def test_tokens_of_the_model_mean_the_same_as_their_text_with_and_without_control_tokens(
    embedder: MlxTextEmbedder, bert: ModelHandle
) -> None:
    from transformers import AutoTokenizer

    framed = tuple(AutoTokenizer.from_pretrained(bert.directory)(TEXTS[0])["input_ids"])
    found = embed(embedder, bert, TEXTS[0], framed, framed[1:-1])
    assert found.vectors[0] == found.vectors[1] == found.vectors[2]
    assert found.tokens == 3 * len(framed)


@pytest.mark.parametrize("token", [-1, 10**9])
def test_a_token_of_another_model_is_refused(token: int, embedder: MlxTextEmbedder, bert: ModelHandle) -> None:
    with pytest.raises(ValidationError, match=r"input\[1\].*none of this model's"):
        embed(embedder, bert, "bread", (1, token))


def test_the_window_counts_control_tokens(embedder: MlxTextEmbedder, bert: ModelHandle) -> None:
    assert embed(embedder, bert, "bread " * (WINDOW - 2)).tokens == WINDOW
    with pytest.raises(ContextLengthError, match=f"has {WINDOW + 1} tokens; the model reads {WINDOW}"):
        embed(embedder, bert, "bread " * (WINDOW - 1))


def test_a_cut_text_keeps_its_last_control_token(embedder: MlxTextEmbedder, qwen3: ModelHandle) -> None:
    cut = embed(embedder, qwen3, "bread " * 1000, truncate=True)
    fits = embed(embedder, qwen3, "bread " * 200, truncate=True)
    assert cut.tokens == fits.tokens == WINDOW * 4


@pytest.mark.parametrize("ends", [True, False])
def test_a_model_that_is_said_to_take_its_last_token_gets_an_end_token_whatever_its_tokenizer_does(
    embedder: MlxTextEmbedder, qwen3: ModelHandle, tmp_path: Path, ends: bool
) -> None:
    same = build_qwen3(tmp_path / "qwen3-embedding")
    (tmp_path / "qwen3-embedding" / "1_Pooling").mkdir()
    (tmp_path / "qwen3-embedding" / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    path = tmp_path / "qwen3-embedding" / "tokenizer.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields if ends else {**fields, "post_processor": None}))
    expected = embed(embedder, qwen3, "bread and butter")
    found = embed(embedder, same, "bread and butter")
    assert (found.tokens, found.vectors) == (expected.tokens, expected.vectors)


def test_queries_and_documents_differ_for_models_that_tell_them_apart(
    embedder: MlxTextEmbedder, bert: ModelHandle, qwen3: ModelHandle
) -> None:
    document = embed(embedder, qwen3, "bread").vectors
    query = embedder.embed(EmbeddingRequest(qwen3, ("bread",), QUERY)).vectors
    task = embed(embedder, qwen3, "bread", kind=InputKind.QUERY, instruction="find food").vectors
    written = embed(embedder, qwen3, "Instruct: find food\nQuery:bread").vectors
    assert len({document, query, task}) == 3
    assert task == written
    assert embedder.embed(EmbeddingRequest(bert, ("bread",), QUERY)) == embed(embedder, bert, "bread")
    with pytest.raises(CapabilityError, match="instruct"):
        embed(embedder, bert, "bread", kind=InputKind.QUERY, instruction="find food")


def test_vectors_of_models_made_for_it_can_be_shortened(embedder: MlxTextEmbedder, qwen3: ModelHandle) -> None:
    (whole,), (short,) = (embed(embedder, qwen3, "bread", dimensions=length).vectors for length in (32, 8))
    assert len(short) == 8
    assert math.hypot(*short) == pytest.approx(1)
    assert np.allclose(np.array(short) * math.hypot(*whole[:8]), whole[:8], atol=1e-6)


def test_the_first_token_is_taken_where_the_model_says_so(
    embedder: MlxTextEmbedder, folder: Path, bert: ModelHandle
) -> None:
    first = build_bert(folder / "first-token")
    Path(first.directory, "1_Pooling", "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    named = build_bert(folder / "bge-small-en")
    Path(named.directory, "1_Pooling", "config.json").unlink()
    assert embed(embedder, first, "bread").vectors == embed(embedder, named, "bread").vectors
    assert embed(embedder, first, "bread").vectors != embed(embedder, bert, "bread").vectors


def test_every_pooling_of_sentence_transformers_is_its_formula(embedder: MlxTextEmbedder, folder: Path) -> None:
    from mlx_vlm.embedding_loader import load_embedding_model
    from transformers import AutoTokenizer

    model = build_bert(folder / "pooled")
    encoded = AutoTokenizer.from_pretrained(model.directory)(TEXTS[3], return_tensors="np")
    output = load_embedding_model(Path(model.directory))(
        mx.array(encoded["input_ids"]), attention_mask=mx.array(encoded["attention_mask"])
    )
    hidden = np.array(output.last_hidden_state)[0]
    place = np.arange(1, len(hidden) + 1)[:, None]
    made = {
        "cls": hidden[0],
        "max": hidden.max(axis=0),
        "mean": hidden.mean(axis=0),
        "mean_sqrt_len_tokens": hidden.sum(axis=0) / np.sqrt(len(hidden)),
        "weightedmean": (hidden * place).sum(axis=0) / place.sum(),
        "lasttoken": hidden[-1],
    }
    stated: list[tuple[dict[str, Any], Any]] = [({"pooling_mode": name}, vector) for name, vector in made.items()]
    stated += [({SWITCHES[name]: True, "pooling_mode_other": False}, vector) for name, vector in made.items()]
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    stated += [(both, np.concatenate([made["cls"], made["mean"]]))]
    stated += [({"pooling_mode": ["max", "weightedmean"]}, np.concatenate([made["max"], made["weightedmean"]]))]
    three = np.concatenate([made["cls"], made["mean"], made["lasttoken"]])
    stated += [({"pooling_mode": ["lasttoken", "cls", "mean"]}, three)]
    for number, (config, vector) in enumerate(stated):
        variant = build_bert(folder / f"pooled-{number}")
        Path(variant.directory, "1_Pooling", "config.json").write_text(json.dumps(config))
        # Beside a longer text: padding must not count.
        found = embed(embedder, variant, TEXTS[3], TEXTS[3] + " bread" * 20).vectors[0]
        assert np.allclose(found, vector / np.linalg.norm(vector), atol=1e-5), config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"pooling_mode": "attention"}, r"pools its vectors by attention \(1_Pooling/config.json\)"),
        ({"pooling_mode": ["mean", "attention"]}, "pools its vectors by attention"),
        ({"pooling_mode_attention": True}, "pools its vectors by pooling_mode_attention"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": False}, "include_prompt in 1_Pooling/config.json"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused_by_name(
    config: dict[str, Any], said: str, embedder: MlxTextEmbedder, tmp_path: Path
) -> None:
    model = build_bert(tmp_path / "odd")
    Path(model.directory, "1_Pooling", "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleModelError, match=said):
        embed(embedder, model, "bread")


def test_modules_are_found_where_the_model_lists_them_and_refused_by_name_where_none_would_run_them(
    embedder: MlxTextEmbedder, tmp_path: Path, bert: ModelHandle
) -> None:
    model = build_bert(tmp_path / "listed")
    chain = [("Transformer", ""), ("Pooling", "2_Pooling"), ("Normalize", "3_Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in chain]
    (tmp_path / "listed" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "listed" / "2_Pooling").mkdir()
    (tmp_path / "listed" / "2_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "max"}))
    assert embed(embedder, model, "bread").vectors != embed(embedder, bert, "bread").vectors
    for kind in ("Dense", "CNN", "Router"):
        other = build_bert(tmp_path / kind)
        added = [*modules, {"path": f"2_{kind}", "type": f"sentence_transformers.models.{kind}"}]
        (tmp_path / kind / "modules.json").write_text(json.dumps(added))
        with pytest.raises(IncompatibleModelError, match=rf"the module {kind} \(2_{kind}\)"):
            embed(embedder, other, "bread")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_that_lacks_files_is_a_typed_error(missing: str, embedder: MlxTextEmbedder, folder: Path) -> None:
    model = build_bert(folder / f"without-{missing}")
    Path(model.directory, missing).unlink()
    with pytest.raises((UnhealthyModelError, IncompatibleModelError)):
        embed(embedder, model, "bread")


def test_weights_that_are_not_numbers_are_a_typed_error(embedder: MlxTextEmbedder, folder: Path) -> None:
    model = build_bert(folder / "nan")
    path = str(Path(model.directory, "model.safetensors"))
    weights = {name: value * float("nan") for name, value in mx.load(path).items()}
    mx.eval(weights)
    mx.save_safetensors(path, weights, metadata={"format": "mlx"})
    with pytest.raises(MlxkError, match="not a number"):
        embed(embedder, model, "bread")


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=200))
def test_batches_hold_every_text_once_and_stay_within_their_bounds(lengths: list[int]) -> None:
    made = list(batches([(0,) * length for length in lengths]))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    for batch in made:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or (
            len(batch) <= MAX_ROWS and len(batch) * longest <= MAX_TOKENS and len(batch) * longest**2 <= MAX_PAIRS
        )


@pytest.mark.parametrize(
    ("name", "architecture", "stated", "expected"),
    [
        ("org/all-MiniLM-L6-v2", "bert", {}, Prompts()),
        ("org/any", "bert", {"query": "q: ", "passage": "p: "}, Prompts("q: ", "p: ")),
        (
            "intfloat/multilingual-e5-large-instruct",
            "xlm_roberta",
            {},
            Prompts("Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "),
        ),
        ("intfloat/e5-base-v2", "bert", {}, Prompts("query: ", "passage: ")),
        ("org/bge-base-en-v1.5", "bert", {}, Prompts("Represent this sentence for searching relevant passages: ")),
        ("org/bge-m3", "xlm_roberta", {}, Prompts()),
    ],
)
def test_prefixes_are_what_the_model_states_or_its_family_is_known_for(
    name: str, architecture: str, stated: dict[str, object], expected: Prompts
) -> None:
    assert prompts_of(name, architecture, stated) == expected


def test_a_document_nested_without_end_beside_the_weights_says_nothing(
    embedder: MlxTextEmbedder, tmp_path: Path
) -> None:
    model = build_bert(tmp_path / "bert")
    (tmp_path / "bert" / "1_Pooling").mkdir(exist_ok=True)
    (tmp_path / "bert" / "1_Pooling" / "config.json").write_text("[" * 100_000)
    assert embedder.embed(EmbeddingRequest(model, ("bread",))).vectors
