"""Prompts to token ids, with the model's own chat template.

Owns rendering, the one beginning-of-sequence token, and the refusal of texts that it would be a waste of minutes to
count. Other limits of a prompt's length are the engine's.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs

from mlxk.adapters.mlx.prompting.detokenizer import unwrapped
from mlxk.adapters.mlx.prompting.reasoning_options import SWITCHES, reasoning_options, refuse_degrees, tells_to_think
from mlxk.domain.errors import CapabilityError, ContextLengthError, ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall
from mlxk.domain.generation.request import Effort, TokenIds

TAIL_LENGTH = 256
"""How much of the end of a rendered prompt is kept, characters."""

CHARACTERS_PER_TOKEN = 16
"""Characters of a text, for each token of the context window, whose tokens are counted first; prose has about four."""

_ARGUMENTS = "messages[{}].tool_calls[{}].function.arguments"
"""Where the arguments of a call stand in a request: which message, which call."""

_SURROGATE = "\\ud"
"""How half of a character is written in JSON, in lower case."""

_TEMPLATE_FAULTS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
"""What templates raise for values they were not written for."""

_PLAIN_TEXT_HINT = "Give it one prompt as plain text; it will be continued."


class PromptTokenizer(Protocol):
    """What is used of a tokenizer: mlx-lm's wrapper, or the Hugging Face tokenizer itself."""

    bos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Return the tokens of a text."""

    def get_vocab(self) -> dict[str, int]:
        """Return the tokens, by their text."""

    def apply_chat_template(self, messages: Sequence[Any], *, tokenize: bool, **options: Any) -> Any:  # noqa: ANN401
        """Return the rendered text of a conversation."""


@attrs.frozen
class RenderedPrompt:
    """What the model reads."""

    tokens: tuple[int, ...]
    tail: str
    """The last characters of the rendered text: an answer may begin inside a block that the template opened."""
    told_to_think: bool = False
    """Whether the template was told whether the model is to reason."""


class PromptRenderer:
    """Renders the prompts of one model.

    Args:
        tokenizer: The model's tokenizer as mlx-lm or transformers loads it.
        context_length: Of the model, tokens; None when it is not known.
    """

    def __init__(self, tokenizer: PromptTokenizer, context_length: int | None = None) -> None:
        self._context_length = context_length
        # mlx-lm's wrapper would switch thinking on by itself, except where it renders with code of its own.
        self._custom = getattr(tokenizer, "_chat_template", None) is not None
        self._inner: PromptTokenizer = tokenizer if self._custom else unwrapped(tokenizer)
        begin = self._inner.bos_token_id
        self._begin = begin if begin is not None and begin in self._encode("", add_special_tokens=True) else None

    @property
    def template(self) -> str | None:
        """The text of the chat template, None when the model has none (or only code of mlx-lm's)."""
        template = getattr(self._inner, "chat_template", None)
        if isinstance(template, dict):
            return "\n".join(str(text) for text in template.values())
        return template if isinstance(template, str) else None

    def render(
        self, prompt: Conversation | str | TokenIds, thinking: bool | None = None, effort: Effort | None = None
    ) -> RenderedPrompt:
        """Turn a prompt into tokens.

        The template alone decides about the beginning-of-sequence token of a conversation. Plain text gets one if the
        tokenizer gives one to plain text, and never a second.

        Args:
            prompt: A conversation, or text or tokens that are taken as they are. A model without a template takes a
                conversation of a single user turn as that turn's plain text.
            thinking: Passed to the template under the name that it reads; None leaves it to the template.
            effort: The same.

        Raises:
            ValidationError: The template refuses the conversation (the message says why in the template's words), the
                model has no template for it, or a tool's definition or arguments are no JSON object.
            CapabilityError: See ``refuse_untold`` and ``refuse_degrees``.
            ContextLengthError: See ``refuse_endless``.
        """
        if not isinstance(prompt, Conversation):
            refuse_degrees(effort)
            return RenderedPrompt(prompt, "") if isinstance(prompt, tuple) else self._plain(prompt)
        if self.template is None and not self._custom:
            refuse_untold(prompt, thinking, effort)
            return self._plain(_single_turn(prompt))
        options = self._reasoning_options(thinking, effort)
        text = self._templated(prompt, options)
        self.refuse_endless(text)
        tokens = tuple(self._encode(text, add_special_tokens=False))
        return RenderedPrompt(tokens, text[-TAIL_LENGTH:], told_to_think=tells_to_think(options))

    def refuse_endless(self, text: str) -> None:
        """Refuse a rendered text whose beginning alone does not fit, without counting the tokens of all of it.

        Raises:
            ContextLengthError: It does not fit.
        """
        window = self._context_length
        if window is None or len(text) <= window * CHARACTERS_PER_TOKEN:
            return
        counted = window * CHARACTERS_PER_TOKEN
        tokens = len(self._encode(text[:counted], add_special_tokens=False))
        # The cut may have broken one long token into many.
        if tokens - max(map(len, self._inner.get_vocab()), default=0) > window:
            raise ContextLengthError(
                f"The first {counted} of the prompt's {len(text)} characters alone have {tokens} tokens, but the"
                f" model's context window holds {window}.",
                hint="Shorten the prompt or the conversation.",
                detail={"counted_tokens": tokens, "counted_characters": counted, "context_length": window},
            )

    def _plain(self, text: str) -> RenderedPrompt:
        self.refuse_endless(text)
        tokens = self._encode(text, add_special_tokens=False)
        if self._begin is not None and tokens[:1] != [self._begin]:
            tokens.insert(0, self._begin)
        return RenderedPrompt(tuple(tokens), text[-TAIL_LENGTH:])

    def _reasoning_options(self, thinking: bool | None, effort: Effort | None) -> dict[str, object]:
        if self._custom:
            refuse_degrees(effort)
            return {} if thinking is None else {SWITCHES[0]: thinking}
        return reasoning_options(getattr(self._inner, "chat_template", None), thinking, effort)

    def _templated(self, conversation: Conversation, options: Mapping[str, object]) -> str:
        tools = wire_tools(conversation)
        with refusals_explained(conversation):
            rendered = self._inner.apply_chat_template(
                wire_messages(conversation.messages),
                tools=tools or None,
                add_generation_prompt=True,
                tokenize=False,
                **options,
            )
            return whole_text(rendered)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=add_special_tokens))


