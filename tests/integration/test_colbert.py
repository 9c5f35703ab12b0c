"""ColBERT models: a vector of each token, with the prefixes, lengths and left-out words that PyLate has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from doubles.event_log import InMemoryEventLog
from models.numpy_decoder import Array, Shape, linear, turned
from models.tiny_embedding import build_colbert
from tokenizers import Tokenizer

from mlxk.adapters.mlx.embedding.embedder import MlxTextEmbedder
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.embedding import EmbeddingRequest, Embeddings, EmbeddingSettings, InputKind
from mlxk.domain.errors import CapabilityError, ContextLengthError
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx

TEXT = "a man is eating food"
LONG = "the girl is carrying the baby and the bread"
QUERY = InputKind.QUERY


@pytest.fixture(scope="module")
def embedder() -> Iterator[MlxTextEmbedder]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield MlxTextEmbedder(generator.leases)
    generator.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build_colbert(tmp_path_factory.mktemp("models") / "colbert")


def embed(embedder: MlxTextEmbedder, model: ModelHandle, *inputs: str, **settings: Any) -> Embeddings:
    return embedder.embed(EmbeddingRequest(model, inputs, EmbeddingSettings(**settings)))


def vectors_of(model: ModelHandle, ids: list[int], real: int) -> Array:
    """Return a vector of each token in numpy, where only the first so many are attended to."""
    files = (f"{model.directory}/model.safetensors", f"{model.directory}/1_Dense/model.safetensors")
    weights = {name: np.array(each, np.float64) for file in files for name, each in dict(mx.load(file)).items()}

    def scaled(values: Array, name: str) -> Array:
        return values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{name}.weight"]

    values = weights["model.embed_tokens.weight"][ids]
    for layer in range(2):
        name = f"model.layers.{layer}"
        read = scaled(values, f"{name}.operator_norm")
        if layer == 0:
            first, second, third = np.split(linear(read, weights, f"{name}.conv.in_proj"), 3, -1)
            padded = np.pad(first * third, ((1, 1), (0, 0)))
            kernel = weights[f"{name}.conv.conv.weight"][..., 0]
            mixed = sum(padded[place : place + len(ids)] * kernel[:, place] for place in range(3))
            found = linear(second * mixed, weights, f"{name}.conv.out_proj")
        else:
            query, key, value = (
                linear(read, weights, f"{name}.self_attn.{part}_proj").reshape(len(ids), count, -1).transpose(1, 0, 2)
                for part, count in (("q", 4), ("k", 2), ("v", 2))
            )
            places = np.tile(np.arange(len(ids)), (3, 1))
            query = turned(scaled(query, f"{name}.self_attn.q_layernorm"), Shape("", base=1e6), places)
            key = turned(scaled(key, f"{name}.self_attn.k_layernorm"), Shape("", base=1e6), places)
            scores = query @ np.repeat(key, 2, 0).transpose(0, 2, 1) / np.sqrt(8)
            scores[..., real:] = -np.inf
            grown = np.exp(scores - scores.max(-1, keepdims=True))
            attended = (grown / grown.sum(-1, keepdims=True) @ np.repeat(value, 2, 0)).transpose(1, 0, 2)
            found = linear(attended.reshape(len(ids), -1), weights, f"{name}.self_attn.out_proj")
        values = values + found
        read = scaled(values, f"{name}.ffn_norm")
        gate = linear(read, weights, f"{name}.feed_forward.w1")
        inner = gate / (1 + np.exp(-gate)) * linear(read, weights, f"{name}.feed_forward.w3")
        values = values + linear(inner, weights, f"{name}.feed_forward.w2")
    rows = scaled(values, "model.embedding_norm") @ weights["linear.weight"].T
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def tokens_of(model: ModelHandle, text: str, prefix: str) -> tuple[Tokenizer, list[int]]:
    """Return the tokens of a text, with the mark of its kind after the first one."""
    tokenizer = Tokenizer.from_file(f"{model.directory}/tokenizer.json")
    ids = tokenizer.encode(text).ids
    return tokenizer, [ids[0], tokenizer.token_to_id(prefix), *ids[1:]]


def test_a_document_has_a_vector_of_each_of_its_tokens(embedder: MlxTextEmbedder, model: ModelHandle) -> None:
    found = embed(embedder, model, TEXT, LONG, "bread")
    for text, vectors in zip((TEXT, LONG, "bread"), found.of_tokens, strict=True):
        _, ids = tokens_of(model, text, "[D] ")
        assert np.allclose(vectors, vectors_of(model, ids, len(ids)), atol=2e-4)
    assert (found.vectors, found.dimensions) == ((), 16)


@pytest.mark.parametrize("attends", [False, True])
def test_a_query_is_filled_up_to_one_length(attends: bool, embedder: MlxTextEmbedder, tmp_path: Path) -> None:
    model = build_colbert(tmp_path / "colbert", attend_to_expansion_tokens=attends)
    found = embed(embedder, model, TEXT, "bread", kind=QUERY)
    for text, vectors in zip((TEXT, "bread"), found.of_tokens, strict=True):
        tokenizer, ids = tokens_of(model, text, "[Q] ")
        filled = [*ids, *[tokenizer.token_to_id("[MASK]")] * (16 - len(ids))]
        assert np.allclose(vectors, vectors_of(model, filled, 16 if attends else len(ids)), atol=2e-4)


def test_queries_are_left_as_they_are_where_the_model_says_so(embedder: MlxTextEmbedder, tmp_path: Path) -> None:
    model = build_colbert(tmp_path / "colbert", do_query_expansion=False)
    _, ids = tokens_of(model, TEXT, "[Q] ")
    found = embed(embedder, model, TEXT, kind=QUERY).of_tokens[0]
    assert np.allclose(found, vectors_of(model, ids, len(ids)), atol=2e-4)


def test_words_that_the_model_skips_have_no_vectors_in_documents(embedder: MlxTextEmbedder, tmp_path: Path) -> None:
    model = build_colbert(tmp_path / "colbert", skiplist_words=["is", "no such word"])
    _, ids = tokens_of(model, TEXT, "[D] ")
    skipped = Tokenizer.from_file(f"{model.directory}/tokenizer.json").token_to_id("is")
    whole = vectors_of(model, ids, len(ids))
    expected = whole[np.array(ids) != skipped]
    found = embed(embedder, model, TEXT)
    assert np.allclose(found.of_tokens[0], expected, atol=2e-4)
    assert (len(expected), found.tokens) == (len(ids) - 1, len(ids))


def test_the_lengths_of_the_model_are_the_window(embedder: MlxTextEmbedder, model: ModelHandle) -> None:
    with pytest.raises(ContextLengthError, match=r"input\[0\] has 42 tokens|input\[0\] has 43 tokens"):
        embed(embedder, model, "bread " * 40)
    assert embed(embedder, model, "bread " * 40, truncate=True).truncations[0].kept == 24
    assert embed(embedder, model, "bread " * 40, truncate=True, kind=QUERY).truncations[0].kept == 16
    with pytest.raises(CapabilityError, match="instruct: this model takes no instruction"):
        embed(embedder, model, "bread", kind=QUERY, instruction="Find it.")
