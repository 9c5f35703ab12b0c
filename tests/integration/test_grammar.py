"""Answers of a random model, held to grammars by llguidance."""

import functools
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import mlx.core as mx
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlxk.adapters.mlx.engine.build_sequence import answer_begins
from mlxk.adapters.mlx.prompting.detokenizer import TokenDecoder
from mlxk.adapters.mlx.prompting.grammar import CallOpenings, GrammarCompiler, GrammarConstraint
from mlxk.domain.errors import (
    BackendNotInstalledError,
    CapabilityError,
    ExecutionError,
    MlxkError,
    ValidationError,
)
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import CHANNELS, ReasoningFormat, ReasoningStyle
from mlxk.domain.generation.grammar import Grammar

_SCHEMAS = json.loads((Path(__file__).parent / "data" / "json_schemas.json").read_text(encoding="utf-8"))
_THINK = ReasoningFormat(ReasoningStyle.TAGS, "<think>", "</think>")
_FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
_ENDS = (0, 1)
_WIDTH = 512
"""Rows of the model's output: more than the tokenizer has tokens."""


@functools.cache
def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=440,
        special_tokens=["<|end|>", "<|endoftext|>", "<|start|>", "<|channel|>", "<|message|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = ['{"name": "value", "list": [1, 2, 3], "ok": true, "none": null}', "The quick brown fox. Köln 東京 😀"] * 3
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", clean_up_tokenization_spaces=False)


@functools.cache
def _model() -> Any:
    from mlx_lm.models import llama

    arguments = llama.ModelArgs(
        model_type="llama",
        hidden_size=32,
        num_hidden_layers=1,
        intermediate_size=64,
        num_attention_heads=2,
        rms_norm_eps=1e-6,
        vocab_size=_WIDTH,
        tie_word_embeddings=True,
    )
    mx.random.seed(7)
    model = llama.Model(arguments)
    mx.eval(model.parameters())
    return model


@functools.cache
def _compiler() -> GrammarCompiler:
    return GrammarCompiler(_tokenizer(), lambda: _ENDS, capacity=1000)


def _constraint(grammar: Grammar) -> GrammarConstraint:
    return _compiler().compile(grammar).constrain()


def _hurry(_: mx.array, logits: mx.array) -> mx.array:
    """Make a random model come to an end: prefer what closes strings, lists, objects and answers."""
    closing = [*_ENDS, *_tokenizer().convert_tokens_to_ids(['"', "]", "}"])]
    return logits.at[:, mx.array(closing)].add(4.0)


def _answers(constraints: Sequence[Callable[..., mx.array]], max_tokens: int = 300) -> list[str | None]:
    """One answer for each constraint, all in one batch, at temperature 1; None for those that did not finish."""
    from mlx_lm.generate import BatchGenerator, StopSequences

    generator = BatchGenerator(
        _model(), completion_batch_size=len(constraints), sampler=lambda logprobs: mx.random.categorical(logprobs)
    )
    count, stops = len(constraints), StopSequences([[end] for end in _ENDS])
    uids = generator.insert(
        [[5 + index % 9, 20] for index in range(count)],
        max_tokens=[max_tokens] * count,
        logits_processors=[[_hurry, constraint] for constraint in constraints],
        stop_sequences=[stops] * count,
    )
    tokens: dict[int, list[int]] = {uid: [] for uid in uids}
    finished: set[int] = set()
    while responses := generator.next_generated():
        for response in responses:
            if response.finish_reason == "stop":
                finished.add(response.uid)
            else:
                tokens[response.uid].append(response.token)
    generator.close()
    return [_tokenizer().decode(tokens[uid]) if uid in finished else None for uid in uids]


@pytest.mark.mlx
@pytest.mark.parametrize("part", range(8))
def test_every_finished_answer_is_valid_against_its_schema(part: int) -> None:
    entries = _SCHEMAS[part::8]
    constraints = [_constraint(Grammar.json_schema(json.dumps(entry["schema"]))) for entry in entries]
    mx.random.seed(part)
    answers = _answers(constraints)
    for entry, constraint, answer in zip(entries, constraints, answers, strict=True):
        assert constraint.error is None, entry["name"]
        if answer is not None:
            # The year 0 is one of RFC 3339, but not one of Python.
            value = json.loads(re.sub(r'"0000-', '"0004-', answer))
            jsonschema.validate(value, entry["schema"], format_checker=_FORMATS)
            assert constraint.complete, entry["name"]
    assert sum(answer is not None for answer in answers) >= 0.8 * len(answers)


def test_there_are_two_hundred_schemas() -> None:
    assert len(_SCHEMAS) == len({entry["name"] for entry in _SCHEMAS}) == 200


_OTHERS = {
    "object": Grammar.json_object(),
    "schema": Grammar.json_schema('{"type": "array", "items": {"enum": ["Köln", "東京", "😀"]}, "maxItems": 3}'),
    "choice": Grammar.choice(("yes", "no", "yes, but", '"quoted"', "new\nline", "\x7f😀\u2028")),
}


def _matches(kind: str, answer: str) -> bool:
    grammar = _OTHERS[kind]
    if kind == "object":
        return isinstance(json.loads(answer), dict)
    if kind == "schema":
        return set(json.loads(answer)) <= {"Köln", "東京", "😀"}
    return answer in json.loads(grammar.text)


@pytest.mark.mlx
def test_different_grammars_and_none_run_in_one_batch() -> None:
    kinds = list(_OTHERS) * 6
    free = [lambda tokens, logits: logits] * 4
    mx.random.seed(0)
    answers = _answers([*(_constraint(_OTHERS[kind]) for kind in kinds), *free], max_tokens=200)
    for kind, answer in zip(kinds, answers, strict=False):
        assert answer is None or _matches(kind, answer), kind
    finished = {kind for kind, answer in zip(kinds, answers, strict=False) if answer is not None}
    assert finished == set(_OTHERS)


def _permitted(constraint: GrammarConstraint, tokens: Sequence[int], width: int = _WIDTH) -> set[int]:
    logits = constraint(mx.array(tokens, dtype=mx.int32), mx.zeros((1, width)))
    assert logits.shape == (1, width)
    return {index for index, value in enumerate(logits[0].tolist()) if value > -math.inf}


def _ids(text: str) -> list[int]:
    return [int(token) for token in _tokenizer().encode(text, add_special_tokens=False)]


def test_only_end_tokens_follow_a_finished_answer() -> None:
    constraint, tokens = _constraint(Grammar.choice(("a", "ab"))), []
    assert _permitted(constraint, tokens) == {_ids("a")[0]}
    tokens += _ids("a")
    assert _permitted(constraint, tokens) == {*_ENDS, _ids("b")[0]}
    assert constraint.complete
    tokens += _ids("b")
    assert _permitted(constraint, tokens) == set(_ENDS)
    # A batch computes one step more than it returns.
    assert _permitted(constraint, [*tokens, _ENDS[0]]) == set(_ENDS)
    assert constraint.error is None


@pytest.mark.parametrize("text", ['{"a":1}', '{"a": 1}', '{\n  "a": 1\n}', '{\n        "a": 1\n}', '{ "a" : 1 }'])
def test_json_may_be_written_tight_or_indented(text: str) -> None:
    assert _first_refused(text) is None


@pytest.mark.parametrize("text", ['{"a":  1}', '{"a":\n\n1}', '{"a":' + "\n" + " " * 40 + "1}"])
def test_json_is_not_spaced_out_without_end(text: str) -> None:
    assert (_first_refused(text) or "").strip() == ""
    assert _first_refused(text) is not None


def _first_refused(text: str) -> str | None:
    """Return the first token of a text that an object may not go on with; None when there is none."""
    grammar = Grammar.json_schema('{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')
    constraint, tokens = _constraint(grammar), _ids(text)
    for index, token in enumerate(tokens):
        if token not in _permitted(constraint, tokens[:index]):
            return str(_tokenizer().decode([token]))
    return None


def test_the_tokens_of_the_prompt_do_not_matter() -> None:
    constraint = _constraint(Grammar.choice(("ab",)))
    prompt = _ids("bbbb")
    assert _permitted(constraint, prompt) == {_ids("a")[0]}
    assert _permitted(constraint, [*prompt, *_ids("a")]) == {_ids("b")[0]}


def test_an_answer_may_be_taken_up_in_its_middle() -> None:
    constraint = _compiler().compile(Grammar.choice(("abc",))).constrain(prompt_tokens=2)
    assert _permitted(constraint, [*_ids("zz"), *_ids("a"), *_ids("b")]) == {_ids("c")[0]}


@pytest.mark.parametrize("width", [300, 447, 448, 2048])
def test_the_output_may_be_narrower_or_wider_than_the_vocabulary(width: int) -> None:
    permitted = _permitted(_constraint(Grammar.choice(tuple(map(chr, range(0x20, 0x180))))), [], width)
    assert max(permitted) < min(width, len(_tokenizer()))
    assert len(permitted) > 90


def test_half_precision_logits_keep_their_type() -> None:
    logits = _constraint(Grammar.choice(("a",)))(mx.array([], dtype=mx.int32), mx.zeros((1, _WIDTH), mx.bfloat16))
    assert logits.dtype == mx.bfloat16


def test_a_token_that_was_not_permitted_is_an_error_and_ends_the_answer() -> None:
    constraint = _constraint(Grammar.choice(("ab",)))
    _permitted(constraint, [])
    assert _permitted(constraint, _ids("z")) == set(_ENDS)
    assert constraint.error
    assert "\n" not in constraint.error
    assert not constraint.complete
    assert _permitted(constraint, _ids("za")) == set(_ENDS)


def test_answers_with_one_grammar_do_not_disturb_each_other() -> None:
    compiled = _compiler().compile(Grammar.choice(("ab", "cd")))
    first, second = compiled.constrain(), compiled.constrain()
    for constraint in (first, second):
        _permitted(constraint, [])
    assert _permitted(first, _ids("a")) == {_ids("b")[0]}
    assert _permitted(second, _ids("c")) == {_ids("d")[0]}


@pytest.mark.parametrize(
    ("reasoning", "tail", "thought"),
    [
        (_THINK, "assistant\n<think>\n", "hm, yes</think>"),
        (
            CHANNELS,
            "<|start|>assistant",
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final <|x|>",
        ),
    ],
)
def test_reasoning_is_not_held_to_the_grammar(reasoning: ReasoningFormat, tail: str, thought: str) -> None:
    decoder = TokenDecoder(_tokenizer())
    begins = answer_begins(decoder.stream(), OutputParser((), reasoning, prompt_tail=tail))
    assert begins is not None
    constraint = _compiler().compile(Grammar.choice(("ab",))).constrain(begins)
    tokens: list[int] = []
    spoken = _ids(thought + ("<|message|>" if reasoning is CHANNELS else ""))
    for token in spoken:
        assert len(_permitted(constraint, tokens)) == _WIDTH
        assert not constraint.complete
        tokens.append(token)
    assert _permitted(constraint, tokens) == {_ids("a")[0]}
    assert _permitted(constraint, [*tokens, *_ids("a")]) == {_ids("b")[0]}


def test_an_answer_that_opens_no_reasoning_begins_at_once() -> None:
    stream = TokenDecoder(_tokenizer()).stream()
    assert answer_begins(stream, OutputParser((), _THINK, prompt_tail="assistant\n")) is None
    assert answer_begins(stream, OutputParser()) is None


@pytest.mark.parametrize(
    ("grammar", "explanation"),
    [
        (Grammar.json_schema('{"type": "nonsense"}'), "JSON schema cannot be used: Invalid type: nonsense"),
        (Grammar.json_schema('{"not": {}}'), "Unimplemented keys"),
        (Grammar.json_schema('{"$ref": "http://example.com/x"}'), "not present"),
        (Grammar.json_schema("false"), "must be a JSON object"),
        (Grammar.json_schema('{"type": "array", "minItems": 3, "maxItems": 2}'), "JSON schema cannot be used"),
        (Grammar.json_schema('{"type": '), "JSON schema is not valid JSON"),
        (Grammar.json_schema("[]"), "must be a JSON object"),
        (Grammar.json_schema("[" * 10**5), "nested too deeply"),
        (Grammar.json_schema('{"anyOf": [{"$ref": "#"}]}'), "following # leads in a circle"),
        (Grammar.json_schema('{"allOf": [' * 300 + "true" + "]}" * 300), "JSON schema"),
        (Grammar.json_schema('"' + "x" * 300_000 + '"'), "too long"),
        (Grammar.choice(()), "at least one string"),
        (Grammar.choice(("a", "")), "none of them empty"),
    ],
)
def test_what_cannot_be_a_grammar_is_refused_with_the_reason(grammar: Grammar, explanation: str) -> None:
    with pytest.raises(ValidationError, match=explanation) as caught:
        _compiler().compile(grammar)
    assert len(caught.value.message) < 600


def test_the_last_grammars_used_are_kept() -> None:
    compiler = GrammarCompiler(_tokenizer(), lambda: _ENDS, capacity=2)
    first = compiler.compile(Grammar.choice(("a",)))
    second = compiler.compile(Grammar.choice(("b",)))
    assert compiler.compile(Grammar.choice(("a",))) is first
    compiler.compile(Grammar.choice(("c",)))
    assert compiler.compile(Grammar.choice(("a",))) is first
    assert compiler.compile(Grammar.choice(("b",))) is not second


def test_grammars_compile_in_many_threads_at_once() -> None:
    compiler = GrammarCompiler(_tokenizer(), lambda: _ENDS, capacity=4)

    def work(index: int) -> bool:
        constraint = compiler.compile(Grammar.choice(("a" * (index % 6 + 1),))).constrain()
        return not constraint.complete and constraint.error is None

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


def _spelling_tokenizer(decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    """A tokenizer in SentencePiece's way: pieces with marked spaces, single bytes for what they lack."""
    names = ["</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "Gr", "▁Gr", "ü"]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_tokenizers_that_fall_back_to_bytes_can_be_constrained() -> None:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer = _spelling_tokenizer(decoders.Sequence(steps))
    constraint = GrammarCompiler(tokenizer, lambda: [0]).compile(Grammar.choice(("Grü😀", "grü😀"))).constrain()
    tokens: list[int] = []
    while 0 not in (permitted := _permitted(constraint, tokens)):
        tokens.append(min(permitted))
    assert permitted == {0}
    assert tokenizer.decode(tokens) == "Grü😀"


@pytest.mark.parametrize("tokenizer", [object(), _spelling_tokenizer(decoders.Metaspace())])
def test_a_tokenizer_that_llguidance_cannot_read_is_refused(tokenizer: object) -> None:
    with pytest.raises(CapabilityError, match="tokenizer cannot be held to a grammar"):
        GrammarCompiler(tokenizer, lambda: _ENDS).compile(Grammar.json_object())


@pytest.mark.parametrize(
    ("module", "error"), [("llguidance", BackendNotInstalledError), ("llguidance.hf", ExecutionError)]
)
def test_a_library_that_is_broken_is_not_called_absent(
    module: str, error: type[MlxkError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(error, match=f"needs {module}, which"):
        GrammarCompiler(_tokenizer(), lambda: _ENDS).compile(Grammar.json_object())


def _admits(constraint: GrammarConstraint, text: str) -> bool:
    """Whether a constraint lets a model write a text, token by token, and end there."""
    tokens = _tokenizer().encode(text, add_special_tokens=False)
    for length, token in enumerate([*tokens, _ENDS[0]]):
        logits = constraint(mx.array(tokens[:length], dtype=mx.int32), mx.zeros((1, _WIDTH)))
        if not bool(mx.isfinite(logits[0, token]).item()):
            return False
    return True


_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_CITY_TOOL = json.dumps({"type": "function", "function": {"name": "get_weather", "parameters": _CITY}})


@pytest.mark.parametrize(
    ("text", "admitted"),
    [
        ('{"city": "Paris"}', True),
        ('{"name": "get_weather", "arguments": {"city": "Paris"}}', True),
        ('{"name": "get_weather", "parameters": {"city": "Paris"}}', True),
        ('{"name": "other", "parameters": {"city": "Paris"}}', False),
        ("<call>anything at all</call>", True),
        ("<cart>", False),
        ("Hello", False),
    ],
)
def test_an_answer_is_by_its_schema_or_a_call(text: str, admitted: bool) -> None:
    grammar = Grammar.json_schema(_CITY).or_calls((_CITY_TOOL,))
    calls = CallOpenings(["<call>", "[now("], _tokenizer().get_vocab())
    assert _admits(_compiler().compile(grammar).constrain(calls=calls), text) is admitted
