"""Schemas that llguidance would enforce otherwise than they say, or die of: rounded inwards, or refused."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from transformers import AutoTokenizer

from mlxk.adapters.mlx.grammar import GrammarCompiler
from mlxk.domain.errors import ValidationError
from mlxk.domain.grammar import Grammar

_DEMO = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo"


@functools.cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(_DEMO)


@functools.cache
def _compiler() -> GrammarCompiler:
    return GrammarCompiler(_tokenizer(), [_tokenizer().eos_token_id])


@pytest.mark.parametrize(
    ("schema", "explanation"),
    [
        ('{"$ref": "#"}', "following # leads back to it"),
        ('{"items": {"$ref": "#/$defs/a~1"}, "$defs": {"a/": {"$ref": "#/items"}}}', "leads back"),
        (
            '{"properties": {"x": {"$ref": "#/$defs/a%20b"}}, "$defs": {"a b": {"$ref": "#/properties/x"}}}',
            "leads back",
        ),
        ('{"const": -9223372036854775808}', "const is beyond"),
        ('{"const": 9007199254740993}', "const is beyond"),
        ('{"properties": {"a": {"enum": [[{"b": 1e300}]]}}}', "enum is beyond"),
        ('{"type": "integer", "minimum": 100000000000000000000}', "its minimum is beyond 64 bits"),
        ('{"type": "integer", "exclusiveMinimum": 9223372036854775807}', "its exclusiveMinimum is beyond 64 bits"),
        ('{"type": "integer", "maximum": -9223372036854775807}', "its maximum is beyond 64 bits"),
        ('{"minimum": -1e30, "maximum": -9223372036854775808}', "its maximum is beyond 64 bits"),
    ],
)
def test_what_cannot_be_enforced_is_refused_before_llguidance_sees_it(schema: str, explanation: str) -> None:
    with pytest.raises(ValidationError, match=explanation):
        _compiler().compile(Grammar.json_schema(schema))


def _takes(grammar: Grammar, text: str) -> bool:
    """Whether an answer of that text would be held to be whole."""
    constraint = _compiler().compile(grammar).constrain()
    tokens = _tokenizer().encode(text, add_special_tokens=False)
    logits = mx.zeros((1, len(_tokenizer())))
    for count, token in enumerate(tokens):
        if constraint(mx.array(tokens[:count]), logits)[0, token].item() == -math.inf:
            return False
    constraint(mx.array(tokens), logits)
    return constraint.complete


@pytest.mark.parametrize(
    ("bounds", "number", "taken"),
    [
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, 7, True),
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, 2**63 - 1, True),
        ({"minimum": 0, "maximum": 2**64 - 1}, 2**62, True),
        ({"minimum": -1e400, "maximum": 1e400}, -7, True),
        ({"minimum": 0, "maximum": 9999999999999999}, 9999999999999998, True),
        ({"minimum": 0, "maximum": 9999999999999999}, 10**16, False),
        ({"minimum": 2**53 + 1, "maximum": 2**53 + 9}, 2**53, False),
        ({"minimum": 2**53 + 1, "maximum": 2**53 + 9}, 2**53 + 2, True),
        ({"exclusiveMinimum": 2**60, "maximum": 2**61}, 2**60, False),
        ({"exclusiveMaximum": 2**60, "minimum": 0}, 2**60, False),
        ({"exclusiveMaximum": 2**60, "minimum": 0}, 2**59, True),
    ],
)
def test_bounds_that_no_float_holds_let_nothing_pass_beyond_them(
    bounds: dict[str, float], number: int, taken: bool
) -> None:
    assert _takes(Grammar.json_schema(json.dumps({"type": "integer", **bounds})), str(number)) is taken


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"child": {"$ref": "#"}}},
        {"anyOf": [{"$ref": "#/anyOf/1"}, {"type": "integer"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "integer"}}},
        {"properties": {"const": {"type": "integer"}, "minimum": {"type": "integer", "maximum": 2**60}}},
        {"type": "integer", "default": 2**60, "examples": [{"const": 2**60}]},
        {"enum": [2**53, -(2**53), 0.5, True]},
    ],
)
def test_what_only_looks_like_a_circle_or_a_large_number_is_accepted(schema: dict[str, Any]) -> None:
    assert _compiler().compile(Grammar.json_schema(json.dumps(schema)))


def test_of_a_grammar_put_together_the_part_at_fault_is_named() -> None:
    fine, wrong = Grammar.json_schema("{}", "tools[0]"), Grammar.json_schema('{"type": "nonsense"}', "tools[1]")
    whole = Grammar.json_schema('{"anyOf": [{"type": "nonsense"}]}', "tools", (fine, wrong))
    with pytest.raises(ValidationError) as caught:
        _compiler().compile(whole)
    assert caught.value.message == "tools[1]: the JSON schema cannot be used: Invalid type: nonsense"
    assert [problem["param"] for problem in caught.value.detail["problems"]] == ["tools[1]"]