@contextlib.contextmanager
def refusals_explained(conversation: Conversation) -> Iterator[None]:
    """Say in our words why a template does not render a conversation.

    Args:
        conversation: The one that is rendered inside of the block.

    Raises:
        ValidationError: It does not.
    """
    from jinja2 import TemplateError

    try:
        yield
    except (TemplateError, *_TEMPLATE_FAULTS) as error:
        cut = _cut_arguments(conversation)
        # A template that refuses on its own account raises nothing more special than this.
        if cut is not None and type(error) is not TemplateError:
            raise ValidationError.in_field(
                cut,
                "is no whole JSON object, and this model's chat template takes nothing else",
                hint="Complete the arguments, or leave out the call and its result.",
            ) from error
        if isinstance(error, TemplateError):
            fault = f"the model's chat template refuses this conversation: {error}"
            raise ValidationError.in_field("messages", fault) from error
        # Without its text: it is a library's about a value, and may show the value.
        fault = f"the model's chat template cannot render this conversation ({type(error).__name__})"
        raise ValidationError.in_field("messages", fault) from error


def whole_text(rendered: object) -> str:
    """Return the text of what was rendered, inside of ``refusals_explained``.

    Raises:
        UnicodeEncodeError: A template wrote half a surrogate pair, which tokenizers choke on.
    """
    text = str(rendered)
    text.encode()
    return text


def refuse_untold(conversation: Conversation, thinking: bool | None, effort: Effort | None) -> None:
    """Refuse what only a chat template could tell a model that is given none.

    Raises:
        CapabilityError: There are tools on offer, or reasoning is wanted, or a degree of it.
    """
    refuse_degrees(effort)
    if conversation.tools:
        raise CapabilityError.in_field("tools", "the model has no chat template, so it cannot be told about tools")
    if thinking:
        # Names no field: it is called otherwise in a request than on the command line.
        raise CapabilityError(
            "The model has no chat template, so it cannot be told to reason.",
            hint="Do not ask it to think first, or choose a model that reasons.",
        )


def _cut_arguments(conversation: Conversation) -> str | None:
    """Return where the first arguments stand that templates get as text; None when there are none."""
    for index, message in enumerate(wire_messages(conversation.messages)):
        for place, call in enumerate(message.get("tool_calls", ())):
            if isinstance(call["function"]["arguments"], str):
                return _ARGUMENTS.format(index, place)
    return None


def wire_tools(conversation: Conversation) -> list[dict[str, Any]]:
    """Return the tools on offer as templates expect them.

    Raises:
        ValidationError: One is not a JSON object.
    """
    return [_parsed(tool, f"tools[{index}]") for index, tool in enumerate(conversation.tools)]


def _single_turn(conversation: Conversation) -> str:
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
    """Return messages as templates expect them: OpenAI's form, with arguments as objects and results named.

    Arguments of a call that was cut when it was made are the text they are.

    Raises:
        ValidationError: Arguments are JSON, but no object that could be shown.
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
    """Return the object that a text is; the text itself where it is no JSON and that is allowed."""
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
