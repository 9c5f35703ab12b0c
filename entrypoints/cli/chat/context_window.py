"""Room in the context window of a chat: which of the oldest turns have to go, and a summary of them by the model."""

from collections.abc import Callable, Sequence

import attrs

from mlxk.domain.errors import ContextLengthError, ExecutionError, MlxkError, ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import GenerationSettings, TextDelta
from mlxk.entrypoints.cli.chat.session import ChatSession
from mlxk.entrypoints.cli.chat.transcript import turns
from mlxk.entrypoints.cli.render.formatting import counted

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


def usage(session: ChatSession) -> str:
    """Return how much of the context window the conversation takes, for people."""
    try:
        used, size = _tokens(session, session.conversation(), opens_answer=False)
    except MlxkError as error:
        return f"not known ({error.message})" if session.messages else "empty"
    if size is None:
        return f"{counted(used, 'token')} of a window of unknown size"
    return f"{used} of {counted(size, 'token')} ({100 * used // size} %)"


def turns_in_excess(session: ChatSession, turn: Sequence[Message], error: ContextLengthError) -> int:
    """Return how many of the oldest turns have to go so that a turn that has begun fits, with room for an answer.

    Args:
        session: The chat; its conversation does not fit.
        turn: The message to complete.
        error: The refusal of the engine.

    Raises:
        ContextLengthError: The turn does not fit alone.
    """
    groups = turns(session.messages)
    window = (error.detail or {}).get("context_length")

    def left(dropped: int) -> int | None:
        """Return the tokens that are free when some turns are dropped; None when it does not fit."""
        kept = attrs.evolve(session, messages=tuple(each for group in groups[dropped:] for each in group))
        try:
            used, whole = _tokens(session, kept.conversation(*turn))
        except ContextLengthError:
            return None
        size = window if isinstance(window, int) else whole  # a limit of the user's may be below the window
        return None if size is None or used >= size else size - used - size // ROOM

    alone = left(len(groups)) if groups else None
    if alone is None:
        raise ContextLengthError(
            error.message, hint="The message alone does not fit. Shorten it, or go on with another model: /model NAME"
        )
    low, high = 1, len(groups)
    while low < high:
        middle = (low + high) // 2
        free = left(middle)
        if free is not None and free >= 0:
            high = middle
        else:
            low = middle + 1
    return low


def drop(session: ChatSession, count: int) -> str:
    """Take the oldest turns out of what the model gets, and return a sentence about it.

    Raises:
        ValidationError: There are not so many.
    """
    groups = turns(session.messages)
    if not 1 <= count <= len(groups):
        raise ValidationError(f"the model has {counted(len(groups), 'turn')} to drop (got {count})")
    dropped = tuple(each for group in groups[:count] for each in group)
    session.earlier = (*session.earlier, *dropped)
    session.messages = session.messages[len(dropped) :]
    return f"dropped the {_oldest(count)}; the model knows {counted(len(groups) - count, 'turn')} before this one"


def summarize(session: ChatSession, count: int, note: Callable[[str], None]) -> str:
    """Have the model summarize the oldest turns, put the summary in their place and return a sentence about it.

    What does not fit into the context window together is summarized in parts.

    Args:
        session: The chat.
        count: How many turns.
        note: Gets the summary, and what could not be summarized whole.

    Raises:
        ValidationError: There are not so many.
        MlxkError: The model wrote nothing, or failed; the session is unchanged.
    """
    groups = turns(session.messages)
    if not 1 <= count <= len(groups):
        raise ValidationError(f"there are {counted(len(groups), 'turn')} to summarize (got {count})")
    texts = [_as_text(group) for group in groups[:count]]
    summary = session.summary
    while texts:
        taken, part = _portion(session, summary, texts)
        if taken == 0:
            note("[a turn is too long; only its beginning is summarized]")
        summary = _summary(session, part)
        texts = texts[max(1, taken) :]
    drop(session, count)
    session.summary = summary
    note(summary)
    return f"summarized the {_oldest(count)}, as above; the model gets the summary in place of them"


def _oldest(count: int) -> str:
    return "oldest turn" if count == 1 else f"{count} oldest turns"


def _as_text(messages: Sequence[Message]) -> str:
    lines = (f"{_SPEAKERS[each.role]}: {each.content}" for each in messages if each.role in _SPEAKERS and each.content)
    return "\n".join(lines)


def _portion(session: ChatSession, summary: str, texts: Sequence[str]) -> tuple[int, str]:
    """Return how many texts fit into one prompt, and the prompt; 0 for the beginning of the first one."""
    before = f"Summary of what was said before: {summary}\n\n" if summary else ""
    for count in range(len(texts), 0, -1):
        prompt = INSTRUCTION + before + "\n\n".join(texts[:count])
        if _fits(session, prompt):
            return count, prompt
    length = len(texts[0])
    while length > 1:
        length //= 2
        prompt = INSTRUCTION + before + texts[0][:length]
        if _fits(session, prompt):
            return 0, prompt
    raise ExecutionError("the context window is too small for a summary", hint="Drop the oldest turns: /drop")


def _fits(session: ChatSession, prompt: str) -> bool:
    try:
        used, size = _tokens(session, Conversation.of(prompt))
    except ContextLengthError:
        return False
    return size is None or used + _most(size) < size


def _most(size: int) -> int:
    return max(size // SUMMARY, SMALLEST_SUMMARY)


def _summary(session: ChatSession, prompt: str) -> str:
    """Return what the model writes."""
    conversation = Conversation.of(prompt)
    _, size = _tokens(session, conversation)
    settings = GenerationSettings(
        temperature=session.settings.temperature,
        seed=session.settings.seed,
        max_tokens=None if size is None else _most(size),
    )
    options = attrs.evolve(session.options, settings=settings, thinking=False)
    (stream,) = session.generate(session.model, [conversation], options)
    with stream:
        text = "".join(event.text for event in stream if isinstance(event, TextDelta)).strip()
    if not text:
        raise ExecutionError("the model wrote no summary", hint="Drop the oldest turns instead: /drop")
    return text


def _tokens(session: ChatSession, conversation: Conversation, *, opens_answer: bool = True) -> tuple[int, int | None]:
    """Return the tokens of a conversation, and those of the context window."""
    (found,) = session.tokenize(session.model, conversation, session.generation, opens_answer=opens_answer)
    return len(found.tokens), found.context_length
