"""Chat templates: found wherever they stand, and what their text tells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.chat_template import supports_reasoning, supports_tools, template_text
from mlxk.domain.documents import ABSENT, Document


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
    assert template_text(document, ABSENT, None) == "the template"
    assert template_text(ABSENT, document, None) == "the template"


def test_a_template_in_a_file_of_its_own_is_found() -> None:
    assert template_text(ABSENT, ABSENT, "the template") == "the template"


def test_a_blank_template_is_none() -> None:
    assert template_text(Document({"chat_template": "  "}), ABSENT, "\n") == ""


@given(st.recursive(st.none() | st.integers() | st.text(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)))
def test_any_value_in_place_of_a_template_gives_text(value: object) -> None:
    assert isinstance(template_text(Document({"chat_template": value}), Document(value), None), str)


@pytest.mark.parametrize("text", ["{% if tools %}", "<tool_call>", "{{ tools | tojson }}"])
def test_a_template_that_handles_tools_is_known(text: str) -> None:
    assert supports_tools(text)


@pytest.mark.parametrize(
    "text", ["<think>\n", "{% if enable_thinking %}", "<|channel|>analysis", "[THINK]", "<|START_THINKING|>"]
)
def test_a_template_that_knows_reasoning_is_known(text: str) -> None:
    assert supports_reasoning(text)


def test_a_plain_template_has_neither() -> None:
    text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    assert not supports_tools(text)
    assert not supports_reasoning(text)
