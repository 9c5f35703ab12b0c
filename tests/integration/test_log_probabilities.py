"""Log probabilities are exact whatever the type of a model's numbers: those of a whole vocabulary sum to one.

The models know as many tokens as a request may ask for alternatives, so that every answer reports all of them.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from doubles.event_log import InMemoryEventLog
from doubles.progress import InMemoryProgress
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny_models import build
from serving.running import RunningServer
from serving.settings_home import Machine
from serving.whole_program import WholeProgram
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from mlxk.adapters.mlx.conversion import MlxWeightConverter
from mlxk.adapters.mlx.engine.sampling import log_normalizer, score
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.request import GenerationRequest, TextDelta, TokenLogprob
from mlxk.domain.generation.settings import MAX_LOGPROB_ALTERNATIVES, EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle, Origin, Quantization
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
ENDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = "abcdefghijklmnopq"
PROMPTS = ("a", "cabbage", "face", "bagel", "ace", "deaf", "jail", "gable")
TYPES = {"fp32": mx.float32, "fp16": mx.float16, "bf16": mx.bfloat16}


def small_vocabulary(folder: Path, kind: mx.Dtype, seed: int = 0) -> ModelHandle:
    """Write a model with 20 tokens and numbers of a type, which speaks on and on."""
    handle = build(folder, seed=seed, vocab_size=MAX_LOGPROB_ALTERNATIVES)
    weights: Any = mx.load(str(folder / "model.safetensors"))
    weights["model.embed_tokens.weight"][: len(ENDS)] = 0  # makes their logits zero, and others are higher
    typed = {name: weight.astype(kind) for name, weight in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), typed, {"format": "mlx"})
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate([*ENDS, *LETTERS])}, []))
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in ENDS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return handle


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelHandle]:
    folder = tmp_path_factory.mktemp("models")
    handles = {name: small_vocabulary(folder / name, kind) for name, kind in TYPES.items()}
    quantized = shutil.copytree(folder / "bf16", folder / "four")
    MlxWeightConverter().quantize(handles["bf16"], str(quantized), "mlx-lm", Quantization(4, 64), InMemoryProgress())
    return {**handles, "4 bit": ModelHandle(str(quantized), str(quantized), Origin.WORKSPACE)}


@pytest.fixture(scope="module")
def engine() -> Iterator[MlxTextGenerator]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield generator
    generator.close()


@pytest.fixture(scope="module")
def served(models: dict[str, ModelHandle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    program: Any = WholeProgram(tmp_path_factory.mktemp("home"), ServerSettings(allow_paths=True))
    with RunningServer(program) as running:
        yield running


def asking(handle: ModelHandle, prompt: str, draft: ModelHandle | None = None, **wanted: object) -> GenerationRequest:
    wanted = {"max_tokens": 8, "ignore_eos": True, "logprobs": MAX_LOGPROB_ALTERNATIVES, "echo": True, **wanted}
    chosen = GenerationSettings(**wanted)  # type: ignore[arg-type]
    return GenerationRequest(handle, prompt, chosen, engine_options=EngineOptions(draft_model=draft))


def tokens_of(engine: MlxTextGenerator, requests: Sequence[GenerationRequest]) -> list[TokenLogprob]:
    """Compute requests together and return their tokens, those of the prompts but the first included."""
    found: list[TokenLogprob] = []
    for request, stream in [(request, engine.submit(request)) for request in requests]:
        events = list(stream)
        tokens = [token for event in events if isinstance(event, TextDelta) for token in event.logprobs]
        assert len(tokens) == len(request.prompt) + 8  # type: ignore[arg-type]
        found += tokens[1:]
    return found


def check(values: Sequence[float], token: float) -> None:
    """Check the log probabilities of all tokens, and that of the one that came."""
    assert len(values) == MAX_LOGPROB_ALTERNATIVES
    assert abs(math.fsum(map(math.exp, values)) - 1) <= 1e-5
    assert token in values


ROWS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 2.0]),
        "top_p": st.sampled_from([1.0, 0.8, 0.1]),
        "top_k": st.sampled_from([0, 1, 5]),
        "min_p": st.sampled_from([0.0, 0.05]),
        "seed": st.integers(0, 99),
    },
    optional={
        "presence_penalty": st.sampled_from([1.5, -2.0]),
        "frequency_penalty": st.sampled_from([0.3, -0.7]),
        "repetition_penalty": st.sampled_from([1.3, 0.8]),
        "logit_bias": st.sampled_from([((3, -100.0), (5, 7.3)), ((4, 0.1),)]),
    },
)


@settings(max_examples=3)
@given(rows=st.lists(ROWS, min_size=8, max_size=8))
@pytest.mark.parametrize("kind", [*TYPES, "4 bit"])
def test_the_probabilities_of_all_tokens_sum_to_one(
    engine: MlxTextGenerator, models: dict[str, ModelHandle], kind: str, rows: list[dict[str, Any]]
) -> None:
    batch = [asking(models[kind], prompt, **row) for prompt, row in zip(PROMPTS, rows, strict=True)]
    drafted = asking(models[kind], PROMPTS[1], models["fp32"], **rows[1])
    found = [tokens_of(engine, requests) for requests in (batch[:1], batch, [drafted])]
    for token in (token for tokens in found for token in tokens):
        check([each.logprob for each in token.alternatives], token.token.logprob)
    # The model is sure at times, so that a coarser type would round what it says to certainty.
    assert any(-0.01 < token.token.logprob < -1e-5 for tokens in found for token in tokens)


@pytest.mark.parametrize("size", [5, 512, 513, 32_000, 151_936])
@pytest.mark.parametrize("left", [1.0, 0.01])
def test_they_do_of_as_many_tokens_as_real_models_know_and_of_those_a_mask_leaves(size: int, left: float) -> None:
    chance = np.random.default_rng(size)
    rows = chance.normal(20, 2, (4, size)).astype(np.float32)
    rows[:, np.arange(size) >= max(size * left, 1)] = -np.inf
    logits = mx.array(rows)
    values = np.array(logits - log_normalizer(logits), np.float64)
    assert np.abs(np.exp(values).sum(-1) - 1).max() <= 1e-5
    sums = score(logits, [0] * len(rows), 1)
    assert [each.logprob for each in sums] == pytest.approx(values[:, 0].tolist(), abs=1e-6)


@pytest.mark.parametrize("extra", [{}, {"temperature": 1, "top_p": 0.9, "seed": 3, "presence_penalty": 1.5}])
@pytest.mark.parametrize("kind", ["bf16", "4 bit"])
def test_they_do_over_http(
    served: RunningServer, models: dict[str, ModelHandle], kind: str, extra: dict[str, Any]
) -> None:
    body = {"model": models[kind].directory, "temperature": 0, "top_logprobs": MAX_LOGPROB_ALTERNATIVES, **extra}
    messages = [{"role": "user", "content": "bagel"}]
    chat = {**body, "messages": messages, "logprobs": True, "n": 8, "max_tokens": 12}
    asked = {
        "/v1/chat/completions": chat,
        "/v1/responses": {**body, "input": "bagel", "max_output_tokens": 16},
        "/api/chat": {**body, "messages": messages, "logprobs": True, "stream": False, "options": {"num_predict": 12}},
    }
    for path, document in asked.items():
        status, _, answer = served.post(path, document)
        assert status == 200, answer
        for token in _tokens(path, answer):
            check([each["logprob"] for each in token["top_logprobs"]], token["logprob"])


def _tokens(path: str, answer: Any) -> list[Any]:
    if path == "/api/chat":
        return list(answer["logprobs"])
    if path == "/v1/responses":
        return [token for item in answer["output"] for part in item["content"] for token in part["logprobs"]]
    return [token for choice in answer["choices"] for token in choice["logprobs"]["content"]]


ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 4},
    "/v1/completions": {"prompt": "hi", "logprobs": 4, "echo": True},
    "/v1/responses": {"input": "hi", "top_logprobs": 4},
    "/api/chat": {
        "messages": [{"role": "user", "content": "hi"}],
        "logprobs": True,
        "top_logprobs": 4,
        "stream": False,
    },
}
FILE = """
[models.none]
model = "demo"
top_logprobs_k = 0

[models.many]
model = "demo"
top_logprobs_k = 20
"""


def test_a_server_reports_no_more_alternatives_than_its_limit_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path, capsys)
    machine.write(FILE)
    with machine.serve("--top-logprobs-k", "2", "--max-tokens", "4") as served:
        for path, asked in ASKED.items():
            for model, most in (("demo", 2), ("none", 0), ("many", 4)):
                status, headers, document = served.post(path, {"model": model, **asked})
                assert status == 200, document
                if path == "/v1/completions":
                    found = [len(each) for each in document["choices"][0]["logprobs"]["top_logprobs"][1:]]
                else:
                    found = [len(each.get("top_logprobs", ())) for each in _tokens(path, document)]
                assert found, document
                assert set(found) == {most}, (path, model, document)
                assert (headers.get("x-mlxk-adaptations") == "top-logprobs-limited") is (most < 4), (path, model)


def test_a_limit_out_of_range_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Machine(tmp_path, capsys)("serve", "--top-logprobs-k", "21")
    assert (done.status, "--top-logprobs-k must be at least 0 and at most 20" in done.err) == (1, True), done
