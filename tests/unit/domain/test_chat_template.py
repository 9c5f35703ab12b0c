"""Chat templates: found wherever they stand, and what their text tells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.formats.reasoning import detect_reasoning, supports_reasoning, supports_tools
from mlxk.domain.models.file_formats import ABSENT, Document
from mlxk.domain.models.snapshot import template_text


@pytest.mark.parametrize(
    "value",
    [
        "the template",
        [{"name": "default", "template": "the template"}],
        {"default": "the template"},
    ],
)
def test_a_template_is_found_in_every_form(value: object) -> None:
    document = Document({"chat_template": value})
    assert template_text(document, ABSENT, ()) == "the template"
    assert template_text(ABSENT, document, ()) == "the template"


def test_templates_in_files_of_their_own_are_found() -> None:
    assert template_text(ABSENT, ABSENT, ("the template", "the one for tools")) == "the template\nthe one for tools"


def test_a_blank_template_is_none() -> None:
    assert template_text(Document({"chat_template": "  "}), ABSENT, ("\n",)) == ""


@given(st.recursive(st.none() | st.integers() | st.text(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)))
def test_any_value_in_place_of_a_template_gives_text(value: object) -> None:
    assert isinstance(template_text(Document({"chat_template": value}), Document(value), ()), str)


@pytest.mark.parametrize("text", ["{% if tools %}", "<tool_call>", "{{ tools | tojson }}"])
def test_a_template_that_handles_tools_is_known(text: str) -> None:
    assert supports_tools(text)


@pytest.mark.parametrize(
    "text", ["<think>\n", "{% if enable_thinking %}", "<|channel|>analysis", "[THINK]", "<|START_THINKING|>"]
)
def test_a_template_that_knows_reasoning_is_known(text: str) -> None:
    assert supports_reasoning(text)


@pytest.mark.parametrize(
    "text",
    [
        "<thinking>...</thinking>",
        "<longcat_think>...</longcat_think>",
        "<|think:start|>...<|think:end|>",
        "<|open|>think<|sep|>...<|close|>think<|sep|>",
        "<|channel>thought...<channel|>",
        "<|start|>assistant<|channel|>analysis<|message|>",
    ],
)
def test_what_an_answer_would_be_split_by_is_known(text: str) -> None:
    assert detect_reasoning(text, ())
    assert supports_reasoning(text)


def test_a_plain_template_has_neither() -> None:
    text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    assert not supports_tools(text)
    assert not supports_reasoning(text)
