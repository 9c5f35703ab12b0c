"""Prompts to token ids, with the model's own chat template and its switches for reasoning.

Ensures a single beginning-of-sequence token, and refuses texts that are certainly too long before all of their tokens
are counted, which could take minutes. A template without a reasoning switch is handled in ``engine.build_sequence``.
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs
from jinja2 import Environment, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser

from mlxk.adapters.mlx.prompting.control_tokens import TEMPLATE_ERRORS, ControlTokens, Rendering
from mlxk.adapters.mlx.prompting.detokenizer import unwrapped
from mlxk.domain.errors import CapabilityError, ContextLengthError, ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall
from mlxk.domain.generation.request import Effort, TokenIds

EFFORT = "reasoning_effort"
"""The variable for the effort: gpt-oss and others."""

SWITCHES = ("enable_thinking", "thinking")
"""The variables for the switch: Qwen, GLM, SmolLM and most others have the first, DeepSeek and Granite the second."""


def reasoning_options(template: object, thinking: bool | None, effort: Effort | None) -> dict[str, object]:
    """Return the variables to pass to a template, by the names that it reads; empty when it reads none.

    Args:
        template: Its text, or several texts by name, as tokenizers hold them; anything else has no variables.
        thinking: Whether the model reasons; None passes no variable.
        effort: How much it reasons; None passes no variable.

    Raises:
        CapabilityError: See ``refuse_effort``.
    """
    if thinking is None and effort is None:
        return {}
    texts = template.values() if isinstance(template, Mapping) else (template,)
    read = {name for text in texts if isinstance(text, str) for name in _variables(text)}
    options: dict[str, object] = {}
    if thinking is not None:
        options |= {name: thinking for name in SWITCHES if name in read}
    if effort is not None and EFFORT in read:
        options[EFFORT] = effort.value
    else:
        refuse_effort(effort)
    return options


def has_reasoning_switch(options: Mapping[str, object]) -> bool:
    """Whether the variables passed to a template switch reasoning on or off."""
    return not options.keys().isdisjoint(SWITCHES)


def refuse_effort(effort: Effort | None) -> None:
    """Refuse any effort except the default, for a model whose template has no variable for it.

    Raises:
        CapabilityError: The effort is low or high.
    """
    if effort not in {None, Effort.MEDIUM}:
        raise CapabilityError.in_field(
            EFFORT, "this model knows no degrees of reasoning", hint="Leave it out, or choose a model that knows them."
        )


class _GenerationTag(Extension):
    """The block tag that transformers adds for marking the assistant's text; it changes no text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the content of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=16)
def _variables(text: str) -> frozenset[str]:
    """Return the variables that a template reads without setting them first; none for an invalid template."""
    # Only parsed, never rendered: transformers renders, in its sandbox.
    environment = Environment(extensions=["jinja2.ext.loopcontrols", _GenerationTag])
    try:
        return frozenset(find_undeclared_variables(environment.parse(text)))
    except TemplateSyntaxError:
        return frozenset()


TAIL_LENGTH = 256
"""Characters at the end of a rendered prompt that are kept for the parser."""

CHARACTERS_PER_TOKEN = 16
"""Characters for each token of the context window that are tokenized first; prose has about four a token."""

_ARGUMENTS = "messages[{}].tool_calls[{}].function.arguments"
"""Path of a call's arguments in a request, by message and call."""

_SURROGATE = "\\ud"
"""Beginning of the JSON escape of a surrogate, in lower case."""

_PLAIN_TEXT_HINT = "Give it one prompt as plain text; it will be continued."


