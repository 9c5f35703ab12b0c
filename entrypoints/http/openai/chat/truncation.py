"""The oldest turns are left out of a conversation that is longer than the context window, where a request says so."""

import itertools
from collections.abc import Callable, Sequence

from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import ContextLengthError
from mlxk.domain.generation.conversation import Adaptation
from mlxk.entrypoints.http.openai.chat.messages import MessageParam

SHORTENED = Adaptation("oldest-turns-dropped", "The oldest turns were left out, since the context window is too small.")

ROOM = 0.75
"""Share of the context window that a shortened conversation takes at most; the rest is for the answer."""

Start = Callable[[Sequence[MessageParam]], Sequence[TextStream]]


def start_shortened(messages: Sequence[MessageParam], start: Start) -> Sequence[TextStream]:
    """Start a response, with as many turns left out as is needed.

    Args:
        messages: The conversation.
        start: Starts the response to a conversation.

    Raises:
        ContextLengthError: The last turn alone is too long.
        MlxkError: As ``start`` raises it.
    """
    left = list(messages)
    while True:
        try:
            streams = start(left)
        except ContextLengthError as error:
            shorter = _without_oldest(left, _share_too_much(error))
            if len(shorter) == len(left):
                raise
            left = shorter
            continue
        if len(left) < len(messages):
            for stream in streams:
                stream.adaptations = (*stream.adaptations, SHORTENED)
        return streams


def _share_too_much(error: ContextLengthError) -> float:
    """Return the share of a conversation that is to go."""
    facts = error.detail or {}
    window = facts.get("context_length")
    tokens = facts.get("prompt_tokens") or facts.get("counted_tokens")
    if not (isinstance(window, int) and isinstance(tokens, int)):
        return 1 - ROOM
    return max(0.0, 1 - ROOM * window / tokens)


def _without_oldest(messages: list[MessageParam], share: float) -> list[MessageParam]:
    """Return a conversation without so many of its oldest turns as hold a share of its text.

    A turn begins with a message of the user. What comes before the first one, and the last turn, stay.
    """
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    dropped, wanted = 0, share * sum(map(_length, messages))
    first = starts[0] if starts else 0
    for begin, end in itertools.pairwise(starts):
        if dropped >= wanted and begin > first:
            return messages[:first] + messages[begin:]
        dropped += sum(map(_length, messages[begin:end]))
    return messages[:first] + messages[starts[-1] :] if starts else messages


def _length(message: MessageParam) -> int:
    calls = message.tool_calls or ()
    return len(message.to_message().content) + sum(len(call.function.arguments) for call in calls) + 1
