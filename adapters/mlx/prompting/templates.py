"""Renders prompts to token ids with the model's own chat template.

Ensures a single beginning-of-sequence token, and refuses texts that are certainly too long without tokenizing all of
them, which could take minutes. ``conversation_rendering`` renders conversations to text; ``engine.build_sequence``
handles templates without a reasoning switch.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs

from mlxk.adapters.mlx.prompting.control_tokens import SPELLED_AS_TEXT, ControlTokens, Rendering
from mlxk.adapters.mlx.prompting.conversation_rendering import ConversationRenderer, RenderedConversation, RenderingJob
from mlxk.adapters.mlx.prompting.detokenizer import unwrapped
from mlxk.adapters.mlx.prompting.repair_steps import short_id
from mlxk.adapters.mlx.prompting.template_inputs import NO_EFFORT, SWITCHES, WirePrompt, wire_prompt
from mlxk.adapters.mlx.prompting.template_sandbox import LibraryTemplate, SandboxedTemplate
from mlxk.domain.errors import CapabilityError, ContextLengthError, MlxkError, ValidationError
from mlxk.domain.formats.reasoning import CALL_ENDS, ReasoningFormat, detect_reasoning, turn_end
from mlxk.domain.formats.tool_calls import new_call_id
from mlxk.domain.generation.conversation import Adaptation, Conversation, Message, Role
from mlxk.domain.generation.request import TokenIds
from mlxk.domain.generation.settings import Effort

TAIL_LENGTH = 256
"""Characters at the end of a rendered prompt that the parser of the answer gets."""

CHARACTERS_PER_TOKEN = 16
"""Of a longer text, so many characters for each token of the context window are tokenized; prose has about four."""

_PLAIN_TEXT_HINT = "Give it one prompt as plain text; it will be continued."


_PLAIN_RENDERERS = ("transformers.tokenization_utils_base", "transformers.processing_utils")
"""Modules whose ``apply_chat_template`` only renders the template."""


class PromptTokenizer(Protocol):
    """The interface used of a tokenizer: mlx-lm's wrapper, or the Hugging Face tokenizer itself."""

    bos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Return the tokens of a text."""

    def get_vocab(self) -> dict[str, int]:
        """Return the tokens, by their text."""


@attrs.frozen
class RenderedPrompt:
    """A rendered and tokenized prompt."""

    tokens: tuple[int, ...]
    tail: str
    """The last characters of the rendered text: the generated text may begin inside a block that they open."""
    has_reasoning_switch: bool = False
    """Whether the template got a variable that switches reasoning on or off."""
    adaptations: tuple[Adaptation, ...] = ()
    """Changes made to fit the conversation to the template."""
    new_call_id: Callable[[], str] = new_call_id
    """Returns a new tool call id, in a form that the template accepts in later messages."""
    text: str = ""
    """The rendered text; empty for a prompt given as tokens."""


@attrs.frozen
class RenderedText:
    """A rendered conversation, before it is tokenized."""

    rendering: Rendering
    has_reasoning_switch: bool = False
    adaptations: tuple[Adaptation, ...] = ()
    new_call_id: Callable[[], str] = new_call_id

    def with_tokens(self, tokens: Sequence[int]) -> RenderedPrompt:
        """Return the tokenized prompt."""
        text = self.rendering.text
        return RenderedPrompt(
            tuple(tokens), text[-TAIL_LENGTH:], self.has_reasoning_switch, self.changes, self.new_call_id, text
        )

    @property
    def changes(self) -> tuple[Adaptation, ...]:
        """The adaptations, including one for spelled control tokens where there are any."""
        return (*self.adaptations, *((SPELLED_AS_TEXT,) if self.rendering.spelled else ()))


_DEFAULT_JOB = RenderingJob()

_QUESTION = "mlxk: a question"
_ANSWER = "mlxk: an answer"
_TURNS = Conversation((Message(Role.USER, _QUESTION), Message(Role.ASSISTANT, _ANSWER), Message(Role.USER, "Hi")))
"""Rendered to find the tokens with which the template ends a question and an answer."""


class PromptRenderer:
    """Renders the prompts of one model.

    Args:
        tokenizer: The model's tokenizer as mlx-lm or transformers loads it.
        context_length: Context length of the model, tokens; None when unknown.
    """

    def __init__(self, tokenizer: PromptTokenizer, context_length: int | None = None) -> None:
        self._context_length = context_length
        # mlx-lm's wrapper would switch reasoning on, so it is bypassed, except for models that it renders by code.
        self._custom = getattr(tokenizer, "_chat_template", None) is not None
        self._inner: PromptTokenizer = tokenizer if self._custom else unwrapped(tokenizer)
        self._conversations = conversation_renderer(self._inner, custom=self._custom)
        self._others: dict[int, ConversationRenderer] = {}
        bos = self._inner.bos_token_id
        self._bos = bos if bos is not None and bos in self._encode("", add_special_tokens=True) else None

    @functools.cached_property
    def control(self) -> ControlTokens:
        """The control tokens."""
        return ControlTokens(self._inner, self.template, self.reasoning)

    @functools.cached_property
    def reasoning(self) -> ReasoningFormat | None:
        """The markup of the model's reasoning; None when it has none."""
        return detect_reasoning(self.template, self._inner.get_vocab())

    @property
    def template(self) -> str | None:
        """The text of the chat template; None without one, or where mlx-lm has code instead."""
        template = getattr(self._inner, "chat_template", None)
        if isinstance(template, dict):
            return "\n".join(str(text) for text in template.values())
        return template if isinstance(template, str) else None

    def render(self, prompt: Conversation | str | TokenIds, job: RenderingJob = _DEFAULT_JOB) -> RenderedPrompt:
        """Render and tokenize a prompt.

        Only the template adds the beginning-of-sequence token of a conversation. Plain text gets one if the tokenizer
        adds one to plain text, and never a second.

        Args:
            prompt: A conversation; or text or tokens, which are used unchanged. Without a template, a conversation of a
                single user message is used as plain text.
            job: How to render.

        Raises:
            ValidationError: The template refuses the conversation (the message quotes its reason), the model has no
                template for it, or a tool's definition or arguments are not a JSON object.
            CapabilityError: See ``require_no_template_options``.
            ContextLengthError: See ``require_plausible_length``.
            InterruptedRunError: The client has gone.
        """
        ineffective = (NO_EFFORT,) if job.switches.effort not in {None, Effort.NONE} else ()
        if isinstance(prompt, tuple):
            return RenderedPrompt(prompt, "", adaptations=ineffective)
        if isinstance(prompt, str):
            return attrs.evolve(self._plain(prompt), adaptations=ineffective)
        if self.template is None and not self._custom:
            require_no_template_options(prompt, job.switches.thinking)
            return attrs.evolve(self._plain(_single_message(prompt)), adaptations=ineffective)
        rendered = self.rendered(prompt, wire_prompt(prompt), self._conversations, job)
        self.require_plausible_length(rendered.rendering.text)
        return rendered.with_tokens(self.encode(rendered.rendering))

    def rendered(
        self,
        conversation: Conversation,
        prompt: WirePrompt,
        renderer: ConversationRenderer,
        job: RenderingJob,
        formatted: Callable[[WirePrompt], WirePrompt] = lambda prompt: prompt,
    ) -> RenderedText:
        """Render a conversation, and locate the control tokens that its contents spell.

        Args:
            conversation: The conversation.
            prompt: The same, as the template expects it.
            renderer: Has the template.
            job: How to render.
            formatted: Converts the conversation to the form of a family of models before it is rendered.

        Raises:
            ValidationError, InterruptedRunError: See ``render``.
        """
        results: list[RenderedConversation] = []

        def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
            results.append(renderer.render(formatted(WirePrompt(tuple(messages), tuple(tools))), job))
            return results[-1].text

        tools = [dict(tool) for tool in prompt.tools]
        if job.parse_special:
            rendering = Rendering(render(list(prompt.messages), tools))
        else:
            rendering = self.control.render(list(prompt.messages), tools, render)
        return RenderedText(rendering, results[0].has_switch, results[0].adaptations, call_ids(conversation, renderer))

    def encode(self, rendering: Rendering, *, begins: bool = False) -> list[int]:
        """Return the tokens of a rendered text; with ``begins``, one beginning-of-sequence token comes first."""
        if rendering.spelled:
            tokens = self.control.encode(rendering)
        else:
            tokens = self._encode(rendering.text, add_special_tokens=False)
        if begins and self._bos is not None and tokens[:1] != [self._bos]:
            tokens.insert(0, self._bos)
        return tokens

    @functools.cached_property
    def turn_ends(self) -> frozenset[int]:
        """The tokens with which the chat template ends the assistant's turn; the model's config is not read."""
        reasoning, added = self.reasoning, self._added
        texts = [text for text in CALL_ENDS if text in added]
        if reasoning is not None and reasoning.turn_ends:
            texts += [text for text in reasoning.turn_ends if text in added]
        elif end := turn_end(reasoning, self._turns.partition(_ANSWER)[2], added):
            texts.append(end)
        return frozenset(added[text] for text in texts)

    @functools.cached_property
    def message_ends(self) -> frozenset[int]:
        """The tokens with which the template ends, or else begins, a message of any role."""
        end = turn_end(None, self._turns.partition(_QUESTION)[2], self._added)
        return self.turn_ends.union([] if end is None else [self._added[end]])

    @functools.cached_property
    def _added(self) -> dict[str, int]:
        """The ids of added tokens by their text."""
        added: dict[str, int] = getattr(self._inner, "get_added_vocab", dict)()
        return added

    @functools.cached_property
    def _turns(self) -> str:
        """The rendered text of ``_TURNS``; empty without a template, or where it refuses them."""
        if self.template is not None:
            job = RenderingJob(parse_special=True)
            with contextlib.suppress(MlxkError):
                return self.rendered(_TURNS, wire_prompt(_TURNS), self._conversations, job).rendering.text
        return ""

    @property
    def conversations(self) -> ConversationRenderer:
        """The renderer with the tokenizer's template."""
        return self._conversations

    def conversations_of(self, holder: Any) -> ConversationRenderer:  # noqa: ANN401 - untyped
        """Return the renderer with the template of a processor, or of another tokenizer of this model; cached."""
        if id(holder) not in self._others:
            self._others[id(holder)] = conversation_renderer(holder)
        return self._others[id(holder)]

    def require_plausible_length(self, text: str) -> None:
        """Refuse a rendered text whose beginning alone exceeds the context window, without tokenizing all of it.

        Raises:
            ContextLengthError: The beginning has more tokens than the context window.
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

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=add_special_tokens))


def conversation_renderer(holder: Any, *, custom: bool = False) -> ConversationRenderer:  # noqa: ANN401
    """Return the renderer of a model's conversations.

    Args:
        holder: The tokenizer or processor that has the template.
        custom: Whether mlx-lm has code in place of a template.
    """
    if custom:
        # mlx-lm's code takes the first switch; other variables cannot be found in it.
        return ConversationRenderer(LibraryTemplate(holder), unnamed_switch="enable_thinking")
    home = getattr(getattr(type(holder), "apply_chat_template", None), "__module__", "")
    if home in _PLAIN_RENDERERS:
        return ConversationRenderer(SandboxedTemplate(holder, getattr(holder, "tokenizer", holder)))
    return ConversationRenderer(LibraryTemplate(holder), unnamed_switch=_switch_in(holder))


def _switch_in(holder: Any) -> str | None:  # noqa: ANN401
    """Return the reasoning switch that is a parameter of a library's own renderer; None without one."""
    parameters = inspect.signature(holder.apply_chat_template).parameters
    return next((name for name in SWITCHES if name in parameters), None)


def call_ids(conversation: Conversation, renderer: ConversationRenderer) -> Callable[[], str]:
    """Return a function that returns new tool call ids in a form that the template accepts."""
    return _short_call_id if conversation.tools and renderer.wants_short_ids else new_call_id


def _short_call_id() -> str:
    return short_id(new_call_id())


def require_no_template_options(conversation: Conversation, thinking: bool | None) -> None:
    """Refuse tools and reasoning for a model without a chat template.

    Raises:
        CapabilityError: The conversation has tools, or reasoning is switched on.
    """
    if conversation.tools:
        raise CapabilityError.in_field("tools", "the model has no chat template, so it cannot be told about tools")
    if thinking:
        # Without a field name, since APIs and the command line name it differently.
        raise CapabilityError(
            "The model has no chat template, so it cannot be told to reason.",
            hint="Do not ask it to think first, or choose a model that reasons.",
        )


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
