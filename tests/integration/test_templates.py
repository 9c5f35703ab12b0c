"""Prompts rendered with real tokenizers and templates."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlxk.adapters.mlx.prompting.conversation_rendering import RenderingJob
from mlxk.adapters.mlx.prompting.template_inputs import RequestedSwitches, choose_switches
from mlxk.adapters.mlx.prompting.templates import CHARACTERS_PER_TOKEN, PromptRenderer
from mlxk.domain.errors import CapabilityError, ContextLengthError, ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall
from mlxk.domain.generation.settings import Effort
from mlxk.domain.models.snapshot import is_template_file

_CHATML = """{%- for message in messages -%}
{%- if message.role == 'system' and not loop.first -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{{- '<|im_start|>' + message.role + '\n' + message.content -}}
{%- for call in message.tool_calls or [] -%}{{- call.function.name + call.function.arguments | tojson -}}{%- endfor -%}
{%- if message.role == 'tool' -%}{{- '|' + message.name + '|' + message.tool_call_id -}}{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if tools -%}{{- tools | tojson -}}{%- endif -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
{%- if enable_thinking is defined -%}{{- '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' -}}{%- endif -%}
"""
_WITH_BEGIN = "{{ bos_token }}" + _CHATML
_TOOL = json.dumps({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}})


def _tokenizer(template: str | None, begins: bool = False, ends: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world"], trainer)
    if begins:
        single = "<s> $A </s>" if ends else "<s> $A"
        tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def _asking(thinking: bool | None = None, effort: Effort | None = None) -> RenderingJob:
    return RenderingJob(RequestedSwitches(thinking, effort))


def _text(tokenizer: PreTrainedTokenizerFast, prompt: Conversation | str, thinking: bool | None = None) -> str:
    return str(tokenizer.decode(list(PromptRenderer(tokenizer).render(prompt, _asking(thinking=thinking)).tokens)))


def test_a_conversation_is_rendered_as_transformers_renders_it() -> None:
    tokenizer = _tokenizer(_WITH_BEGIN, begins=True)
    rendered = PromptRenderer(tokenizer).render(Conversation.of("hello 😀", system="be brief"))
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello 😀"}]
    assert list(rendered.tokens) == tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize("begins", [True, False])
def test_a_template_s_begin_token_stays_the_only_one(begins: bool) -> None:
    tokens = PromptRenderer(_tokenizer(_WITH_BEGIN, begins)).render(Conversation.of("hello")).tokens
    assert tokens[0] == 0
    assert tokens.count(0) == 1


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("text", ["hello", "<s>hello"])
def test_plain_text_begins_once_where_the_tokenizer_begins(text: str, ends: bool) -> None:
    assert _text(_tokenizer(None, begins=True, ends=ends), text) == "<s>hello"


def test_plain_text_gets_no_begin_token_where_the_tokenizer_gives_none() -> None:
    assert _text(_tokenizer(None), "hello") == "hello"


def test_plain_text_is_not_templated() -> None:
    assert _text(_tokenizer(_CHATML), "hello") == "hello"


def test_thinking_is_left_to_the_template_unless_asked_for() -> None:
    tokenizer, prompt = _tokenizer(_CHATML), Conversation.of("hello")
    assert _text(tokenizer, prompt).endswith("<|im_start|>assistant\n")
    assert _text(tokenizer, prompt, thinking=True).endswith("assistant\n<think>\n")
    assert _text(tokenizer, prompt, thinking=False).endswith("</think>\n\n")


@pytest.mark.parametrize(
    ("template", "read"),
    [
        ("{% if enable_thinking is defined and not enable_thinking %}{% endif %}", {"enable_thinking"}),
        ("{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ thinking }}", {"thinking"}),
        ("{% set thinking = thinking | default(true) %}{{ enable_thinking }}", {"enable_thinking", "thinking"}),
        (
            "{% generation %}{{ thinking }}{% endgeneration %}{% for m in messages %}{% break %}{% endfor %}",
            {"thinking"},
        ),
        ("{% set ns = namespace(thinking=true) %}{{ ns.thinking }} enable_thinking {{ messages[0].thinking }}", set()),
        ("{% if thinking %}", set()),
        ({"default": "{{ thinking }}", "tool_use": "{{ enable_thinking }}"}, {"enable_thinking", "thinking"}),
        (None, set()),
    ],
)
def test_a_template_is_told_about_thinking_under_the_names_that_it_reads(template: object, read: set[str]) -> None:
    for thinking in (True, False):
        chosen = choose_switches(template, RequestedSwitches(thinking))
        assert chosen.variables == dict.fromkeys(read, thinking)
        assert chosen.has_switch is bool(read)
    assert choose_switches(template, RequestedSwitches()).variables == {}


_MODES = "{% if thinking_mode == 'off' %}{% elif thinking_mode == 'auto' %}{% endif %}"
_ANY_CASE = "{% if reasoning_effort | trim | lower == 'low' %}{% endif %}"


@pytest.mark.parametrize(
    ("template", "requested", "variables", "switched"),
    [
        (_MODES, RequestedSwitches(True), {"thinking_mode": "auto"}, True),
        (_MODES, RequestedSwitches(False), {"thinking_mode": "off"}, True),
        ("{{ thinking_mode }}", RequestedSwitches(False), {}, False),
        ("{{ thinking_budget }}", RequestedSwitches(budget=100), {"thinking_budget": 100}, False),
        ("{{ thinking_budget }}", RequestedSwitches(False), {"thinking_budget": 0}, True),
        ("{{ thinking_budget }}", RequestedSwitches(True), {}, False),
        (_ANY_CASE, RequestedSwitches(effort=Effort.LOW), {"reasoning_effort": "low"}, False),
        (_ANY_CASE, RequestedSwitches(effort=Effort.HIGH), {}, False),
        (_ANY_CASE, RequestedSwitches(False), {}, False),
        (_ANY_CASE.replace("low'", "none'"), RequestedSwitches(False), {"reasoning_effort": "none"}, False),
        (
            "{{ reasoning_effort if reasoning_effort else 'xhigh' }}",
            RequestedSwitches(effort=Effort.XHIGH),
            {"reasoning_effort": "xhigh"},
            False,
        ),
    ],
)
def test_modes_budgets_and_levels_are_told_in_the_template_s_own_words(
    template: str, requested: RequestedSwitches, variables: dict[str, object], switched: bool
) -> None:
    chosen = choose_switches(template, requested)
    assert (chosen.variables, chosen.has_switch) == (variables, switched)


@pytest.mark.parametrize("effort", [Effort.LOW, Effort.MEDIUM, Effort.HIGH])
def test_a_template_is_told_the_level_of_reasoning_that_it_reads(effort: Effort) -> None:
    renderer = PromptRenderer(_tokenizer(_CHATML + "{{ reasoning_effort | default('usual') }}"))
    assert renderer.render(Conversation.of("hello"), _asking(effort=effort)).tail.endswith(effort.value)
    assert renderer.render(Conversation.of("hello")).tail.endswith("usual")
    assert not renderer.render(Conversation.of("hello"), _asking(effort=effort)).has_reasoning_switch


@pytest.mark.parametrize("template", [_CHATML.replace("enable_thinking", "reflect"), None])
@pytest.mark.parametrize("prompt", [Conversation.of("hello"), "hello", (1, 2)])
def test_an_effort_that_nobody_can_be_told_changes_nothing_and_is_said(
    template: str | None, prompt: Conversation | str | tuple[int, ...]
) -> None:
    renderer = PromptRenderer(_tokenizer(template))
    for effort in (Effort.LOW, Effort.HIGH):
        rendered = renderer.render(prompt, _asking(effort=effort))
        assert rendered.tokens == renderer.render(prompt).tokens
        assert [each.code for each in rendered.adaptations] == ["reasoning-effort-without-effect"]
    assert renderer.render(prompt, _asking(effort=Effort.NONE)).adaptations == ()


def test_what_was_rendered_says_whether_the_template_was_told() -> None:
    prompt = Conversation.of("hello")
    deaf = PromptRenderer(_tokenizer(_CHATML.replace("enable_thinking", "reflect")))
    assert not deaf.render(prompt, _asking(thinking=False)).has_reasoning_switch
    telling = PromptRenderer(_tokenizer(_CHATML.replace("enable_thinking", "thinking")))
    assert telling.render(prompt, _asking(thinking=False)).has_reasoning_switch
    assert telling.render(prompt, _asking(thinking=False)).tail.endswith("</think>\n\n")
    assert not telling.render(prompt).has_reasoning_switch


def test_mlx_lm_s_wrapper_does_not_switch_thinking_on() -> None:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    tokenizer = _tokenizer(_CHATML)
    tokenizer.add_tokens(["<think>", "</think>"])
    renderer = PromptRenderer(TokenizerWrapper(tokenizer))
    assert renderer.template == _CHATML
    assert renderer.render(Conversation.of("hello")).tail.endswith("assistant\n")
    assert renderer.render(Conversation.of("hello"), _asking(thinking=True)).tail.endswith("<think>\n")


def test_a_renderer_of_mlx_lm_s_own_is_used() -> None:
    from mlx_lm.chat_templates.deepseek_v32 import apply_chat_template
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    renderer = PromptRenderer(TokenizerWrapper(_tokenizer(None), chat_template=apply_chat_template))
    assert renderer.template is None
    assert renderer.render(Conversation.of("hello"), _asking(thinking=True)).tail.endswith("><think>")
    assert renderer.render(Conversation.of("hello"), _asking(thinking=True)).adaptations == ()
    (said,) = renderer.render(Conversation.of("hello"), _asking(effort=Effort.HIGH)).adaptations
    assert said.code == "reasoning-effort-without-effect"


def test_tools_calls_and_results_reach_the_template() -> None:
    conversation = Conversation(
        (
            Message(Role.USER, "1+2?"),
            Message(Role.ASSISTANT, "", (ToolCall("add", '{"a": 1, "b": 2}', "call_1"),)),
            Message(Role.TOOL, "3", tool_call_id="call_1"),
        ),
        (_TOOL,),
    )
    text = _text(_tokenizer(_CHATML), conversation)
    assert 'add{"a": 1, "b": 2}<|im_end|>' in text
    assert "3|add|call_1<|im_end|>" in text
    assert json.dumps([json.loads(_TOOL)]) in text


def test_the_template_s_own_words_are_in_the_refusal() -> None:
    only_users = _CHATML.replace("message.role == 'system' and not loop.first", "message.role == 'assistant'")
    messages = (Message(Role.USER, "secret"), Message(Role.ASSISTANT, "a"), Message(Role.USER, "b"))
    with pytest.raises(ValidationError, match="refuses this conversation: System role not supported") as caught:
        PromptRenderer(_tokenizer(only_users)).render(Conversation(messages))
    assert "secret" not in caught.value.message
    assert caught.value.detail["problems"][0]["param"] == "messages[1]"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[9].content }}",
        "{{ 1 + messages }}",
        "{% nonsense %}",
        "{{ 1 / 0 }}",
        "{{ 10.0 ** 999 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ '\\ud800' }}",
    ],
)
def test_a_broken_template_is_a_clear_refusal(template: str) -> None:
    with pytest.raises(ValidationError, match="chat template"):
        PromptRenderer(_tokenizer(template)).render(Conversation.of("hello"))


def test_what_went_wrong_in_a_template_is_said_without_the_prompt() -> None:
    renderer = PromptRenderer(_tokenizer("{{ ('{:' + messages[0].content + '}').format(1) }}"))
    with pytest.raises(ValidationError, match="ValueError") as caught:
        renderer.render(Conversation.of("canary"))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("tool", ["{", "[]"])
def test_a_tool_that_is_no_json_object_is_named(tool: str) -> None:
    with pytest.raises(ValidationError, match=r"tools\[1\]"):
        PromptRenderer(_tokenizer(_CHATML)).render(Conversation((Message(Role.USER, "x"),), (_TOOL, tool)))


def _calling(arguments: str) -> Conversation:
    """Return a conversation whose second call has these arguments."""
    calls = (ToolCall("f", "{}"), ToolCall("add", arguments))
    return Conversation((Message(Role.USER, "x"), Message(Role.ASSISTANT, "", calls)))


_FIELD = "messages[1].tool_calls[1].function.arguments"


@pytest.mark.parametrize("arguments", ["[1]", "null", "[" * 100_000, '{"a": "\\uD800"}', '{"\\udc00": 1}'])
def test_arguments_that_no_template_can_show_are_named(arguments: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PromptRenderer(_tokenizer(_CHATML)).render(_calling(arguments))
    assert caught.value.message.startswith(f"{_FIELD}: ")
    assert caught.value.detail["problems"][0]["param"] == _FIELD


@pytest.mark.parametrize("arguments", ['{"a": "\\ud83d\\ude00"}', r'{"a": "\\udir"}'])
def test_whole_characters_may_be_written_as_pairs(arguments: str) -> None:
    shown = json.dumps(json.loads(arguments), ensure_ascii=False)
    assert shown in _text(_tokenizer(_CHATML), _calling(arguments))


def test_arguments_that_were_cut_are_shown_as_they_are() -> None:
    rendered = _text(_tokenizer(_CHATML.replace("arguments | tojson", "arguments | string")), _calling('{"city'))
    assert 'add{"city<|im_end|>' in rendered


@pytest.mark.parametrize("show", ["arguments.items() | list", "arguments | items | list"])
def test_cut_arguments_become_an_object_where_the_template_wants_one(show: str) -> None:
    renderer = PromptRenderer(
        _tokenizer(_CHATML.replace("call.function.arguments | tojson", f"call.function.{show} | string"))
    )
    assert renderer.render(_calling('{"city": {"x": {"y": 1}}}'))
    rendered = renderer.render(_calling('{"city'))
    assert [each.code for each in rendered.adaptations] == ["incomplete-arguments"]
    assert "('arguments', '{\"city')" in rendered.tail


def test_a_template_that_is_overtaxed_by_depth_is_no_fault_of_ours() -> None:
    deep = '{"a": ' * 200 + "1" + "}" * 200
    loop = "{%- for k, w in v.items() -%}{{- show(w) if w is mapping else w -}}{%- endfor -%}"
    template = (
        "{%- macro show(v) -%}"
        + loop
        + "{%- endmacro -%}"
        + _CHATML.replace("call.function.arguments | tojson", "show(call.function.arguments)")
    )
    with pytest.raises(ValidationError, match="RecursionError"):
        PromptRenderer(_tokenizer(template)).render(_calling(deep))


def test_a_model_without_a_template_cannot_be_told_to_reason() -> None:
    with pytest.raises(CapabilityError, match="cannot be told to reason") as caught:
        PromptRenderer(_tokenizer(None)).render(Conversation.of("hello"), _asking(thinking=True))
    # Callers have different names for it.
    assert "thinking" not in caught.value.message
    assert caught.value.detail is None
    assert PromptRenderer(_tokenizer(None)).render(Conversation.of("hello"), _asking(thinking=False)).tokens


def test_without_a_template_one_user_turn_is_plain_text() -> None:
    tokenizer = _tokenizer(None, begins=True)
    assert _text(tokenizer, Conversation.of("hello")) == "<s>hello"


@pytest.mark.parametrize(
    "conversation",
    [
        Conversation.of("hello", system="be brief"),
        Conversation((Message(Role.USER, "a"), Message(Role.ASSISTANT, "b"), Message(Role.USER, "c"))),
        Conversation(()),
    ],
)
def test_without_a_template_anything_more_is_refused(conversation: Conversation) -> None:
    with pytest.raises(ValidationError, match="no chat template"):
        PromptRenderer(_tokenizer(None)).render(conversation)


def test_a_model_without_a_template_cannot_be_told_about_tools() -> None:
    with pytest.raises(CapabilityError, match="tools: the model has no chat template"):
        PromptRenderer(_tokenizer(None)).render(Conversation((Message(Role.USER, "x"),), (_TOOL,)))


def test_with_tools_the_template_for_them_is_taken_where_it_is_looked_for(tmp_path: Path) -> None:
    # transformers takes a mapping too, and writes each template into a file of its own.
    templates: Any = {"default": "no word of them", "tool_use": _CHATML}
    _tokenizer(templates).save_pretrained(tmp_path)
    assert all(is_template_file(path.relative_to(tmp_path).as_posix()) for path in tmp_path.rglob("*.jinja"))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert _text(loaded, Conversation.of("hello")) == "no word of them"
    assert json.dumps([json.loads(_TOOL)]) in _text(loaded, Conversation((Message(Role.USER, "x"),), (_TOOL,)))


def test_of_several_templates_one_must_be_the_default() -> None:
    templates: Any = {"tool_use": _CHATML, "rag": _CHATML}
    with pytest.raises(ValidationError, match="there are several, and none is the default"):
        PromptRenderer(_tokenizer(templates)).render(Conversation.of("hello"))


@pytest.mark.parametrize("prompt", ["hello " * 100_000, Conversation.of("hello " * 100_000)])
def test_an_endless_prompt_is_refused_by_what_its_beginning_has(prompt: Conversation | str) -> None:
    tokenizer = _tokenizer(_CHATML)
    with pytest.raises(ContextLengthError, match=r"context window holds 20\.") as caught:
        PromptRenderer(tokenizer, 20).render(prompt)
    counted = 20 * CHARACTERS_PER_TOKEN
    assert caught.value.detail["counted_characters"] == counted
    beginning = tokenizer.decode(tokenizer.encode(_text(tokenizer, prompt)[:counted]))
    assert caught.value.detail["counted_tokens"] == len(tokenizer.encode(beginning))


def test_a_long_prompt_of_few_tokens_is_read_to_its_end() -> None:
    tokenizer = _tokenizer(None)
    tokenizer.add_tokens(["x" * 90])
    assert len(PromptRenderer(tokenizer, 20).render("x" * 1800).tokens) == 20
