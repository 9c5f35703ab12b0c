"""Embeddings and answers at once: batches are short where answers wait, however many texts and requests there are."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.event_log import InMemoryEventLog
from hypothesis import given
from hypothesis import strategies as st
from models.tiny_embedding import build_bert
from models.tiny_models import build

from mlxk.adapters.mlx.embedding.batching import ALONE_SECONDS, FIRST_TOKENS, MAX_TOKENS, SHARED_SECONDS, Pace, batches
from mlxk.adapters.mlx.embedding.embedder import MlxTextEmbedder
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.embedding import EmbeddingRequest
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings

pytestmark = pytest.mark.mlx
TEXTS = tuple("bread " * (100 + index % 20) for index in range(16))


@pytest.fixture
def generator() -> Iterator[MlxTextGenerator]:
    found = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield found
    found.close()


def test_the_size_of_a_batch_follows_the_pace_of_the_model() -> None:
    pace = Pace()
    assert pace.most_tokens(shared=False) == pace.most_tokens(shared=True) == FIRST_TOKENS
    pace.note(1000, 0.5)
    assert pace.most_tokens(shared=True) == 2000 * SHARED_SECONDS
    assert pace.most_tokens(shared=False) == 2000 * ALONE_SECONDS
    pace.note(10**6, 1.0)
    assert pace.most_tokens(shared=False) == MAX_TOKENS
    pace.note(1, 10.0)
    assert pace.most_tokens(shared=True) == 1


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 4000), st.sets(st.integers(0, 59)))
def test_every_input_is_in_one_batch_of_at_most_so_many_tokens(lengths: list[int], most: int, alone: set[int]) -> None:
    alone = {index for index in alone if index < len(lengths)}
    texts = [(0,) * length for length in lengths]
    found = list(batches(texts, alone, lambda: most))
    assert sorted(index for batch in found for index in batch) == list(range(len(texts)))
    for batch in found:
        assert len(batch) == 1 or (len(batch) * max(lengths[index] for index in batch) <= most and not alone & {*batch})


def test_an_answer_begins_while_texts_of_many_requests_are_embedded(
    generator: MlxTextGenerator, tmp_path: Path
) -> None:
    encoder = build_bert(
        tmp_path / "bert", hidden_size=128, intermediate_size=256, num_hidden_layers=3, max_position_embeddings=512
    )
    config = tmp_path / "bert" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 512}))
    writer = build(tmp_path / "llama")
    embedder = MlxTextEmbedder(generator.leases)
    asked = GenerationRequest(writer, "The quick", settings=GenerationSettings(max_tokens=20, ignore_eos=True))
    list(generator.submit(asked))
    embedder.embed(EmbeddingRequest(encoder, TEXTS[:2]))
    ended = list[int]()

    def embed() -> None:
        embedder.embed(EmbeddingRequest(encoder, TEXTS))
        ended.append(1)

    threads = [threading.Thread(target=embed) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    list(generator.submit(asked))
    assert ended == []
    for thread in threads:
        thread.join()
    assert len(ended) == 3
