"""Conversations that a chat template refuses or leaves a part out of: fitted to it, no more than it needs, and said."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from models.tokenizers_of_families import FAMILIES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlxk.adapters.mlx.prompting.repair_steps import joined
from mlxk.adapters.mlx.prompting.templates import PromptRenderer, RenderedPrompt
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall

pytestmark = pytest.mark.mlx

_CHAT = "{{ '<' + m.role + '>' + (m.content or '') + '</>' }}"
_OPEN = "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"


def _template(body: str) -> str:
    """Return a template that renders each message ``m`` with this."""
    return f"{{% for m in messages %}}{body}{{% endfor %}}{_OPEN}"


_PLAIN = _template(_CHAT)
_NO_SYSTEM = _template("{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + _CHAT)
_ONE_SYSTEM = _template(
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}" + _CHAT
)
_DROPS_SYSTEM = _template("{% if m.role != 'system' %}" + _CHAT + "{% endif %}")
_ALTERNATES = _template(
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    + _CHAT
)
_CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '[' + c.id + ':' + c.function.name + ':' + ARGS + ']' }}{% endfor %}"
    "{% if m.role == 'tool' %}{{ '=' + m.tool_call_id }}{% endif %}"
)
_OBJECTS = _CALLS.replace("ARGS", "(c.function.arguments.items() | list | string)")
_TEXTS = _CALLS.replace("ARGS", "c.function.arguments")


def _renderer(template: str) -> PromptRenderer:
    tokenizer = Tokenizer(
        models.BPE(
            dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
            and {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
            [],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PromptRenderer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template))


def _rendered(template: str, messages: Sequence[Message], *tools: dict[str, Any]) -> RenderedPrompt:
    offered = tuple(map(json.dumps, tools)) if "tools" in template else ()
    return _renderer(template).render(Conversation(tuple(messages), offered))


def _codes(rendered: RenderedPrompt) -> list[str]:
    return [each.code for each in rendered.adaptations]


def _system(text: str) -> Message:
    return Message(Role.SYSTEM, text)


def _user(text: str) -> Message:
    return Message(Role.USER, text)


def _answer(text: str, *calls: ToolCall) -> Message:
    return Message(Role.ASSISTANT, text, calls)


def _result(text: str, identity: str) -> Message:
    return Message(Role.TOOL, text, tool_call_id=identity)


_LOOK = ToolCall("look", '{"at": "x"}', "call_0123456789abcdef01234567")
_FEEL = ToolCall("feel", '{"at": "y"}', "other")
_TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
_LOOP = (_user("u"), _answer("", _LOOK), _result("r", _LOOK.id))


@pytest.mark.parametrize(
    ("template", "messages", "text", "codes"),
    [
        (_PLAIN, [_system("s"), _user("u")], "<system>s</><user>u</><assistant>", []),
        (_NO_SYSTEM, [_user("u")], "<user>u</><assistant>", []),
        (_NO_SYSTEM, [_system("s"), _user("u")], "<user>s\n\nu</><assistant>", ["system-in-user-message"]),
        (_NO_SYSTEM, [_system("s")], "<user>s</><assistant>", ["system-in-user-message"]),
        (_DROPS_SYSTEM, [_system("s"), _user("u")], "<user>s\n\nu</><assistant>", ["system-in-user-message"]),
        (_PLAIN, [_system("s"), _system("t"), _user("u")], "<system>s</><system>t</><user>u</><assistant>", []),
        (
            _ONE_SYSTEM,
            [_system("s"), _system("t"), _user("u")],
            "<system>s\n\nt</><user>u</><assistant>",
            ["system-messages-joined"],
        ),
        (
            _ONE_SYSTEM,
            [_system("s"), _user("u"), _system("t")],
            "<system>s</><user>u</><user>t</><assistant>",
            ["late-system-as-user"],
        ),
        (
            _ALTERNATES,
            [_system("s"), _system("t"), _user("u"), _answer("a"), _system("v"), _user("w")],
            "<user>s\n\nt\n\nu</><assistant>a</><user>v\n\nw</><assistant>",
            ["late-system-as-user", "system-in-user-message", "turns-joined"],
        ),
        (_ALTERNATES, [_user("u"), _user("v")], "<user>u\n\nv</><assistant>", ["turns-joined"]),
        (
            _ALTERNATES,
            [_user("u"), _answer("a"), _answer("b"), _user("v")],
            "<user>u</><assistant>a\n\nb</><user>v</><assistant>",
            ["turns-joined"],
        ),
        (
            _ALTERNATES,
            [_answer("a"), _user("u")],
            "<user></><assistant>a</><user>u</><assistant>",
            ["user-message-inserted"],
        ),
    ],
)
def test_messages_are_fitted_to_the_roles_that_a_template_takes(
    template: str, messages: list[Message], text: str, codes: list[str]
) -> None:
    rendered = _rendered(template, messages)
    assert (rendered.text, _codes(rendered)) == (text, codes)


def test_null_stays_null_where_the_template_tests_for_it() -> None:
    body = "{% if m.content is none %}" + _OBJECTS + "{% else %}" + _CHAT + "{% endif %}"
    rendered = _rendered(_template(body), _LOOP, _TOOL)
    assert "[call_0123456789abcdef01234567:look:[('at', 'x')]]" in rendered.text
    assert _codes(rendered) == []


@pytest.mark.parametrize(("calls", "shown"), [(_OBJECTS, "[('at', 'x')]"), (_TEXTS, '{"at": "x"}')])
def test_arguments_are_objects_or_text_as_the_template_wants(calls: str, shown: str) -> None:
    rendered = _rendered(_template(_CHAT + calls), _LOOP, _TOOL)
    assert shown in rendered.text
    assert _codes(rendered) == []


def test_ids_of_calls_have_the_length_that_a_template_demands_and_stay_together() -> None:
    demand = (
        "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('9!') }}{% endif %}{% endfor %}"
    )
    renderer = _renderer("{{ '!' if tools }}" + _template(demand + _CHAT + _TEXTS))
    tool = json.dumps(_TOOL)
    rendered = renderer.render(Conversation(_LOOP, (tool,)))
    identity = rendered.text.partition("[")[2][:9]
    assert identity.isalnum()
    assert rendered.text.endswith(f"={identity}<assistant>")
    assert _codes(rendered) == ["tool-call-ids"]
    assert [len(rendered.new_call_id()), rendered.new_call_id().isalnum()] == [9, True]
    own = ToolCall("look", "{}", rendered.new_call_id())
    again = renderer.render(Conversation((_user("u"), _answer("", own), _result("r", own.id)), (tool,)))
    assert f"[{own.id}:look" in again.text
    assert _codes(again) == []


def test_an_id_that_has_the_length_already_stays_beside_one_that_has_not() -> None:
    demand = (
        "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('9!') }}{% endif %}{% endfor %}"
    )
    short = ToolCall("feel", "{}", "abcDEF123")
    messages = (_user("u"), _answer("", _LOOK, short), _result("r", short.id))
    rendered = _rendered(_template(demand + _CHAT + _TEXTS), messages, _TOOL)
    assert "[abcDEF123:feel:" in rendered.text
    assert rendered.text.endswith("<tool>r</>=abcDEF123<assistant>")


def test_ids_of_calls_stay_as_they_are_where_nothing_is_demanded() -> None:
    rendered = _rendered(_template(_CHAT + _TEXTS), _LOOP, _TOOL)
    assert f"[{_LOOK.id}:look" in rendered.text
    assert rendered.new_call_id().startswith("call_")


def test_two_calls_of_a_message_follow_one_another_where_a_template_takes_one() -> None:
    single = "{% if m.tool_calls and m.tool_calls | length != 1 %}{{ raise_exception('one') }}{% endif %}"
    messages = (_user("u"), _answer("t", _LOOK, _FEEL), _result("r1", _FEEL.id), _result("r2", _LOOK.id))
    rendered = _rendered(_template(single + _CHAT + _TEXTS), messages, _TOOL)
    assert rendered.text == (
        f'<user>u</><assistant>t</>[{_LOOK.id}:look:{{"at": "x"}}]<tool>r2</>={_LOOK.id}'
        f'<assistant></>[{_FEEL.id}:feel:{{"at": "y"}}]<tool>r1</>={_FEEL.id}<assistant>'
    )
    assert _codes(rendered) == ["tool-calls-split"]


def test_results_without_ids_follow_their_calls_in_their_order() -> None:
    single = "{% if m.tool_calls and m.tool_calls | length != 1 %}{{ raise_exception('one') }}{% endif %}"
    names = (
        "{% for c in m.tool_calls or [] %}{{ '[' + c.function.name + ':' + c.function.arguments.at + ']' }}{% endfor %}"
    )
    results = tuple(Message(Role.TOOL, text) for text in ("r1", "r2", "r3"))
    messages = (_user("u"), _answer("t", _LOOK, _FEEL), *results)
    rendered = _rendered(_template(single + _CHAT + names), messages, _TOOL)
    assert rendered.text == (
        "<user>u</><assistant>t</>[look:x]<tool>r1</><assistant></>[feel:y]<tool>r2</><tool>r3</><assistant>"
    )


def test_calls_and_results_become_text_where_a_template_knows_neither() -> None:
    known = "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('role') }}{% endif %}"
    rendered = _rendered(_template(known + _CHAT), _LOOP)
    assert rendered.text == (
        '<user>u</><assistant>{"name": "look", "arguments": {"at": "x"}}</><user>Result of look:\n\nr</><assistant>'
    )
    assert set(_codes(rendered)) == {"tool-calls-as-text", "tool-results-as-user"}


def test_calls_are_written_between_the_tags_that_a_template_speaks_of() -> None:
    rendered = _rendered("{{ 'Call with <tool_call>.' if tools }}" + _PLAIN, _LOOP, _TOOL)
    assert '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call></><tool>r</>' in rendered.text
    assert _codes(rendered) == ["tool-calls-as-text"]


@pytest.mark.parametrize(
    ("body", "function", "codes"),
    [
        ("{{ t.function.parameters.properties.items() | list }}", {"name": "f"}, ["tool-definitions"]),
        ("{{ 'About ' + t.function.description }}", {"name": "f"}, ["tool-definitions"]),
        (
            "{% for p in t.function.parameters.properties.values() %}{{ p.type | upper + p.description }}{% endfor %}",
            {
                "name": "f",
                "parameters": {"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}]}, "b": {}}},
            },
            ["tool-parameter-types"],
        ),
        (
            "{% for p in t.function.parameters.properties.values() %}{{ p.type | upper + p.description }}{% endfor %}",
            {
                "name": "f",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "a": {"anyOf": [{"type": ["null", "string"]}]},
                        "b": {"type": 3},
                        "c": {"oneOf": 3},
                        "d": {"allOf": [{"type": {"of": "x"}}]},
                    },
                },
            },
            ["tool-parameter-types"],
        ),
        ("{{ t.name + t.description }}", {"name": "f", "description": "d"}, []),
    ],
)
def test_definitions_of_tools_get_what_a_template_cannot_do_without(
    body: str, function: dict[str, Any], codes: list[str]
) -> None:
    template = f"{{% for t in tools %}}{body}{{% endfor %}}{_PLAIN}"
    assert _codes(_rendered(template, [_user("u")], {"type": "function", "function": function})) == codes


def test_a_list_is_of_the_type_that_its_elements_show() -> None:
    shown = "{{ p.type | upper + '.' + p['items'].type }}"
    body = f"{{% for p in t.function.parameters.properties.values() %}}{shown}{{% endfor %}}"
    parameters = {"type": "object", "properties": {"a": {"items": {"properties": {}}}}}
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters}}
    rendered = _rendered(f"{{% for t in tools %}}{body}{{% endfor %}}{_PLAIN}", [_user("u")], tool)
    assert rendered.text == "ARRAY.object<user>u</><assistant>"


def test_no_tools_are_an_empty_list_where_a_template_wants_one() -> None:
    assert _rendered("{% for t in tools %}{% endfor %}" + _PLAIN, [_user("u")]).text == "<user>u</><assistant>"


def test_contents_are_parts_where_a_template_wants_parts() -> None:
    body = (
        "{{ '<' + m.role + '>' }}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    )
    rendered = _rendered(_template(body), [_system("s"), _user("u")])
    assert (rendered.text, _codes(rendered)) == ("<system>s<user>u<assistant>", [])


def test_contents_with_parts_are_joined_with_the_separator_in_their_texts() -> None:
    image, text = {"type": "image"}, {"type": "text", "text": "b"}
    assert joined(["a", [image, text]]) == [{"type": "text", "text": "a\n\n"}, image, text]
    assert joined([[image], "a", [text]]) == [image, {"type": "text", "text": "a\n\n"}, text]
    assert joined(["", [text]]) == [text]
    assert joined(["a", "", "b"]) == "a\n\nb"


def test_reasoning_reaches_the_template_under_every_usual_name() -> None:
    thought = Message(Role.ASSISTANT, "a", reasoning="why")
    for name in ("reasoning_content", "thinking"):
        rendered = _rendered(_template(_CHAT + f"{{{{ m.{name} }}}}"), [_user("u"), thought, _user("v")])
        assert (rendered.text, _codes(rendered)) == ("<user>u</><assistant>a</>why<user>v</><assistant>", [])


@pytest.mark.parametrize(
    ("body", "content", "text"),
    [(_CHAT, "Sure, the ", "Sure, the "), (_CHAT.replace("m.content", "m.content | trim"), "Sure, the ", "Sure, the")],
)
def test_a_last_message_of_the_assistant_is_continued(body: str, content: str, text: str) -> None:
    rendered = _rendered(_template(body), [_user("u"), _answer(content)])
    assert (rendered.text, _codes(rendered)) == (f"<user>u</><assistant>{text}", ["answer-continued"])


def test_a_last_message_without_text_is_answered() -> None:
    rendered = _rendered(_PLAIN, [_user("u"), _answer("")])
    assert (rendered.text, _codes(rendered)) == ("<user>u</><assistant>", [])


def test_a_template_that_cannot_be_continued_names_the_message() -> None:
    template = _template("{% if not loop.last or m.role == 'user' %}" + _CHAT + "{% endif %}")
    with pytest.raises(ValidationError, match=r"messages\[1\]: .* cannot continue") as caught:
        _rendered(template, [_user("u"), _answer("a")])
    assert caught.value.hint


def test_what_is_left_out_whatever_is_done_is_named() -> None:
    rendered = _rendered(
        _template("{% if not loop.first %}" + _CHAT + "{% endif %}"), [_user("u"), _answer("a"), _user("v")]
    )
    assert [each.sentence for each in rendered.adaptations] == [
        "The model's chat template leaves out the text, or a part, of messages[0]."
    ]


def test_the_message_that_a_template_refuses_is_named() -> None:
    template = _template("{% if m.content == 'bad' %}{{ raise_exception('bad word') }}{% endif %}" + _CHAT)
    messages = [_user("a"), _answer("b"), _user("c"), _answer("bad"), _user("d")]
    with pytest.raises(ValidationError, match=r"messages\[3\]: .* refuses this conversation: bad word") as caught:
        _rendered(template, messages)
    assert caught.value.detail["problems"][0]["param"] == "messages[3]"


def test_tools_that_a_template_refuses_are_named() -> None:
    template = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + _PLAIN
    with pytest.raises(ValidationError, match=r"tools: .* refuses these tools: no tools"):
        _rendered(template, [_user("u")], _TOOL)


def test_an_endless_template_is_refused_at_once_the_second_time() -> None:
    renderer = _renderer("{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}")
    for _ in range(3):
        with pytest.raises(ValidationError, match="does not end here: it writes more than"):
            renderer.render(Conversation((_user("u"),)))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_ordinary_conversations_are_rendered_as_transformers_renders_them(family: Any) -> None:
    tokenizer = family.tokenizer()
    messages = (_user("u"), _answer("a"), _user("v"))
    wire = [{"role": each.role.value, "content": each.content} for each in messages]
    rendered = PromptRenderer(tokenizer).render(Conversation(messages))
    assert rendered.text == tokenizer.apply_chat_template(wire, tokenize=False, add_generation_prompt=True)
    assert rendered.adaptations == ()
