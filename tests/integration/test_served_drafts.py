"""Draft models that a server has by default: the same text, used while they help, said where they cannot be used."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from doubles.clock import TickingClock
from doubles.event_log import InMemoryEventLog
from models.answers import oracle, read
from models.tiny_models import build
from serving.settings_home import Machine

from mlxk.adapters.mlx.engine.proposers import MAX_SKIPPED, PLAIN_STEPS, WINDOW, DraftRecord
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.grammar import Grammar
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle
from mlxk.entrypoints.container import build as build_container
from mlxk.entrypoints.http.process.warm_up import warm_up
from mlxk.entrypoints.settings import read_settings

pytestmark = pytest.mark.mlx
PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build(tmp_path_factory.mktemp("tiny") / "llama", head_dim=32)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """A draft model whose proposals are hardly ever right."""
    return build(tmp_path_factory.mktemp("wrong") / "llama", seed=3)


@pytest.fixture
def engine() -> Iterator[MlxTextGenerator]:
    generator = MlxTextGenerator(InMemoryEventLog(), TickingClock())
    yield generator
    generator.close()


def asking(handle: ModelHandle, draft: ModelHandle | None, prompt: str = PROMPT, **wanted: Any) -> GenerationRequest:
    options = EngineOptions(draft_model=draft, draft_required=False, max_kv_size=wanted.pop("max_kv_size", None))
    settings = GenerationSettings(**{"temperature": 0.0, "max_tokens": 60, "logprobs": 0, "ignore_eos": True, **wanted})
    return GenerationRequest(handle, wanted.pop("conversation", prompt), settings, engine_options=options)


def predicted(answer: Any) -> tuple[int, int]:
    usage = answer.finished.usage
    return usage.accepted_prediction_tokens, usage.rejected_prediction_tokens


@pytest.mark.parametrize(
    "sampled", [{}, {"temperature": 1.0, "seed": 5}, {"temperature": 0.9, "seed": 2, "presence_penalty": 1.2}]
)
def test_a_draft_model_that_is_right_goes_on_and_one_that_is_wrong_is_given_up_without_another_text(
    engine: MlxTextGenerator, handle: ModelHandle, wrong: ModelHandle, sampled: dict[str, Any]
) -> None:
    plain = read(engine.submit(asking(handle, None, **sampled)))
    assert predicted(plain) == (0, 0)
    right = read(engine.submit(asking(handle, handle, **sampled)))
    assert right.tokens == plain.tokens
    if "presence_penalty" not in sampled:  # which the draft model does not know
        assert predicted(right)[1] <= 3  # proposed beyond the end
        assert predicted(right)[0] > 60 * 0.6
    for tries in (True, False, False, True):
        answer = read(engine.submit(asking(handle, wrong, **sampled)))
        assert (answer.tokens, answer.finished.notes) == (plain.tokens, ())
        assert (sum(predicted(answer)) > 0) is tries
        assert sum(predicted(answer)) < 3 * 2 * WINDOW


def test_a_drafted_sequence_joins_the_batch_of_others_and_stays_the_same(
    engine: MlxTextGenerator, handle: ModelHandle
) -> None:
    long = engine.submit(asking(handle, handle, max_tokens=200, presence_penalty=0.5))
    first = [next(long) for _ in range(PLAIN_STEPS + WINDOW)]
    others = [engine.submit(asking(handle, handle, f"{PROMPT} {number}")) for number in range(3)]
    alone = [read(engine.submit(asking(handle, None, f"{PROMPT} {number}"))).tokens for number in range(3)]
    assert [read(each).tokens for each in others] == alone
    found = read([*first, *long])
    assert found.tokens == read(engine.submit(asking(handle, None, max_tokens=200, presence_penalty=0.5))).tokens
    assert 0 < predicted(found)[0] < 140


def test_prompts_that_come_together_are_computed_without_a_draft_model(
    engine: MlxTextGenerator, handle: ModelHandle
) -> None:
    prompts = [f"{number} {PROMPT * 60}" for number in range(3)]
    together = [engine.submit(asking(handle, handle, prompt, max_tokens=9)) for prompt in prompts]
    texts = [read(each).tokens for each in together]
    assert texts == [read(engine.submit(asking(handle, None, prompt, max_tokens=9))).tokens for prompt in prompts]


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"grammar": Grammar.choice(("yes", "no")), "ignore_eos": False}, "draft_model and grammar exclude each other"),
        ({"thinking_budget": 3}, "draft_model and thinking_budget exclude each other"),
        ({"max_kv_size": 64}, "draft_model and max_kv_size exclude each other"),
    ],
)
def test_a_request_that_excludes_a_default_draft_model_is_computed_without_and_says_so(
    engine: MlxTextGenerator, handle: ModelHandle, wanted: dict[str, Any], reason: str
) -> None:
    answer = read(engine.submit(asking(handle, handle, **wanted)))
    assert answer.finished.notes[-1] == f"Computed without the draft model: {reason}."
    assert (predicted(answer), answer.tokens) == ((0, 0), read(engine.submit(asking(handle, None, **wanted))).tokens)


def test_reasoning_that_is_cut_short_excludes_a_default_draft_model(engine: MlxTextGenerator, tmp_path: Path) -> None:
    thinker = build(tmp_path / "thinker", reasoning=True)
    path = tmp_path / "thinker" / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    opening = "{%- if add_generation_prompt -%}<think>{%- endif -%}"
    path.write_text(json.dumps({**fields, "chat_template": fields["chat_template"] + opening}))
    request = attrs.evolve(asking(thinker, thinker), prompt=Conversation.of("Hello"), thinking=False)
    answer = read(engine.submit(request))
    assert answer.finished.notes[-1] == "Computed without the draft model: its reasoning is cut short."
    assert predicted(answer) == (0, 0)


def test_a_draft_model_that_did_not_pay_is_tried_again_ever_less_often() -> None:
    record, tried = DraftRecord(), []
    for number in range(200):
        if record.tries():
            tried.append(number)
            record.judge(pays=False)
    assert tried[:4] == [0, 3, 8, 17]
    assert tried[-1] - tried[-2] == MAX_SKIPPED + 1
    record.judge(pays=True)
    assert record.tries()


@pytest.fixture
def mlxk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path / "home", capsys)


def test_a_server_drafts_by_default_and_reports_what_was_accepted(
    mlxk: Machine, handle: ModelHandle, tmp_path: Path
) -> None:
    same = build(tmp_path / "same", head_dim=32)
    flags = (
        "--model",
        handle.directory,
        "--draft-model",
        same.directory,
        "--draft-tokens",
        "2",
        "--alias",
        "quick=demo",
    )
    with mlxk.serve(*flags) as server:
        body = {"model": "llama", "prompt": PROMPT, "temperature": 0, "max_tokens": 24}
        status, _, answer = server.post("/v1/completions", body)
        assert status == 200
        assert answer["choices"][0]["text"] == b"".join(oracle(handle, PROMPT)).decode("utf-8", "replace")
        details = answer["usage"]["completion_tokens_details"]
        assert details["accepted_prediction_tokens"] > 4
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
        chat = {"model": "llama", "messages": [{"role": "user", "content": PROMPT}], "response_format": schema}
        status, _, held = server.post("/v1/chat/completions", {**chat, "max_tokens": 60})
        assert (status, held["choices"][0]["message"]["content"]) in [(200, '"yes"'), (200, '"no"')]
        assert "accepted_prediction_tokens" not in held["usage"]["completion_tokens_details"]
        other = {"model": "quick", "prompt": "mlxk", "temperature": 0, "max_tokens": 8}
        assert (
            "accepted_prediction_tokens"
            not in server.post("/v1/completions", other)[2]["usage"]["completion_tokens_details"]
        )
        metrics = server.get("/metrics")[2].decode()
        assert 'mlxk_draft_tokens_total{outcome="accepted"}' in metrics


def test_run_says_what_its_draft_model_proposed(mlxk: Machine) -> None:
    line = ("run", "demo", "What is mlxk?", "--draft-model", "demo", "--temperature", "0", "--no-server")
    usage = mlxk(*line, "--draft-tokens", "4", "--json").data["usage"]
    assert usage["accepted_prediction_tokens"] > 4 * usage["rejected_prediction_tokens"]
    proposed = usage["accepted_prediction_tokens"] + usage["rejected_prediction_tokens"]
    said = f"{usage['accepted_prediction_tokens']} of {proposed} drafted tokens right"
    assert said in mlxk(*line, "--draft-tokens", "4", "--verbose").err
    assert "accepted_prediction_tokens" not in mlxk("run", "demo", "hi", "--json").data["usage"]
    assert "draft_tokens must be at least 1" in mlxk(*line, "--draft-tokens", "0").err


def test_a_draft_model_that_cannot_serve_one_stops_the_start_by_name(
    mlxk: Machine, handle: ModelHandle, tmp_path: Path
) -> None:
    other = build(tmp_path / "other", reasoning=True)
    drafter = build(tmp_path / "drafter")
    config = Path(drafter.directory) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "nemotron_h_mtp"}))
    for draft, model, fault in (
        (other.directory, handle.directory, "speaks other tokens than"),
        (drafter.directory, handle.directory, "is a drafter of the kind nemotron_h_mtp"),
        ("demo-speech", handle.directory, "demo-speech"),
        ("demo", "demo-vision", "models for images and sound take no draft model"),
        ("demo", "demo-speech", "'demo-speech' generates no text"),
    ):
        assert mlxk("serve", "--model", model, "--draft-model", draft).status == 0
        container = build_container(read_settings({"HOME": str(mlxk.home)}), mlxk.served[-1])
        container.use_cases.serve_catalogue().offer(model)
        with pytest.raises(MlxkError) as refused:
            warm_up(container, model)
        container.adapters.text_generator().close()
        assert fault in refused.value.message


def test_a_pinned_model_is_there_from_the_start_and_stays_whatever_a_request_says(mlxk: Machine) -> None:
    mlxk.write('[models.poet]\nmodel = "demo"\nkeep_alive = 0\nmax_tokens = 4\n')
    flags = ("--keep-alive", "0", "--pin", "quick", "--alias", "quick=demo", "--pin", "poet")
    assert mlxk("serve", *flags).status == 0
    assert mlxk.served[-1].ready == ("demo", "poet")
    assert dict(mlxk.served[-1].entries)["poet"] == {"model": "demo", "max_tokens": 4, "pin": True}
    with mlxk.serve(*flags) as server:
        for name in ("demo", "poet", "quick"):
            body = {"model": name, "prompt": "mlxk", "raw": True, "stream": False, "keep_alive": "1ms"}
            assert server.post("/api/generate", {**body, "options": {"num_predict": 2}})[0] == 200
            assert server.post("/api/generate", {"model": name, "keep_alive": "1ms"})[0] == 200
            assert server.parts.generator.state(5).residents[0].idle_seconds_left is None  # type: ignore[attr-defined]
    with mlxk.serve("--keep-alive", "0") as server:
        body = {"model": "demo", "prompt": "mlxk", "max_tokens": 2}
        assert server.post("/v1/completions", body)[0] == 200
        assert all(each.idle_seconds_left == 0 for each in server.parts.generator.state(5).residents)  # type: ignore[attr-defined]


def test_a_model_that_cannot_be_pinned_stops_the_start(mlxk: Machine) -> None:
    assert mlxk("serve", "--keep-alive", "9", "--pin", "demo-speech").status == 0
    container = build_container(read_settings({"HOME": str(mlxk.home)}), mlxk.served[-1])
    with pytest.raises(MlxkError, match="pin: 'demo-speech' generates no text"):
        warm_up(container, "demo-speech")
    container.adapters.text_generator().close()
