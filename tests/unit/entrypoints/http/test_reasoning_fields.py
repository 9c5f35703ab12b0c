"""The fields about reasoning, in the spellings of several servers: those that disagree are refused by name."""

from typing import Any

import pytest
from serving.asking import ask, chat


@pytest.mark.parametrize(
    ("thinking", "effort", "taken"),
    [
        (True, "none", False),
        (False, "low", False),
        (False, "high", False),
        (False, "none", True),
        (False, "medium", True),
        (True, "high", True),
    ],
)
def test_whether_and_how_much_to_reason_must_agree(thinking: bool, effort: str, taken: bool) -> None:
    status, answer, _, _ = ask("/v1/chat/completions", enable_thinking=thinking, reasoning_effort=effort)
    assert status == (200 if taken else 400)
    assert taken or answer["error"]["param"] == "enable_thinking"


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"thinking_budget": 3, "reasoning": {"max_tokens": 4}}, "reasoning.max_tokens: contradicts thinking_budget"),
        ({"enable_thinking": True, "thinking": {"type": "disabled"}}, "thinking.type: contradicts enable_thinking"),
        (
            {"reasoning_effort": "low", "reasoning": {"effort": "high"}},
            "reasoning.effort: contradicts reasoning_effort",
        ),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}, "thinking.type: contradicts reasoning_effort"),
        ({"reasoning": {"enabled": True, "effort": "none"}}, "reasoning.enabled: contradicts reasoning.effort"),
        ({"thinking_budget": 3, "thinking": {"type": "enabled", "budget_tokens": 3}, "enable_thinking": True}, None),
        ({"thinking": {"type": "adaptive"}, "enable_thinking": False, "reasoning": {"enabled": False}}, None),
    ],
)
def test_fields_of_several_servers_about_reasoning_must_agree(fields: dict[str, Any], fault: str | None) -> None:
    for path in ("/v1/chat/completions", "/v1/responses"):
        required = {"input": "one"} if "responses" in path else {}
        status, answer, _, _ = ask(path, **required, **fields)
        assert (status, fault is None or answer["error"]["message"]) == ((400, fault) if fault else (200, True))


@pytest.mark.parametrize(
    ("fields", "tags"),
    [
        ({}, None),
        ({"thinking_start_token": "<a>"}, ("<a>", "</think>")),
        ({"thinking_end_token": "</a>"}, ("<think>", "</a>")),
        ({"thinking_start_token": "<a>", "thinking_end_token": "</a>"}, ("<a>", "</a>")),
    ],
)
def test_a_tag_of_reasoning_that_is_left_out_is_the_usual_one(
    fields: dict[str, str], tags: tuple[str, str] | None
) -> None:
    assert chat(**fields)[1].thinking_tags == tags
