"""Chat templates beyond their limits: whatever they are given, or for long conversations only.

The first are not rendered again; others, and those that refuse, are.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest

from mlxk.adapters.mlx.prompting.conversation_rendering import ConversationRenderer, RenderingJob
from mlxk.adapters.mlx.prompting.template_inputs import WirePrompt, wire_prompt
from mlxk.adapters.mlx.prompting.template_sandbox import SandboxedTemplate
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import nobody_left

pytestmark = pytest.mark.mlx

_CHAT = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
_ENDLESS = "{{ 'a' * 9000000 }}{{ 'a' * 9000000 }}"
JOB = RenderingJob()


class Counted(SandboxedTemplate):
    """Counts how often a template is rendered."""

    def __init__(self, template: str) -> None:
        super().__init__(SimpleNamespace(chat_template=template), SimpleNamespace(special_tokens_map={}))
        self.count = 0

    def render(
        self, prompt: WirePrompt, variables: Mapping[str, object], is_abandoned: Callable[[], bool] = nobody_left
    ) -> str:
        self.count += 1
        return super().render(prompt, variables, is_abandoned)


def talk(messages: int) -> WirePrompt:
    roles = (Role.USER, Role.ASSISTANT)
    return wire_prompt(Conversation(tuple(Message(roles[index % 2], f"word {index}") for index in range(messages))))


def refused(renderer: ConversationRenderer, messages: int) -> str:
    with pytest.raises(ValidationError) as caught:
        renderer.render(talk(messages), JOB)
    return caught.value.message


@pytest.mark.parametrize("first", [1, 3, 9])
def test_a_template_that_never_ends_is_rendered_for_the_first_request_only(first: int) -> None:
    template = Counted(_ENDLESS)
    renderer = ConversationRenderer(template)
    messages = [refused(renderer, first)]
    count = template.count
    messages += [refused(renderer, number) for number in (1, 3, 9)]
    assert template.count == count
    assert all("does not end here" in message for message in messages)


@pytest.mark.parametrize("first", [7, 9])
def test_a_template_that_a_long_conversation_takes_beyond_its_limits_takes_short_ones(first: int) -> None:
    template = Counted(f"{{% if messages | length > 6 %}}{_ENDLESS}{{% endif %}}{_CHAT}")
    renderer = ConversationRenderer(template)
    for _ in range(2):
        count = template.count
        assert "does not end here" in refused(renderer, first)
        assert template.count > count
        assert renderer.render(talk(1), JOB).text == "<user>word 0"
        assert renderer.render(talk(3), JOB).text.endswith("<user>word 2")


def test_a_template_that_refuses_one_message_takes_others() -> None:
    template = Counted("{% for m in messages %}{{ raise_exception('bad') if '1' in m.content }}{% endfor %}" + _CHAT)
    renderer = ConversationRenderer(template)
    for _ in range(2):
        assert "refuses this conversation: bad" in refused(renderer, 3)
        assert renderer.render(talk(1), JOB).text == "<user>word 0"
