"""Chat templates: found wherever they stand, and what their text tells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.formats.chat_templates import tools_missing
from mlxk.domain.formats.reasoning import detect_reasoning, supports_reasoning
from mlxk.domain.models.file_formats import ABSENT, Document
from mlxk.domain.models.model import ToolsMissing
from mlxk.domain.models.snapshot import chat_templates, is_template_file

NOWHERE = (ABSENT, ABSENT, ABSENT)


@pytest.mark.parametrize(
    "value",
    [
        "the template",
        ["the template"],
        [{"name": "default", "template": "the template"}],
        [{"name": "default", "template": "the template"}, {"name": "blank", "template": " "}, {"name": 5}, 7],
        {"default": "the template"},
    ],
)
@pytest.mark.parametrize("place", range(3))
def test_a_template_is_found_in_every_form_and_place(value: object, place: int) -> None:
    documents = [*NOWHERE]
    documents[place] = Document({"chat_template": value})
    assert chat_templates({}, *documents) == {"default": "the template"}


def test_templates_in_files_of_their_own_have_precedence() -> None:
    files = {"chat_template.jinja": "the template", "additional_chat_templates/tool_use.jinja": "the one for tools"}
    found = chat_templates(files, Document({"chat_template": "another"}), ABSENT, ABSENT)
    assert found == {"default": "the template", "tool_use": "the one for tools"}


@pytest.mark.parametrize("names", [["chatml"], ["chatml", "tool_use"], ["zephyr", "rag", "chatml"]])
def test_a_default_is_found_whatever_its_name(names: list[str]) -> None:
    listed = [{"name": name, "template": name} for name in names]
    found = chat_templates({}, Document({"chat_template": listed}), ABSENT, ABSENT)
    assert found["default"] in set(names) - {"tool_use"}


def test_a_blank_template_is_none() -> None:
    assert chat_templates({"chat_template.jinja": "\n"}, Document({"chat_template": "  "}), ABSENT, ABSENT) == {}


@pytest.mark.parametrize("path", ["x.jinja", "sub/chat_template.jinja", "additional_chat_templates/a/b.jinja"])
def test_templates_of_other_things_are_none(path: str) -> None:
    assert not is_template_file(path)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)))
def test_any_value_in_place_of_a_template_gives_text(value: object) -> None:
    found = chat_templates({}, Document({"chat_template": value}), Document(value), ABSENT)
    assert all(isinstance(text, str) for text in found.values())


@pytest.mark.parametrize(
    "text", ["{% if tools %}", "{{ tools | tojson }}", "{%- for tool in tools -%}", "{{ (tools) }}"]
)
def test_a_template_that_reads_tools_is_known(text: str) -> None:
    assert tools_missing(text) is None


@pytest.mark.parametrize(
    "text",
    ["tools", "<tool_call>", "{# tools #}", "{{ 'tools' }}", "{{ m.tools }}", "{% if m.tool_calls %}"],
)
def test_a_template_that_only_mentions_tools_does_not_read_them(text: str) -> None:
    assert tools_missing(text) is ToolsMissing.TEMPLATE


def test_a_model_whose_calls_cannot_be_read_is_known() -> None:
    assert tools_missing("{% if tools %}<|recipient|>") is ToolsMissing.FORMAT


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
        "<|start|>assistant to=user<|message|>...<|eom|>...<|eot|>",
    ],
)
def test_what_an_answer_would_be_split_by_is_known(text: str) -> None:
    assert detect_reasoning(text, ())
    assert supports_reasoning(text)


def test_a_plain_template_has_neither() -> None:
    text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    assert tools_missing(text) is ToolsMissing.TEMPLATE
    assert not supports_reasoning(text)
