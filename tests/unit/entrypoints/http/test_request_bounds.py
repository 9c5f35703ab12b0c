"""The bounds of request fields: the least and the most are taken, the next value beyond is refused by name."""

import json
from typing import Any

import pytest
from serving.asking import ask

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BOTH = (CHAT, COMPLETIONS)
USER = {"role": "user", "content": "hi"}

BOUNDS: list[tuple[tuple[str, ...], str, list[Any], list[Any]]] = [
    (CHAT, "max_tokens", [1, -1, -1.0], [0, -2]),
    (COMPLETIONS, "max_tokens", [0, 1, -1, -1.0], [-2]),
    (BOTH, "temperature", [0, 2], [-0.01, 2.01]),
    (BOTH, "top_p", [0, 0.001, 1], [-0.01, 1.01]),
    (BOTH, "top_k", [0, 1, -1], [-2]),
    (BOTH, "min_p", [0, 1], [-0.01, 1.01]),
    (BOTH, "repetition_penalty", [0.1, 10], [0.09, 10.1]),
    (BOTH, "presence_penalty", [-2, 2], [-2.01, 2.01]),
    (BOTH, "frequency_penalty", [-2, 2], [-2.01, 2.01]),
    (BOTH, "logit_bias", [{}, {"0": -100}, {"0": 100}], [{"0": -100.1}, {"0": 100.1}]),
    (BOTH, "seed", [-9223372036854776000, -(2**63), 0, 9223372036854776000, 2**64 - 1], [-(2**64), 2**64]),
    (
        BOTH,
        "stop",
        ["", "x", "x" * 1024, [], [""], ["", "x"], ["x"], ["x" * 1024], ["x"] * 16],
        ["x" * 1025, ["x" * 1025], ["x"] * 17],
    ),
    (BOTH, "n", [1, 128], [0, 129]),
    (COMPLETIONS, "logprobs", [0, 5], [-1, 6]),
    (
        COMPLETIONS,
        "prompt",
        [[1], [2**31 - 1], ["a"], ["a"] * 64, [[1]], [[1]] * 64],
        [[], [-1], [2**31], ["a"] * 65, [[]], [[1]] * 65],
    ),
    (CHAT, "messages", [[USER]], [[]]),
    (CHAT, "chunk", [1, 5], [0, 6]),
    (CHAT, "thinking_budget", [0], [-1]),
]


def cases(position: int) -> list[Any]:
    return [
        pytest.param(path, bounds[1], value, id=f"{path[4:8]} {bounds[1]}={json.dumps(value)[:30]}")
        for bounds in BOUNDS
        for path in ((bounds[0],) if isinstance(bounds[0], str) else bounds[0])
        for value in bounds[position]
    ]


@pytest.mark.parametrize(("path", "field", "value"), cases(2))
def test_a_value_at_its_bound_is_taken(path: str, field: str, value: Any) -> None:
    status, answer, reached, _ = ask(path, **{field: value})
    assert status == 200, answer
    assert reached is not None


@pytest.mark.parametrize(("path", "field", "value"), cases(3))
def test_a_value_beyond_its_bound_is_refused_by_name_and_nothing_is_computed(path: str, field: str, value: Any) -> None:
    status, answer, reached, _ = ask(path, **{field: value})
    assert status == 400
    assert (answer["error"]["param"] or "").startswith(field)
    assert reached is None


def test_alternatives_may_be_asked_for_at_each_token_up_to_twenty() -> None:
    for count, expected in ((0, 200), (20, 200), (21, 400), (-1, 400)):
        assert ask(CHAT, logprobs=True, top_logprobs=count)[0] == expected
