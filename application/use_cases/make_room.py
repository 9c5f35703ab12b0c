"""Make room in a context window: count a conversation's tokens, drop its oldest turns, summarize them."""

import bisect
from collections.abc import Callable, Sequence

import attrs

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.model_tasks import TokenizeText
from mlxk.domain.errors import Advice, ContextLengthError, ExecutionError, Remedy
from mlxk.domain.generation.conversation import Conversation, Role, Turn
from mlxk.domain.generation.request import TextDelta
from mlxk.domain.generation.settings import GenerationSettings

ROOM = 4
"""A quarter of the window is left free for what follows."""

SUMMARY = 8
"""A summary has at most an eighth of the window's tokens."""

SMALLEST_SUMMARY = 16
"""Token limit of a summary in a very small window."""

INSTRUCTION = (
    "Summarize the conversation below so that it can go on without it. Keep names, facts, numbers, decisions and open "
    "questions. Write a few sentences and nothing else.\n\n"
)

_SPEAKERS = {Role.USER: "User", Role.ASSISTANT: "Assistant", Role.TOOL: "Tool"}


@attrs.frozen
class Summary:
    """A model's summary of some turns."""

    text: str
    cut: int
    """Number of turns that were too long, so that it covers only their beginnings."""


@attrs.frozen
class MakeRoom:
    """Fits conversations into the context window of a model."""

    generate: GenerateText
    tokenize: TokenizeText

    def count(
        self, model: str, conversation: Conversation, options: GenerationOptions, *, opens_answer: bool = True
    ) -> tuple[int, int | None]:
        """Return the number of tokens of a conversation, and of the context window; None when that is unknown.

        Raises:
            MlxkError: See ``TokenizeText``.
        """
        (prompt,) = self.tokenize(model, conversation, options, opens_answer=opens_answer)
        return len(prompt.tokens), prompt.context_length

    def __call__(
        self,
        model: str,
        turns: Sequence[Turn],
        conversation: Callable[[Sequence[Turn]], Conversation],
        options: GenerationOptions,
        error: ContextLengthError,
    ) -> int | None:
        """Return how many of the oldest turns to drop so that the rest fits, with room for an answer.

        Args:
            model: The model, as the user named it.
            turns: The turns before the message that does not fit.
            conversation: Builds the prompt from the turns that are kept: system prompt, turns and message.
            options: How to generate.
            error: The engine's refusal of the whole conversation.

        Returns:
            At least one; None when the message alone does not fit.
        """
        limit = (error.detail or {}).get("context_length")

        def free_tokens(dropped: int) -> int | None:
            """Return the tokens left beyond the room when some turns are dropped; None when the prompt does not fit."""
            try:
                used, window = self.count(model, conversation(turns[dropped:]), options)
            except ContextLengthError:
                return None
            size = limit if isinstance(limit, int) else window  # the user may have set a limit below the window
            return None if size is None or used >= size else size - used - size // ROOM

        def has_room(dropped: int) -> bool:
            free = free_tokens(dropped)
            return free is not None and free >= 0

        if not turns or free_tokens(len(turns)) is None:
            return None
        return 1 + bisect.bisect_left(range(1, len(turns)), True, key=has_room)

    def summary(self, model: str, turns: Sequence[Turn], options: GenerationOptions, before: str = "") -> Summary:
        """Have the model summarize turns, in as many steps as the context window requires.

        Each step includes the summary of the step before.

        Args:
            model: The model, as the user named it.
            turns: At least one.
            options: How to generate.
            before: A summary of earlier turns; may be empty.

        Raises:
            ExecutionError: The window is too small, or the model wrote nothing.
            MlxkError: The model failed.
        """
        text, texts, cut = before, [_as_text(turn) for turn in turns], 0
        while texts:
            count, prompt = self._portion(model, text, texts, options)
            cut += count == 0
            text = self._summarize(model, prompt, options)
            texts = texts[max(1, count) :]
        return Summary(text, cut)

    def _portion(self, model: str, before: str, texts: Sequence[str], options: GenerationOptions) -> tuple[int, str]:
        """Return how many texts fit into one prompt, and the prompt; 0 when it has only a beginning of the first."""
        opening = INSTRUCTION + (f"Summary of what was said before: {before}\n\n" if before else "")

        def prompt_of(count: int) -> str:
            return opening + "\n\n".join(texts[:count])

        def is_too_long(count: int) -> bool:
            return not self._fits(model, prompt_of(count), options)

        count = len(texts)
        if is_too_long(count):
            count = bisect.bisect_left(range(1, count), True, key=is_too_long)
        if count:
            return count, prompt_of(count)
        length = len(texts[0])
        while length > 1:
            length //= 2
            prompt = opening + texts[0][:length]
            if self._fits(model, prompt, options):
                return 0, prompt
        raise ExecutionError("the context window is too small for a summary", hint=Advice(Remedy.DROP_TURNS))

    def _fits(self, model: str, prompt: str, options: GenerationOptions) -> bool:
        try:
            used, size = self.count(model, Conversation.of(prompt), options)
        except ContextLengthError:
            return False
        return size is None or used + _summary_tokens(size) < size

    def _summarize(self, model: str, prompt: str, options: GenerationOptions) -> str:
        """Return the model's answer to a prompt, without reasoning."""
        conversation = Conversation.of(prompt)
        _, size = self.count(model, conversation, options)
        settings = GenerationSettings(
            temperature=options.settings.temperature,
            seed=options.settings.seed,
            max_tokens=None if size is None else _summary_tokens(size),
        )
        (stream,) = self.generate(model, [conversation], attrs.evolve(options, settings=settings, thinking=False))
        with stream:
            text = "".join(event.text for event in stream if isinstance(event, TextDelta)).strip()
        if not text:
            raise ExecutionError("the model wrote no summary", hint=Advice(Remedy.DROP_TURNS))
        return text


def _as_text(turn: Turn) -> str:
    lines = (f"{_SPEAKERS[each.role]}: {each.content}" for each in turn if each.role in _SPEAKERS and each.content)
    return "\n".join(lines)


def _summary_tokens(window: int) -> int:
    """Return the token limit of a summary, for the tokens of a context window."""
    return max(window // SUMMARY, SMALLEST_SUMMARY)
