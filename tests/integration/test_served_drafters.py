"""Drafters, which read the hidden states of their model: the same text with each kind, reported, given up, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from doubles.clock import TickingClock
from doubles.event_log import InMemoryEventLog
from models.answers import read
from models.tiny_drafters import EXPERTS, HYBRID, build_drafter, repeating
from models.tiny_models import build, write_adapter
from serving.settings_home import Machine
from tokenizers import Tokenizer

from mlxk.adapters.mlx.engine.proposers import PLAIN_STEPS, WINDOW
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
PROMPT = "The quick brown fox"
KINDS = ("eagle3", "dflash", "mtp")


def model_of(folder: Path, kind: str) -> ModelHandle:
    """Write the model of a drafter: MTP has its own architecture, with a recurrent state."""
    if kind == "glm":
        return build(folder / "glm", "glm_moe_dsa", **EXPERTS)
    if kind != "mtp":
        return build(folder / "llama")
    return build(folder / "qwen3_5", "qwen3_5", text_config=HYBRID)


def asking(handle: ModelHandle, draft: ModelHandle | None, **wanted: Any) -> GenerationRequest:
    names = ("draft_tokens", "kv_bits", "kv_scheme", "adapter")
    options = EngineOptions(
        draft_model=draft,
        draft_required=wanted.pop("required", True),
        **{name: wanted.pop(name, None) for name in names},
    )
    prompt = wanted.pop("prompt", PROMPT)
    settings = GenerationSettings(**{"temperature": 0.0, "max_tokens": 40, "logprobs": 0, "ignore_eos": True, **wanted})
    return GenerationRequest(handle, prompt, settings, engine_options=options)


def predicted(answer: Any) -> tuple[int, int]:
    usage = answer.finished.usage
    return usage.accepted_prediction_tokens, usage.rejected_prediction_tokens


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.0, "seed": 5}])
@pytest.mark.parametrize("kind", [*KINDS, "glm"])
def test_the_text_is_the_models_own_whatever_a_drafter_proposes(
    engine: MlxTextGenerator, kind: str, sampled: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(tmp_path, kind)
    drafter = build_drafter(tmp_path / "drafter", kind, model)
    plain = read(engine.submit(asking(model, None, **sampled)))
    for tokens in (None, 1, 6):
        drafted = read(engine.submit(asking(model, drafter, draft_tokens=tokens, **sampled)))
        assert drafted.tokens == plain.tokens
        assert sum(predicted(drafted)) > 30


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_drafter_got_right_is_taken_over_and_counted(
    engine: MlxTextGenerator, kind: str, tmp_path: Path
) -> None:
    model = repeating(model_of(tmp_path, kind))
    gap = Tokenizer.from_file(f"{model.directory}/tokenizer.json").encode(PROMPT).ids[-1]
    drafter = build_drafter(tmp_path / "drafter", kind, model, right=True, gap=gap)
    plain = read(engine.submit(asking(model, None)))
    drafted = read(engine.submit(asking(model, drafter, draft_tokens=3)))
    assert (drafted.tokens, len(set(plain.tokens))) == (plain.tokens, 1)
    assert predicted(drafted) == (30, 0)
    again = read(engine.submit(asking(model, drafter, draft_tokens=3)))
    assert again.finished.usage.cached_tokens > 0  # of which it has read nothing
    assert (again.tokens, predicted(again)[0] >= 27) == (plain.tokens, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_default_drafter_that_is_wrong_is_given_up_and_one_that_is_right_leaves_for_a_batch(
    kind: str, tmp_path: Path
) -> None:
    model = repeating(model_of(tmp_path, kind))
    gap = Tokenizer.from_file(f"{model.directory}/tokenizer.json").encode(PROMPT).ids[-1]
    wrong = build_drafter(tmp_path / "wrong", kind, model)
    right = build_drafter(tmp_path / "right", kind, model, right=True, gap=gap)
    generator = MlxTextGenerator(InMemoryEventLog(), TickingClock())
    try:
        plain = read(generator.submit(asking(model, None, max_tokens=60)))
        answer = read(generator.submit(asking(model, wrong, max_tokens=60, required=False, draft_tokens=3)))
        assert (answer.tokens, sum(predicted(answer))) == (plain.tokens, 3 * (WINDOW + 1))
        stream = generator.submit(asking(model, right, max_tokens=200, required=False, draft_tokens=3))
        first = [next(stream) for _ in range(PLAIN_STEPS + WINDOW)]
        others = [generator.submit(asking(model, None, prompt=f"{number} {PROMPT}")) for number in range(3)]
        assert all(len(read(each).tokens) == 40 for each in others)
        answer = read([*first, *stream])
        assert (len(answer.tokens), len(set(answer.tokens))) == (200, 1)
        assert 0 < predicted(answer)[0] < 145
    finally:
        generator.close()


@pytest.mark.parametrize("architecture", ["gemma3_text", "lfm2", "mamba2", "qwen3_5"])
def test_models_that_cannot_forget_tokens_are_drafted_too(
    engine: MlxTextGenerator, architecture: str, tmp_path: Path
) -> None:
    """Their sliding windows are full after 32 tokens, or their states are recurrent."""
    model = model_of(tmp_path, "mtp") if architecture == "qwen3_5" else build(tmp_path / "model", architecture)
    drafts = [build(tmp_path / "draft", seed=4)]
    if architecture != "mamba2":  # whose network has other names
        drafts.append(build_drafter(tmp_path / "drafter", "eagle3", model))
    plain = read(engine.submit(asking(model, None, max_tokens=80)))
    for draft in drafts:
        drafted = read(engine.submit(asking(model, draft, max_tokens=80)))
        assert (drafted.tokens, sum(predicted(drafted)) > 70) == (plain.tokens, True)


@pytest.mark.parametrize("kind", ["eagle3", "dflash"])
def test_sequences_that_share_a_drafter_do_not_disturb_each_other(
    engine: MlxTextGenerator, kind: str, tmp_path: Path
) -> None:
    model = build(tmp_path / "llama")
    drafter = build_drafter(tmp_path / "drafter", kind, model)
    prompts = [f"{number} {PROMPT}" for number in range(3)] + [f"{PROMPT}. " * 400]  # more than a drafter reads
    plain = [read(engine.submit(asking(model, None, prompt=prompt))).tokens for prompt in prompts]
    engine.forget_prompts()
    together = [engine.submit(asking(model, drafter, prompt=prompt)) for prompt in prompts]
    assert [read(each).tokens for each in together] == plain


@pytest.mark.parametrize(
    "options", [{"kv_bits": 8}, {"kv_bits": 3.5, "kv_scheme": "turboquant"}, {"adapter": True}], ids=str
)
@pytest.mark.parametrize("kind", ["eagle3", "dflash"])
def test_a_drafter_combines_with_other_options(
    engine: MlxTextGenerator, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = build(tmp_path / "llama", head_dim=32)
    drafter = build_drafter(tmp_path / "drafter", kind, model)
    if "adapter" in options:
        options = {"adapter": str(write_adapter(tmp_path / "adapter", model))}
    plain = read(engine.submit(asking(model, None, **options)))
    drafted = read(engine.submit(asking(model, drafter, **options)))
    assert (drafted.tokens, sum(predicted(drafted)) > 30) == (plain.tokens, True)


@pytest.fixture
def mlxk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path / "home", capsys)


@pytest.mark.parametrize("kind", KINDS)
def test_run_and_serve_take_drafters_and_say_what_they_proposed(mlxk: Machine, kind: str, tmp_path: Path) -> None:
    model = repeating(model_of(tmp_path, kind))
    gap = Tokenizer.from_file(f"{model.directory}/tokenizer.json").encode(PROMPT).ids[-1]
    drafter = build_drafter(tmp_path / "drafter", kind, model, right=True, gap=gap)
    words = ("run", model.directory, PROMPT, "--no-chat-template", "--temperature", "0", "--max-tokens", "21")
    drafted = ("--draft-model", drafter.directory, "--draft-block-size", "5", "--draft-kind", kind)
    answer, plain = mlxk(*words, *drafted, "--json"), mlxk(*words, "--json")
    assert answer.data["response"] == plain.data["response"] != ""
    usage = answer.data["usage"]
    accepted = usage["accepted_prediction_tokens"]
    # This one for EAGLE-3 takes over what was read of the token before the last one.
    assert (accepted, usage["rejected_prediction_tokens"]) == ((16, 4) if kind == "eagle3" else (20, 0))
    assert f"{accepted} of 20 drafted tokens right" in mlxk(*words, *drafted, "--verbose").err

    with mlxk.serve("--model", model.directory, *drafted, "--allow-model-paths") as server:
        body = {"model": model.directory, "prompt": PROMPT, "temperature": 0, "max_tokens": 48}
        status, _, document = server.post("/v1/completions", body)
        assert (status, len(set(document["choices"][0]["text"].split()))) == (200, 1), document
        details = document["usage"]["completion_tokens_details"]
        assert details["accepted_prediction_tokens"] > 8
        assert 'mlxk_draft_tokens_total{outcome="accepted"}' in server.get("/metrics")[2].decode()


def changed(folder: Path, **entries: Any) -> str:
    """Change the config of a drafter, and return its directory."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return str(folder)


