"""What is computed outside the common batch, and what holds an answer: drafts, bounded caches, adapters, grammars."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import mlx.core as mx
import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import loaded, oracle, read
from models.tiny_models import build

from mlxk.adapters.mlx.engine.build_sequence import ReasoningReader
from mlxk.adapters.mlx.prompting.detokenizer import TokenDecoder
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import CHANNELS, ReasoningFormat, detect_reasoning
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.grammar import Grammar
from mlxk.domain.generation.request import FinishReason, GenerationRequest, ReasoningDelta, TextDelta
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build(tmp_path_factory.mktemp("tiny") / "llama", head_dim=32)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build(tmp_path_factory.mktemp("draft") / "llama", seed=3)


@pytest.fixture(scope="module")
def engine() -> Iterator[MlxTextGenerator]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield generator
    generator.close()


def asking(handle: ModelHandle, prompt: str = PROMPT, **wanted: object) -> GenerationRequest:
    engine_options = EngineOptions(
        **{name: wanted.pop(name) for name in list(wanted) if hasattr(EngineOptions(), name)}
    )  # type: ignore[arg-type]
    wanted = {"temperature": 0.0, "max_tokens": 24, "logprobs": 0, **wanted}
    return GenerationRequest(handle, prompt, GenerationSettings(**wanted), engine_options=engine_options)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_draft_model_changes_nothing_but_speed(
    engine: MlxTextGenerator, draft: ModelHandle, tmp_path: Path, architecture: str, width: int
) -> None:
    handle = build(tmp_path / "model", architecture)
    for prompt in (PROMPT, "Hello " * 40):
        found = read(engine.submit(asking(handle, prompt, draft_model=draft, draft_tokens=width, max_tokens=60)))
        assert found.tokens == oracle(handle, prompt, 60)


def test_a_draft_model_that_is_the_model_itself_confirms_everything(
    engine: MlxTextGenerator, handle: ModelHandle
) -> None:
    found = read(engine.submit(asking(handle, draft_model=handle)))
    assert found.tokens == oracle(handle, PROMPT)


@pytest.mark.parametrize("extra", [{}, {"presence_penalty": 1.5, "repetition_penalty": 1.3}, {"top_p": 0.7}])
def test_a_seed_gives_the_same_text_with_and_without_a_draft_model(
    engine: MlxTextGenerator, handle: ModelHandle, draft: ModelHandle, extra: dict[str, object]
) -> None:
    plain = read(engine.submit(asking(handle, temperature=1.0, seed=5, **extra)))
    drafted = read(engine.submit(asking(handle, temperature=1.0, seed=5, draft_model=draft, **extra)))
    assert drafted.tokens == plain.tokens


def test_quantized_keys_and_values_are_mlx_lms_own(engine: MlxTextGenerator, handle: ModelHandle) -> None:
    for bits in (4, 8):
        found = read(engine.submit(asking(handle, kv_bits=bits)))
        assert found.tokens == oracle(handle, PROMPT, kv_bits=bits, kv_group_size=32, quantized_kv_start=0)


def test_groups_of_a_size_are_mlx_lms_own_alone_and_in_a_batch_and_share_no_prefix(
    engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle = build(tmp_path / "wide", head_dim=128)
    sizes = (32, 64, 128)
    expected = {size: oracle(handle, PROMPT, kv_bits=4, kv_group_size=size, quantized_kv_start=0) for size in sizes}
    assert len(set(map(tuple, expected.values()))) == len(sizes), "the texts tell the sizes apart"
    for repeat in range(2):
        streams = {
            size: [engine.submit(asking(handle, kv_bits=4, kv_group_size=size)) for _ in range(2)] for size in sizes
        }
        for size, found in streams.items():
            answers = [read(each) for each in found]
            assert [each.tokens for each in answers] == [expected[size]] * 2
            assert all(each.finished.usage.cached_tokens > 0 for each in answers) or repeat == 0


def test_groups_that_do_not_divide_a_head_are_refused_or_replaced_where_they_are_a_servers_preference(
    engine: MlxTextGenerator, handle: ModelHandle
) -> None:
    with pytest.raises(CapabilityError, match=r"kv_group_size: 64 does not divide the attention heads .*, 32 numbers"):
        read(engine.submit(asking(handle, kv_bits=8, kv_group_size=64)))
    found = read(engine.submit(asking(handle, kv_bits=8, kv_group_size=64, cache_required=False)))
    assert found.tokens == read(engine.submit(asking(handle, kv_bits=8))).tokens
    assert ["groups of another size" in note for note in found.finished.notes] == [True]


def test_a_bounded_cache_is_exact_until_it_is_full(engine: MlxTextGenerator, handle: ModelHandle) -> None:
    assert read(engine.submit(asking(handle, max_kv_size=64))).tokens == oracle(handle, PROMPT)
    long = read(engine.submit(asking(handle, max_kv_size=16, max_tokens=200, ignore_eos=True)))
    assert long.finished.usage.completion_tokens == 200


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_keys_and_values_share_a_batch(engine: MlxTextGenerator, handle: ModelHandle, bits: int) -> None:
    """Answers that begin and end at other times, beside unquantized ones, are those of each alone."""
    prompts = [f"{PROMPT} {'jumps ' * number}{number}" for number in range(5)] + ["a"]
    alone = [read(engine.submit(asking(handle, each, kv_bits=bits, ignore_eos=True))).tokens for each in prompts]
    lengths = [24, 5, 24, 11, 24, 24]

    streams = [
        engine.submit(asking(handle, each, kv_bits=bits, max_tokens=length, ignore_eos=True))
        for each, length in zip(prompts, lengths, strict=True)
    ]
    plain = engine.submit(asking(handle, PROMPT))
    cancelled = engine.submit(asking(handle, f"{PROMPT} again", kv_bits=bits, max_tokens=2000, ignore_eos=True))
    assert isinstance(next(cancelled), TextDelta)
    late = engine.submit(asking(handle, prompts[2], kv_bits=bits, ignore_eos=True))
    cancelled.cancel()
    read(cancelled)

    answers = [read(each) for each in streams]
    for found, expected, length in zip(answers, alone, lengths, strict=True):
        assert found.tokens == expected[:length]
        assert found.finished.notes == ()
    assert read(plain).tokens == oracle(handle, PROMPT)
    assert read(late).tokens == alone[2]


@pytest.mark.parametrize("option", [{"max_kv_size": 64}, {"draft_model": "draft"}])
def test_what_cannot_share_steps_says_so_runs_beside_the_others_and_can_be_cancelled(
    engine: MlxTextGenerator, handle: ModelHandle, draft: ModelHandle, option: dict[str, object]
) -> None:
    name = next(iter(option))
    option = {name: draft if name == "draft_model" else option[name]}
    others = [engine.submit(asking(handle, f"{PROMPT} {number}")) for number in range(4)]
    special = engine.submit(asking(handle, max_tokens=2000, ignore_eos=True, **option))
    assert isinstance(next(special), TextDelta)
    assert [read(stream).tokens for stream in others] == [oracle(handle, f"{PROMPT} {number}") for number in range(4)]
    special.cancel()
    finished = read(special).finished
    assert finished.reason is FinishReason.CANCELLED
    assert finished.notes == (f"Computed outside the common batch because of {name}.",)


def test_a_model_that_cannot_keep_the_preferred_cache_keeps_its_own_and_says_so(
    engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle = build(tmp_path / "mamba2", "mamba2")
    for preferred in ({"kv_bits": 8}, {"max_kv_size": 64}):
        found = read(engine.submit(asking(handle, cache_required=False, **preferred)))
        assert found.tokens == oracle(handle, PROMPT)
        assert ["keeps its usual cache" in note for note in found.finished.notes] == [True]


def test_usual_answers_have_no_notes(engine: MlxTextGenerator, handle: ModelHandle) -> None:
    assert read(engine.submit(asking(handle))).finished.notes == ()


@pytest.mark.parametrize(
    "option", [{"kv_bits": 5}, {"max_kv_size": 1}, {"kv_bits": 4, "max_kv_size": 64}, {"draft_tokens": 0}]
)
def test_options_out_of_range_or_at_odds_are_refused_by_name(
    engine: MlxTextGenerator, handle: ModelHandle, option: dict[str, object]
) -> None:
    with pytest.raises(ValidationError, match=next(iter(option))):
        engine.submit(asking(handle, **option))


def test_a_draft_model_with_other_tokens_is_refused(
    engine: MlxTextGenerator, handle: ModelHandle, tmp_path: Path
) -> None:
    other = build(tmp_path / "other", reasoning=True)
    with pytest.raises(CapabilityError, match="draft_model"):
        engine.submit(asking(handle, draft_model=other))


def test_a_cache_that_cannot_be_quantized_is_refused(engine: MlxTextGenerator, tmp_path: Path) -> None:
    for name, wanted in (("mamba2", {"kv_bits": 8}), ("llama", {"kv_bits": 8}), ("mamba2", {"max_kv_size": 64})):
        with pytest.raises(CapabilityError, match=next(iter(wanted))):
            read(engine.submit(asking(build(tmp_path / name, name), **wanted)))


def test_attention_that_reads_no_packed_keys_gets_them_unpacked_or_refuses(
    engine: MlxTextGenerator, tmp_path: Path
) -> None:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 32}
    capped = build(tmp_path / "capped", "gemma2", head_dim=32, **caps)
    plain = read(engine.submit(asking(capped))).tokens
    streams = [engine.submit(asking(capped, kv_bits=8)) for _ in range(2)]  # as many as heads for keys
    assert [read(each).tokens for each in streams] == [plain, plain]
    sizes = {"hidden_dim": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "hidden_dim_scale_factor": 2.0}
    reusing = build(tmp_path / "reusing", "afm7", head_dim=32, num_kv_reuse_layers=2, **sizes)
    for scheme in ({"kv_bits": 8}, {"kv_bits": 4, "kv_scheme": "turboquant"}):
        with pytest.raises(CapabilityError, match="kv_bits"):
            read(engine.submit(asking(reusing, **scheme)))


def write_adapter(directory: Path, handle: ModelHandle, scale: float) -> str:
    """Write a LoRA adapter for one layer of a model."""
    network, _ = loaded(handle)
    inputs, outputs = network.layers[0].self_attn.q_proj.weight.shape[::-1]
    directory.mkdir()
    parameters = {"rank": 2, "scale": scale, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    weights = {}
    for layer in range(2):
        weights[f"model.layers.{layer}.self_attn.q_proj.lora_a"] = mx.ones((inputs, 2))
        weights[f"model.layers.{layer}.self_attn.q_proj.lora_b"] = mx.ones((2, outputs))
    mx.save_safetensors(str(directory / "adapters.safetensors"), weights)
    return str(directory)


def test_an_adapter_changes_its_own_answers_and_shares_the_engine(
    engine: MlxTextGenerator, handle: ModelHandle, tmp_path: Path
) -> None:
    strong, nothing = write_adapter(tmp_path / "a", handle, 5.0), write_adapter(tmp_path / "b", handle, 0.0)
    plain, with_strong, with_nothing = (
        read(stream).tokens
        for stream in [engine.submit(asking(handle, adapter=each)) for each in (None, strong, nothing)]
    )
    assert plain == with_nothing == oracle(handle, PROMPT)
    assert with_strong != plain


def test_an_adapter_that_is_not_there_or_does_not_fit_is_refused_by_name(
    engine: MlxTextGenerator, handle: ModelHandle, draft: ModelHandle, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="adapter"):
        engine.submit(asking(handle, adapter=str(tmp_path / "missing")))
    with pytest.raises(ValidationError, match="adapter"):
        engine.submit(asking(draft, adapter=write_adapter(tmp_path / "c", handle, 1.0)))


def test_an_answer_held_to_a_grammar_matches_it_among_answers_that_are_not(
    engine: MlxTextGenerator, handle: ModelHandle
) -> None:
    schema = '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}'
    closed = json.dumps({**json.loads(schema), "additionalProperties": False})
    pattern = '{"type": "string", "pattern": "^[0-9]{3}-[a-c]{2,5}z$"}'
    grammars = [Grammar.json_schema(pattern), Grammar.json_schema(closed), Grammar.choice(("yes", "no"))]
    free = [engine.submit(asking(handle, f"{PROMPT} {number}")) for number in range(3)]
    held = [
        engine.submit(asking(handle, temperature=1.0, seed=number, max_tokens=300, grammar=grammar))
        for number, grammar in enumerate(grammars * 2)
    ]
    assert [read(stream).tokens for stream in free] == [oracle(handle, f"{PROMPT} {number}") for number in range(3)]
    answers = [read(stream) for stream in held]
    for digits, document, choice in (answers[:3], answers[3:]):
        assert re.fullmatch('"[0-9]{3}-[a-c]{2,5}z"', digits.text)
        assert json.loads(document.text)["n"] <= 99
        assert choice.text in {"yes", "no"}
    assert {each.finished.reason for each in answers} == {FinishReason.STOP}


@pytest.mark.parametrize("other", [{"draft_model": True}, {"ignore_eos": True}])
def test_a_grammar_and_what_would_break_it_exclude_each_other(
    engine: MlxTextGenerator, handle: ModelHandle, draft: ModelHandle, other: dict[str, object]
) -> None:
    wanted = {name: draft if name == "draft_model" else value for name, value in other.items()}
    with pytest.raises(ValidationError, match="grammar"):
        engine.submit(asking(handle, grammar=Grammar.choice(("yes",)), **wanted))


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """A model whose prompt opens a block of reasoning, which it would hardly ever close."""
    handle = build(tmp_path_factory.mktemp("thinker") / "llama", reasoning=True)
    path = Path(handle.directory, "tokenizer_config.json")
    config = json.loads(path.read_text())
    config["chat_template"] += "{%- if add_generation_prompt -%}<think>\n{%- endif -%}"
    path.write_text(json.dumps(config))
    return handle


@pytest.mark.parametrize("budget", [0, 5, 30])
def test_reasoning_ends_with_its_budget_and_an_answer_follows(
    engine: MlxTextGenerator, thinker: ModelHandle, budget: int
) -> None:
    never = tuple((token, -100.0) for token in _tag_tokens(thinker))
    settings = GenerationSettings(
        temperature=0, max_tokens=80, ignore_eos=True, thinking_budget=budget, logit_bias=never
    )
    events = list(engine.submit(GenerationRequest(thinker, Conversation.of("Hello"), settings)))
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    said = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert bool(thought) is bool(budget)
    assert said
    assert "think>" not in thought + said


def test_reasoning_that_was_ended_does_not_begin_again(engine: MlxTextGenerator, thinker: ModelHandle) -> None:
    opening, _ = _tag_tokens(thinker)
    eager = GenerationSettings(
        temperature=0, max_tokens=60, ignore_eos=True, thinking_budget=5, logit_bias=((opening, 100.0),)
    )
    events = list(engine.submit(GenerationRequest(thinker, Conversation.of("Hello"), eager)))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)).strip()
    assert "<think>" not in "".join(event.text for event in events if isinstance(event, TextDelta))


def test_without_a_budget_reasoning_goes_on(engine: MlxTextGenerator, thinker: ModelHandle) -> None:
    never = tuple((token, -100.0) for token in _tag_tokens(thinker))
    settings = GenerationSettings(temperature=0, max_tokens=80, ignore_eos=True, logit_bias=never)
    events = list(engine.submit(GenerationRequest(thinker, Conversation.of("Hello"), settings)))
    assert not any(isinstance(event, TextDelta) for event in events)


@pytest.mark.parametrize("tags", [None, ("<think>", "</think>"), ("<a>", "</a>")])
def test_reasoning_is_between_the_tags_that_a_request_names(
    engine: MlxTextGenerator, thinker: ModelHandle, tags: tuple[str, str] | None
) -> None:
    never = tuple((token, -100.0) for token in _tag_tokens(thinker))
    settings = GenerationSettings(temperature=0, max_tokens=20, ignore_eos=True, logit_bias=never)
    events = list(engine.submit(GenerationRequest(thinker, Conversation.of("Hello"), settings, thinking_tags=tags)))
    deltas = {type(event) for event in events[:-1]}
    assert deltas == ({TextDelta} if tags == ("<a>", "</a>") else {ReasoningDelta})


def test_a_model_that_always_reasons_does_not_when_that_is_asked(
    engine: MlxTextGenerator, thinker: ModelHandle
) -> None:
    opening, _ = _tag_tokens(thinker)
    eager = GenerationSettings(temperature=0, max_tokens=40, ignore_eos=True, logit_bias=((opening, 100.0),))
    events = list(engine.submit(GenerationRequest(thinker, Conversation.of("Hello"), eager, thinking=False)))
    assert not any(isinstance(event, ReasoningDelta) for event in events)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)).strip()


@pytest.mark.parametrize(("style", "past"), [(detect_reasoning("<think></think>", ()), True), (CHANNELS, False)])
def test_an_answer_that_speaks_is_looked_at_no_more_where_it_cannot_reason_later(
    thinker: ModelHandle, style: ReasoningFormat, past: bool
) -> None:
    _, tokenizer = loaded(thinker)
    reader = ReasoningReader(TokenDecoder(tokenizer).stream(), OutputParser((), style, None, ""))
    tokens = tokenizer.encode(" \n Hello there", add_special_tokens=False)
    reader.read(mx.array(tokens[:1]))
    assert not reader.over
    reader.read(mx.array(tokens))
    assert reader.over is past


def test_beside_a_draft_model_no_reasoning_is_cut_short(
    engine: MlxTextGenerator, thinker: ModelHandle, tmp_path: Path
) -> None:
    draft = build(tmp_path / "draft", reasoning=True)
    request = GenerationRequest(
        thinker, Conversation.of("Hello"), GenerationSettings(), False, EngineOptions(draft_model=draft)
    )
    with pytest.raises(CapabilityError, match=r"draft_model: .* cannot tell it not to reason"):
        engine.submit(request)


def test_a_budget_changes_nothing_while_a_model_does_not_reason(engine: MlxTextGenerator, handle: ModelHandle) -> None:
    assert read(engine.submit(asking(handle, thinking_budget=5))).text == read(engine.submit(asking(handle))).text


def test_a_grammar_waits_until_reasoning_is_over(engine: MlxTextGenerator, thinker: ModelHandle) -> None:
    settings = GenerationSettings(
        temperature=0, max_tokens=60, thinking_budget=8, grammar=Grammar.choice(("yes", "no"))
    )
    events = list(engine.submit(GenerationRequest(thinker, Conversation.of("Hello"), settings)))
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)).strip() in {"yes", "no"}


def _tag_tokens(handle: ModelHandle) -> list[int]:
    _, tokenizer = loaded(attrs.evolve(handle))
    return [tokenizer.convert_tokens_to_ids(tag) for tag in ("<think>", "</think>")]
