"""Completions that repeat their prompt, with its log probabilities, as programs that measure models ask for them."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import openai
import pytest
from mlx_lm import load
from models.tiny_models import build
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
DEMO = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo"
PATH = "/v1/completions"
TEXTS = ("mlxk is the knife", "mlxk", "Grüße, 世界 😀!", " leading and trailing ", "the server answers. " * 120)
"""Words, a single token, characters of several tokens, spaces, and more than one chunk of a prefill."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    program: Any = WholeProgram(tmp_path_factory.mktemp("served"), ServerSettings(allow_paths=True))
    with RunningServer(program) as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> Any:
    """Load the model with the library alone."""
    return load(str(DEMO))


def scored(reference: Any, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Return the log probabilities of every token of the vocabulary after each of these."""
    logits = reference[0](mx.array([tokens]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def ask(served: RunningServer, **body: Any) -> Any:
    """Ask for one completion, and return its choices and usage."""
    status, _, answer = served.post(PATH, {"model": "demo", "temperature": 0, **body})
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("as_tokens", [False, True])
def test_the_log_probabilities_of_a_prompt_are_those_of_the_model(
    served: RunningServer, reference: Any, text: str, as_tokens: bool
) -> None:
    tokens = reference[1].encode(text)
    expected = scored(reference, tokens)
    prompt = tokens if as_tokens else text
    answer = ask(served, prompt=prompt, echo=True, logprobs=3, max_tokens=0)
    (choice,) = answer["choices"]
    found = choice["logprobs"]
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (len(tokens), 0)
    assert {len(column) for column in found.values()} == {len(tokens)}
    assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
    own = [expected[index, token] for index, token in enumerate(tokens[1:])]
    assert np.allclose(found["token_logprobs"][1:], own, atol=2e-2)
    for index, alternatives in enumerate(found["top_logprobs"][1:]):
        best = sorted(expected[index], reverse=True)[0]
        assert max(alternatives.values()) == pytest.approx(best, abs=2e-2)
    # Each token begins where the characters before it end.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    spelled = [reference[1].decode(tokens[: index + 1]) for index in range(len(tokens))]
    assert found["text_offset"][0] == 0
    assert found["text_offset"] == sorted(found["text_offset"])
    assert found["text_offset"][-1] < len(text) <= len(spelled[-1])
    assert decoder.decode(text.encode()) == choice["text"]


def test_a_continuation_is_scored_as_harnesses_do_it(served: RunningServer, reference: Any) -> None:
    context, whole = reference[1].encode("mlxk is"), reference[1].encode("mlxk is the knife for")
    assert whole[: len(context)] == context
    # They ask for one token more than they need, and leave it out.
    answer = ask(served, prompt=[whole, context], echo=True, logprobs=1, max_tokens=1)
    first, second = answer["choices"]
    values = first["logprobs"]["token_logprobs"][len(context) : -1]
    expected = scored(reference, whole)
    own = [expected[index, whole[index + 1]] for index in range(len(context) - 1, len(whole) - 1)]
    assert np.allclose(values, own, atol=2e-2)
    assert len(second["logprobs"]["tokens"]) == len(context) + 1
    assert first["text"].startswith("mlxk is the knife for")
    assert first["logprobs"]["text_offset"][-1] == len("mlxk is the knife for")


@pytest.mark.parametrize("extra", [{}, {"logprobs": 0}, {"logprobs": 2}, {"n": 2, "logprobs": 1}])
@pytest.mark.parametrize("max_tokens", [0, 4])
def test_a_stream_brings_the_same(served: RunningServer, extra: dict[str, Any], max_tokens: int) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    for prompt in ("mlxk is the", [1, 2, 3]):
        body: dict[str, Any] = {"model": "demo", "prompt": prompt, "echo": True, "temperature": 0, **extra}
        whole = client.completions.create(**body, max_tokens=max_tokens)
        chunks = list(client.completions.create(**body, max_tokens=max_tokens, stream=True))
        for choice in whole.choices:
            parts = [each for chunk in chunks for each in chunk.choices if each.index == choice.index]
            assert "".join(each.text for each in parts) == choice.text
            logged = [each.logprobs for each in parts if each.logprobs]
            values = [value for each in logged for value in each.token_logprobs or ()]
            mine = choice.logprobs.token_logprobs or [] if choice.logprobs else []
            assert values == pytest.approx(mine, abs=1e-3)
            assert (choice.logprobs is None) == ("logprobs" not in extra)
    client.close()


def test_no_tokens_are_no_completion_and_a_prompt_that_was_computed_before_is_scored_again(
    served: RunningServer,
) -> None:
    prompt = "The server answers with the same words. " * 8
    empty = ask(served, prompt=prompt, max_tokens=0)
    assert (empty["choices"][0]["text"], empty["usage"]["completion_tokens"]) == ("", 0)
    first, second = (ask(served, prompt=prompt, echo=True, logprobs=0, max_tokens=0) for _ in range(2))
    assert first["choices"] == second["choices"]
    assert first["choices"][0]["text"] == prompt
    assert second["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert ask(served, prompt=prompt, max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


@pytest.mark.parametrize("prompt", ["", "世界 😀", " a space "])
def test_every_token_begins_where_it_stands_in_the_text_beside_characters_of_several_tokens(
    served: RunningServer, tmp_path: Path, prompt: str
) -> None:
    model, parts = build(tmp_path / "tiny").directory, 0
    for seed in range(6):
        body = {"model": model, "prompt": prompt or "a", "temperature": 1.3, "seed": seed, "logprobs": 0}
        (choice,) = ask(served, **body, echo=bool(prompt), max_tokens=40, ignore_eos=True)["choices"]
        text, logprobs = choice["text"], choice["logprobs"]
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            if "\ufffd" in token:
                parts += 1
            else:
                assert text[offset : offset + len(token)] == token, (token, offset, text)
    assert parts > 10