def test_what_is_no_drafter_for_the_model_is_refused_by_name(mlxk: Machine, tmp_path: Path) -> None:
    model = build(tmp_path / "llama")
    other = build(tmp_path / "wide", hidden_size=32)

    def drafter(name: str, of: ModelHandle = model, **entries: Any) -> str:
        return changed(Path(build_drafter(tmp_path / name, "eagle3", of).directory), **entries)

    empty = drafter("empty")
    Path(empty, "model.safetensors").unlink()
    faults = {
        drafter("deep", eagle_aux_hidden_state_layer_ids=[1, 2, 9]): "was made for another model than",
        drafter("thin", other): "was made for another model than",
        drafter("coded", model_file="own.py"): "wants to run code of its own",
        drafter("unknown", speculators_model_type="eagle4"): "is a drafter of the kind eagle4",
        drafter(
            "assistant", speculators_model_type=None, model_type="gemma4_assistant"
        ): "of the kind gemma4_assistant",
        drafter("spark", dflash_config={"markov_rank": 4}): "is a drafter of the kind",
        drafter("broken", transformer_layer_config=7): "broken",
        empty: "empty",
    }
    for draft, said in faults.items():
        done = mlxk("run", model.directory, "hi", "--draft-model", draft, "--max-tokens", "2")
        assert (done.status, said in done.err, "Traceback" in done.err) == (1, True, False), (draft, done)
    right = drafter("right")
    for kind, draft in (("mtp", right), ("eagle3", model.directory), ("model", right)):
        done = mlxk("run", model.directory, "hi", "--draft-model", draft, "--draft-kind", kind)
        assert (done.status, "draft_kind: by its files" in done.err) == (1, True), done
    done = mlxk("run", model.directory, "hi", "--draft-model", right, "--draft-block-size", "1")
    assert (done.status, "draft_tokens must be at least 1" in done.err) == (1, True), done