class PromptTokenizer(Protocol):
    """The interface used of a tokenizer: mlx-lm's wrapper, or the Hugging Face tokenizer itself."""

    bos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Return the tokens of a text."""

    def get_vocab(self) -> dict[str, int]:
        """Return the tokens, by their text."""

    def apply_chat_template(self, messages: Sequence[Any], *, tokenize: bool, **options: Any) -> Any:  # noqa: ANN401
        """Return the rendered text of a conversation."""


@attrs.frozen
class RenderedPrompt:
    """A rendered and tokenized prompt."""

    tokens: tuple[int, ...]
    tail: str
    """The last characters of the rendered text: the generated text may begin inside a block that they open."""
    has_reasoning_switch: bool = False
    """Whether the template was given a variable that switches reasoning on or off."""
    text: str = ""
    """The rendered text; empty for a prompt given as tokens."""


class PromptRenderer:
    """Renders the prompts of one model.

    Args:
        tokenizer: The model's tokenizer as mlx-lm or transformers loads it.
        context_length: Of the model, tokens; None when unknown.
    """

    def __init__(self, tokenizer: PromptTokenizer, context_length: int | None = None) -> None:
        self._context_length = context_length
        # mlx-lm's wrapper would switch reasoning on, except for models that it renders with code of its own.
        self._custom = getattr(tokenizer, "_chat_template", None) is not None
        self._inner: PromptTokenizer = tokenizer if self._custom else unwrapped(tokenizer)
        begin = self._inner.bos_token_id
        self._begin = begin if begin is not None and begin in self._encode("", add_special_tokens=True) else None

    @functools.cached_property
    def control(self) -> ControlTokens:
        """The control tokens."""
        return ControlTokens(self._inner, self.template)

    @property
    def template(self) -> str | None:
        """The text of the chat template; None without one, or when mlx-lm has code instead."""
        template = getattr(self._inner, "chat_template", None)
        if isinstance(template, dict):
            return "\n".join(str(text) for text in template.values())
        return template if isinstance(template, str) else None

    def render(
        self,
        prompt: Conversation | str | TokenIds,
        thinking: bool | None = None,
        effort: Effort | None = None,
        *,
        parse_special: bool = False,
        opens_answer: bool = True,
    ) -> RenderedPrompt:
        """Render and tokenize a prompt.

        The template alone adds the beginning-of-sequence token of a conversation. Plain text gets one if the tokenizer
        adds one to plain text, and never a second.

        Args:
            prompt: A conversation, or text or tokens that are used unchanged. Without a template, a conversation of a
                single user message is plain text.
            thinking: Passed to the template under the name that it reads; None keeps the template's default.
            effort: Passed likewise.
            parse_special: See ``GenerationRequest``.
            opens_answer: Whether a conversation's prompt ends with the beginning of the assistant's message.

        Raises:
            ValidationError: The template refuses the conversation (the message quotes its reason), the model has no
                template for it, or a tool's definition or arguments are no JSON object.
            CapabilityError: See ``require_no_template_options`` and ``refuse_effort``.
            ContextLengthError: See ``require_plausible_length``.
        """
        if not isinstance(prompt, Conversation):
            refuse_effort(effort)
            return RenderedPrompt(prompt, "") if isinstance(prompt, tuple) else self._plain(prompt)
        if self.template is None and not self._custom:
            require_no_template_options(prompt, thinking, effort)
            return self._plain(_single_message(prompt))
        options = self._reasoning_options(thinking, effort)
        rendering = self._templated(prompt, {**options, "add_generation_prompt": opens_answer}, parse_special)
        text = rendering.text
        self.require_plausible_length(text)
        tokens = self.encode(rendering)
        return RenderedPrompt(tuple(tokens), text[-TAIL_LENGTH:], has_reasoning_switch(options), text)

    def encode(self, rendering: Rendering, *, begins: bool = False) -> list[int]:
        """Return the tokens of a rendered text; with ``begins`` after a beginning-of-sequence token, never two."""
        if rendering.spelled:
            tokens = self.control.encode(rendering)
        else:
            tokens = self._encode(rendering.text, add_special_tokens=False)
        if begins and self._begin is not None and tokens[:1] != [self._begin]:
            tokens.insert(0, self._begin)
        return tokens

    def require_plausible_length(self, text: str) -> None:
        """Refuse a rendered text whose beginning alone exceeds the context window, without tokenizing all of it.

        Raises:
            ContextLengthError: It exceeds it.
        """
        window = self._context_length
        if window is None or len(text) <= window * CHARACTERS_PER_TOKEN:
            return
        counted = window * CHARACTERS_PER_TOKEN
        tokens = len(self._encode(text[:counted], add_special_tokens=False))
        # The cut may have split one long token into many.
        if tokens - max(map(len, self._inner.get_vocab()), default=0) > window:
            raise ContextLengthError(
                f"The first {counted} of the prompt's {len(text)} characters alone have {tokens} tokens, but the"
                f" model's context window holds {window}.",
                hint="Shorten the prompt or the conversation.",
                detail={"counted_tokens": tokens, "counted_characters": counted, "context_length": window},
            )

    def _plain(self, text: str) -> RenderedPrompt:
        self.require_plausible_length(text)
        tokens = self.encode(Rendering(text), begins=True)
        return RenderedPrompt(tuple(tokens), text[-TAIL_LENGTH:], text=text)

    def _reasoning_options(self, thinking: bool | None, effort: Effort | None) -> dict[str, object]:
        if self._custom:
            refuse_effort(effort)
            return {} if thinking is None else {SWITCHES[0]: thinking}
        return reasoning_options(getattr(self._inner, "chat_template", None), thinking, effort)

    def _templated(self, conversation: Conversation, options: Mapping[str, object], parse_special: bool) -> Rendering:
        def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
            apply = self._inner.apply_chat_template
            return valid_text(apply(messages, tools=tools or None, tokenize=False, **options))

        tools = wire_tools(conversation)
        with translated_errors(conversation):
            messages = wire_messages(conversation.messages)
            if parse_special:
                return Rendering(render(messages, tools))
            return self.control.render(messages, tools, render)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=add_special_tokens))


@contextlib.contextmanager
def translated_errors(conversation: Conversation) -> Iterator[None]:
    """Translate the errors of rendering a conversation inside the block.

    Args:
        conversation: The rendered conversation.

    Raises:
        ValidationError: The template refuses or cannot render it.
    """
    try:
        yield
    except (TemplateError, *TEMPLATE_ERRORS) as error:
        incomplete = _incomplete_arguments(conversation)
        # A template that refuses a conversation raises exactly this class, no subclass.
        if incomplete is not None and type(error) is not TemplateError:
            raise ValidationError.in_field(
                incomplete,
                "is no whole JSON object, and this model's chat template takes nothing else",
                hint="Complete the arguments, or leave out the call and its result.",
            ) from error
        if isinstance(error, TemplateError):
            fault = f"the model's chat template refuses this conversation: {error}"
            raise ValidationError.in_field("messages", fault) from error
        # Without its message, which may quote the value.
        fault = f"the model's chat template cannot render this conversation ({type(error).__name__})"
        raise ValidationError.in_field("messages", fault) from error


def valid_text(rendered: object) -> str:
    """Return a rendered text, inside ``translated_errors``.

    Raises:
        UnicodeEncodeError: It has an unpaired surrogate, which tokenizers cannot encode.
    """
    text = str(rendered)
    text.encode()
    return text


def require_no_template_options(conversation: Conversation, thinking: bool | None, effort: Effort | None) -> None:
    """Refuse tools and reasoning options for a model without a chat template.

    Raises:
        CapabilityError: There are tools, reasoning is switched on, or an effort is set.
    """
    refuse_effort(effort)
    if conversation.tools:
        raise CapabilityError.in_field("tools", "the model has no chat template, so it cannot be told about tools")
    if thinking:
        # Names no field: a request and the command line have different names for it.
        raise CapabilityError(
            "The model has no chat template, so it cannot be told to reason.",
            hint="Do not ask it to think first, or choose a model that reasons.",
        )


def _incomplete_arguments(conversation: Conversation) -> str | None:
    """Return the path of the first arguments that are no JSON object; None when there are none."""
    for index, message in enumerate(wire_messages(conversation.messages)):
        for place, call in enumerate(message.get("tool_calls", ())):
            if isinstance(call["function"]["arguments"], str):
                return _ARGUMENTS.format(index, place)
    return None


def wire_tools(conversation: Conversation) -> list[dict[str, Any]]:
    """Return the tools in the form that templates expect.

    Raises:
        ValidationError: One is not a JSON object.
    """
    return [_parsed(tool, f"tools[{index}]") for index, tool in enumerate(conversation.tools)]


def _single_message(conversation: Conversation) -> str:
    roles = [message.role for message in conversation.messages]
    if roles == [Role.USER]:
        return conversation.messages[0].content
    raise ValidationError.in_field(
        "messages",
        "the model has no chat template, so it takes a single user turn"
        f" (got {', '.join(role.value for role in roles) or 'none'})",
        hint=_PLAIN_TEXT_HINT,
    )


def wire_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages in the form that templates expect: OpenAI's, with arguments as objects and results named.

    Incomplete arguments remain text.

    Raises:
        ValidationError: Arguments are JSON, but no valid object.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls if call.id}
    return [_wire_message(message, index, names) for index, message in enumerate(messages)]


def _wire_message(message: Message, index: int, names: dict[str, str]) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        wire["tool_calls"] = [_wire_call(call, _ARGUMENTS.format(index, place)) for place, call in calls]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
        if message.tool_call_id in names:
            wire["name"] = names[message.tool_call_id]
    return wire


def _wire_call(call: ToolCall, place: str) -> dict[str, object]:
    arguments = _parsed(call.arguments, place, or_text=True) if call.arguments.strip() else {}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _parsed(text: str, place: str, *, or_text: bool = False) -> Any:  # noqa: ANN401 - what JSON holds
    """Return the JSON object in a text; with ``or_text`` the text itself where it is no JSON."""
    try:
        value = json.loads(text)
        if _SURROGATE in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValidationError.in_field(place, "is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValidationError.in_field(place, "must not contain half a surrogate pair") from error
    except ValueError as error:
        if or_text:
            return text
        raise ValidationError.in_field(place, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValidationError.in_field(place, "must be a JSON object")
    return value
