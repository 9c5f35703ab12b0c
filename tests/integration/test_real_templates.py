"""Real chat templates, where such data lies beside the repository: rendered as transformers renders them.

The templates are their makers' and not part of the project: a folder ``shared/data/formats`` next to the repository, or
the one that MLXK_TEST_FORMATS names, holds them. Where the texts differ, the adaptations say why, except where a
template leaves out a part of what transformers gives it and takes it in another form.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlxk.adapters.mlx.prompting.templates import PromptRenderer
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall

FOLDER = Path(os.environ.get("MLXK_TEST_FORMATS") or Path(__file__).parents[3] / "shared" / "data" / "formats")
TEMPLATES = sorted((FOLDER / "templates").glob("*.jinja")) if FOLDER.is_dir() else []

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(not TEMPLATES, reason=f"no real templates in {FOLDER}; see MLXK_TEST_FORMATS"),
]

_SPECIAL = re.compile(r"<\|[^|<>\s'\"{}]{1,40}\|>|</?s>|<bos>|<eos>")
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city"}}},
    },
}
_SYSTEM = Message(Role.SYSTEM, "You are brief.")
_ASK = Message(Role.USER, "What is the weather in Paris?")
_CALL = Message(Role.ASSISTANT, "", (ToolCall("get_weather", '{"city": "Paris"}', "call12345"),))
_THOUGHT_CALL = Message(Role.ASSISTANT, "", _CALL.tool_calls, reasoning="I must call the tool.")
_RESULT = Message(Role.TOOL, '{"temp": 21}', tool_call_id="call12345")
_HELLO = (Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Hello!"))

CONVERSATIONS = {
    "system": ((_SYSTEM, _ASK), False),
    "user": ((_ASK,), False),
    "turns": ((_SYSTEM, *_HELLO, _ASK), False),
    "reasoning": ((_HELLO[0], Message(Role.ASSISTANT, "Hello!", reasoning="A greeting."), _ASK), False),
    "reasoning and a call": ((_ASK, _THOUGHT_CALL, _RESULT), True),
    "tools": ((_SYSTEM, _ASK), True),
    "a call": ((_SYSTEM, _ASK, _CALL, _RESULT, Message(Role.ASSISTANT, "21 degrees."), _ASK), True),
}

DIFFERENT = {
    # The template wants parts, and renders nothing of a text.
    "hfjs__meta-llama_Llama-Guard-3-11B-Vision": {"user", "reasoning"},
    # The template renders a call only where the content is null, which transformers leaves out.
    "llamacpp__deepseek-ai-DeepSeek-R1-Distill-Llama-8B": {"reasoning and a call", "a call"},
}
"""Texts that differ, since the template takes more of the conversation in another form; by template."""


def _tokenizer(template: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = sorted({"<s>", "</s>", *_SPECIAL.findall(template)})
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, bos_token="<s>", eos_token="</s>"
    )


def _wire(message: Message) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.reasoning:
        made["reasoning_content"] = message.reasoning
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        made |= {"tool_call_id": message.tool_call_id, "name": "get_weather"}
    return made


@pytest.mark.parametrize("path", TEMPLATES, ids=[path.stem for path in TEMPLATES])
def test_a_real_template_renders_as_in_transformers_or_it_is_said_why_not(path: Path) -> None:
    tokenizer = _tokenizer(path.read_text(encoding="utf-8"))
    renderer = PromptRenderer(tokenizer)
    for name, (messages, with_tools) in CONVERSATIONS.items():
        tools = [_TOOL] if with_tools else []
        try:
            expected = tokenizer.apply_chat_template(
                [_wire(each) for each in messages], tools=tools or None, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # noqa: BLE001 - a template may raise whatever Python can
            expected = None
        try:
            rendered = renderer.render(Conversation(messages, tuple(map(json.dumps, tools))))
        except ValidationError as error:
            assert expected is None, (name, error.message)
            continue
        if name in DIFFERENT.get(path.stem, ()):
            assert rendered.text != expected
        elif not rendered.adaptations:
            assert expected in {None, rendered.text}, name
