"""Conversations of the Messages API as they reach the engine: system messages, results, documents, blocks."""

from typing import Any

import pytest
from serving.messages import CALLED, IMAGE, conversation, document, result, send, text

from mlxk.domain.generation.conversation import Conversation, Role


@pytest.mark.parametrize(
    ("system", "shown", "ignored"),
    [
        ("Be brief.", "Be brief.", False),
        ([{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}], "Be brief.\nBe kind.", False),
        ("x-anthropic-billing-header: cc_version=2.1.0; cch=00000;\nBe brief.", "Be brief.", True),
        ([{"type": "text", "text": "x-anthropic-billing-header: a"}, text()], "hi", True),
        ([text(), {"type": "text", "text": "x-anthropic-billing-header: a"}], "hi", True),
        ("See x-anthropic-billing-header: a", "See x-anthropic-billing-header: a", False),
        ("x-anthropic-billing-header: a", None, True),
        ([], None, False),
    ],
)
def test_the_billing_line_is_no_part_of_the_prompt(system: Any, shown: str | None, ignored: bool) -> None:
    _, _, request, headers = send(system=system)
    assert request is not None
    assert isinstance(request.prompt, Conversation)
    found = [each.content for each in request.prompt.messages if each.role is Role.SYSTEM]
    assert found == ([] if shown is None else [shown])
    named = "system[].x-anthropic-billing-header" in headers.get("x-mlxk-ignored-fields", "")
    assert named is ignored


def turns_of(*messages: Any) -> list[tuple[str, str]]:
    """Return roles and texts of the messages that reach the engine."""
    return [(each.role.value, each.content) for each in conversation(messages=[*messages]).messages]


ASKED = {"role": "user", "content": "question"}
CALLING = {"role": "assistant", "content": [CALLED]}
LATE = {"role": "system", "content": "note"}


def test_nothing_stands_between_a_call_and_its_result() -> None:
    answered = {"role": "user", "content": [text(), result(text())]}
    expected = [("user", "question"), ("assistant", ""), ("tool", "hi"), ("user", "hi")]
    assert turns_of(ASKED, CALLING, answered) == expected
    assert turns_of(ASKED, CALLING, LATE, answered) == [*expected[:3], ("system", "note"), expected[3]]
    assert turns_of(ASKED, CALLING, answered, LATE) == [*expected, ("system", "note")]


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ({"a": "é"}, '{"a": "é"}'),
        (None, "{}"),
        ([1], '{"input": [1]}'),
        ('{"a": 1}', '{"a": 1}'),
        ("[1]", '{"input": [1]}'),
        ('{"a": "cut', '{"a": "cut'),
        (r'"\ud800"', r'{"input": "\ud800"}'),
    ],
)
def test_arguments_of_an_earlier_call_are_an_object_in_valid_unicode(given: Any, arguments: str) -> None:
    called = {"role": "assistant", "content": [{**CALLED, "input": given}]}
    answered = {"role": "user", "content": [result(text())]}
    (call,) = conversation(messages=[ASKED, called, answered]).messages[1].tool_calls
    assert call.arguments == arguments


def test_a_system_message_for_one_turn_is_left_out_later() -> None:
    once = {**LATE, "clear_at": "next_user_message"}
    assert turns_of(ASKED, once) == [("user", "question"), ("system", "note")]
    assert turns_of(ASKED, once, {"role": "assistant", "content": "yes"}, ASKED) == [
        ("user", "question"),
        ("assistant", "yes"),
        ("user", "question"),
    ]
    assert ("system", "note") in turns_of(ASKED, {**LATE, "clear_at": "never"}, ASKED)


@pytest.mark.parametrize(
    ("content", "is_error", "shown"),
    [
        ("done", None, "done"),
        (None, None, ""),
        ("It failed.", True, "Error: It failed."),
        ("Error: no such file", True, "Error: no such file"),
        ([text(), text()], False, "hi\nhi"),
        ([{"type": "tool_reference", "tool_name": "add"}], None, "[The tool add can be called.]"),
        (
            [{"type": "search_result", "title": "T", "source": "S", "content": [text()]}],
            None,
            "[Search result: T (S)]\nhi",
        ),
        ([IMAGE], None, "[An image was left out here: this model takes no images.]"),
    ],
)
def test_results_become_text(content: Any, is_error: bool | None, shown: str) -> None:
    block = {"type": "tool_result", "tool_use_id": "t", "content": content, "is_error": is_error}
    assert turns_of(ASKED, CALLING, {"role": "user", "content": [block]})[-1] == ("tool", shown)


@pytest.mark.parametrize("role", ["user", "system"])
def test_what_a_server_ran_is_left_out_of_any_turn_and_named(role: str) -> None:
    ran = {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}}
    status, _, request, headers = send(messages=[ASKED, {"role": role, "content": [text(), ran, text()]}])
    assert (status, headers["x-mlxk-ignored-fields"]) == (200, "messages[].content[].server_tool_use")
    assert request is not None
    assert isinstance(request.prompt, Conversation)
    assert request.prompt.messages[-1].content == "hi\nhi"


def test_documents_become_text() -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "body"}
    block = {"type": "document", "source": plain, "title": "Title", "context": "About it."}
    assert turns_of({"role": "user", "content": [block, text()]}) == [
        ("user", "[Document: Title]\nAbout it.\nbody\nhi")
    ]
    assert turns_of({"role": "user", "content": [document()]}) == [("user", "[Document]\nhi")]


def test_an_answer_in_blocks_is_one_message_again() -> None:
    said = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "Well, "},
        {"type": "text", "text": "yes."},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "compaction", "content": " So far."},
        CALLED,
        {**CALLED, "id": "toolu_0123456789abcdef01234567"},
    ]
    answered = {"role": "user", "content": [result(text()), {**result(), "tool_use_id": said[6]["id"]}]}
    _, message, *results = conversation(messages=[ASKED, {"role": "assistant", "content": said}, answered]).messages
    assert (message.content, message.reasoning) == ("Well, yes. So far.", "hm")
    assert [call.id for call in message.tool_calls] == ["t", "call_0123456789abcdef01234567"]
    assert [each.tool_call_id for each in results] == ["t", "call_0123456789abcdef01234567"]
