"""Make room in a context window: count a conversation, find which of its oldest turns have to go, summarize them."""

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
"""One in this many tokens of the window is left free for what follows."""

SUMMARY = 8
"""A summary has at most one in this many tokens of the window."""

SMALLEST_SUMMARY = 16
"""Tokens of the shortest summary that is of use."""

INSTRUCTION = (
    "Summarize the conversation below so that it can go on without it. Keep names, facts, numbers, decisions and open "
    "questions. Write a few sentences and nothing else.\n\n"
)

_SPEAKERS = {Role.USER: "User", Role.ASSISTANT: "Assistant", Role.TOOL: "Tool"}


@attrs.frozen
class Summary:
    """What a model wrote about some turns."""

    text: str
    cut: int
    """How many turns were too long, so that only their beginnings are in it."""


@attrs.frozen
class MakeRoom:
    """Fits conversations into the context window of a model."""

    generate: GenerateText
    tokenize: TokenizeText

    def count(
        self, model: str, conversation: Conversation, options: GenerationOptions, *, opens_answer: bool = True
    ) -> tuple[int, int | None]:
        """Return the tokens of a conversation, and those of the context window; None where that is not known.

        Raises:
            MlxkError: See ``TokenizeText``.
        """
        (found,) = self.tokenize(model, conversation, options, opens_answer=opens_answer)
        return len(found.tokens), found.context_length

    def __call__(
        self,
        model: str,
        turns: Sequence[Turn],
        conversation: Callable[[Sequence[Turn]], Conversation],
        options: GenerationOptions,
        error: ContextLengthError,
    ) -> int | None:
        """Return how many of the oldest turns have to go so that the rest fits, with room for an answer.

        Args:
            model: The model, as the user named it.
            turns: Those before the message that does not fit.
            conversation: Builds what the model gets of some of them: with the message, and what stands before them.
            options: How to generate.
            error: The refusal of the engine.

        Returns:
            At least one; None where the message does not fit alone.
        """
        window = (error.detail or {}).get("context_length")

        def left(dropped: int) -> int | None:
            """Return the tokens that are free when some turns are dropped; None when it does not fit."""
            try:
                used, whole = self.count(model, conversation(turns[dropped:]), options)
            except ContextLengthError:
                return None
            size = window if isinstance(window, int) else whole  # a limit of the user's may be below the window
            return None if size is None or used >= size else size - used - size // ROOM

        if not turns or left(len(turns)) is None:
            return None
        low, high = 1, len(turns)
        while low < high:
            middle = (low + high) // 2
            free = left(middle)
            if free is not None and free >= 0:
                high = middle
            else:
                low = middle + 1
        return low

    def summary(self, model: str, turns: Sequence[Turn], options: GenerationOptions, before: str = "") -> Summary:
        """Have the model summarize turns; what does not fit into the context window together, in parts.

        Args:
            model: The model, as the user named it.
            turns: One at least.
            options: How to generate.
            before: A summary of what was said before them; may be empty.

        Raises:
            ExecutionError: The window is too small, or the model wrote nothing.
            MlxkError: The model failed.
        """
        text, texts, cut = before, [_as_text(turn) for turn in turns], 0
        while texts:
            taken, prompt = self._portion(model, text, texts, options)
            cut += taken == 0
            text = self._summarized(model, prompt, options)
            texts = texts[max(1, taken) :]
        return Summary(text, cut)

    def _portion(self, model: str, before: str, texts: Sequence[str], options: GenerationOptions) -> tuple[int, str]:
        """Return how many texts fit into one prompt, and the prompt; 0 for the beginning of the first one."""
        opening = INSTRUCTION + (f"Summary of what was said before: {before}\n\n" if before else "")
        for count in range(len(texts), 0, -1):
            prompt = opening + "\n\n".join(texts[:count])
            if self._fits(model, prompt, options):
                return count, prompt
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
        return size is None or used + _most(size) < size

    def _summarized(self, model: str, prompt: str, options: GenerationOptions) -> str:
        """Return what the model writes."""
        conversation = Conversation.of(prompt)
        _, size = self.count(model, conversation, options)
        settings = GenerationSettings(
            temperature=options.settings.temperature,
            seed=options.settings.seed,
            max_tokens=None if size is None else _most(size),
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


def _most(size: int) -> int:
    """Return the most tokens of a summary, of a window's tokens."""
    return max(size // SUMMARY, SMALLEST_SUMMARY)
