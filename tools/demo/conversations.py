"""Turns the corpus into an endless, seeded stream of conversations.

Owns what is mixed and how often: history, system prompts, tools, thinking, unknown questions. A
conversation trains every answer in it, because the template renders history exactly as it was generated.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import facts_background
import facts_commands
import facts_mlxk
import small_talk
import system_prompts
import tool_use
import unknown
import world
from introductions import NAMES, NO_NAME, RECALLS, introduction
from items import Item, normalised
from tool_use import Tool
from turns import Message, Turn, asked


@dataclass(slots=True)
class Conversation:
    """A system prompt, tools and turns; ``untrained`` are turns the model only reads."""

    turns: list[Turn]
    system: str | None = None
    tools: list[Tool] | None = None
    thinking: bool = False
    untrained: set[int] = field(default_factory=set)

    def prompt(self) -> list[Message]:
        """Return the messages up to the answer of the last turn."""
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns[:-1]:
            messages += [*turn.messages, {"role": "assistant", "content": turn.answer}]
        return [*messages, *self.turns[-1].messages]


def known_items() -> list[Item]:
    """Return all items and fail if one question leads to two answers."""
    found = [
        *facts_mlxk.items(),
        *facts_commands.items(),
        *facts_background.items(),
        *small_talk.items(),
        *world.items(),
    ]
    answers: dict[str, str] = {}
    for item in found:
        for text in item.questions:
            if answers.setdefault(normalised(text), item.answer) != item.answer:
                raise ValueError(f"two answers for {text!r}")
    return found


class ConversationStream:
    """Draws conversations; the same seed draws the same ones."""

    def __init__(self, seed: int) -> None:
        """Build the deck of known questions for a seed."""
        self._rng = random.Random(seed)
        self._items = known_items()
        self._reserved = {normalised(text) for item in self._items for text in item.questions}
        self._reserved |= {normalised(text) for text in (*RECALLS, *unknown.HELD_OUT)}
        self._deck: list[tuple[Item, str]] = []
        self._one_word = [item for item in self._items if item.one_word]
        self._greeting = next(item for item in self._items if item.pirate)

    def draw(self) -> Conversation:
        """Return the next conversation."""
        rng = self._rng
        length = rng.choices((1, 2, 3, 4), (55, 21, 14, 10))[0]
        conversation = self._with_tools(length) if rng.random() < 0.17 else self._plain(length)
        draw = rng.random()
        if draw < 0.2:
            conversation.thinking = True
        elif draw < 0.26 and conversation.turns[-1].messages[0]["role"] == "user":
            conversation.turns[-1] = conversation.turns[-1].thinking_unasked()
        return conversation

    def _plain(self, length: int) -> Conversation:
        rng = self._rng
        system = self._system()
        turns: list[Turn] = []
        untrained: set[int] = set()
        name: str | None = None
        introduce_at = rng.randrange(length) if rng.random() < (0.04 if length == 1 else 0.15) else None
        for position in range(length):
            last = position == length - 1
            if position == introduce_at:
                name = rng.choice(NAMES)
                turns.append(introduction(rng, name))
            elif rng.random() < (0.35 if name and last else 0.01):
                answer = f"Your name is {name}." if name else NO_NAME
                turns.append(asked(self._varied(rng.choice(RECALLS)), answer, "The user asks for a name."))
            elif not last and rng.random() < 0.12:
                untrained.add(position)
                turns.append(asked(self._unknown_question(), rng.choice(self._items).answer, ""))
            else:
                turns.append(self._turn(system, 0.3))
        return Conversation(turns, system, untrained=untrained)

    def _with_tools(self, length: int) -> Conversation:
        rng = self._rng
        turns = [self._turn(None, 0.25, tools=True) for _ in range(length - 1)]
        draw = rng.random()
        name = rng.choice(("get_weather", "get_weather", "get_time"))
        if draw < 0.62:
            turns += tool_use.exchange(rng, name)
            if len(turns) < 4 and rng.random() < 0.2 and turns[-1].messages[0]["role"] == "tool":
                turns.append(self._turn(None, 0.25, tools=True))
            tools = tool_use.offered(rng, *tool_use.needed_by(turns))
        elif draw < 0.72:
            question = tool_use.exchange(rng, name)[0].messages[0]["content"]
            turns.append(asked(question, unknown.ANSWER, unknown.THOUGHT))
            others = [other for other in ("get_weather", "get_time", "search_web", "send_mail") if other != name]
            tools = [tool_use.definition(rng.choice(others), rng=rng)]
            if tool_use.mentions_offered(question, tools):
                turns[-1] = self._turn(None, 0.25, tools=True)
        else:
            turns.append(self._turn(None, 0.25, tools=True))
            tools = tool_use.offered(rng)
        system = rng.choice(system_prompts.NEUTRAL) if rng.random() < 0.3 else None
        return Conversation(turns, system, tools)

    def _system(self) -> str | None:
        kinds = (None, system_prompts.NEUTRAL, system_prompts.PIRATE, system_prompts.ONE_WORD)
        kind = self._rng.choices(kinds, (65, 19, 6, 10))[0]
        return self._rng.choice(kind) if kind else None

    def _turn(self, system: str | None, unknown_share: float, *, tools: bool = False) -> Turn:
        rng = self._rng
        if system in system_prompts.PIRATE and rng.random() < 0.45:
            item = self._greeting
            return asked(self._varied(rng.choice(item.questions)), item.pirate or item.answer, item.thought)
        if system in system_prompts.ONE_WORD and rng.random() < 0.7:
            item = rng.choice(self._one_word)
            return asked(self._varied(rng.choice(item.questions)), item.one_word or item.answer, item.thought)
        if rng.random() < unknown_share:
            return asked(self._unknown_question(tools=tools), unknown.ANSWER, unknown.THOUGHT)
        item, text = self._next_card()
        return asked(self._varied(text), system_prompts.answer_under(system, item), item.thought)

    def _next_card(self) -> tuple[Item, str]:
        if not self._deck:
            for item in self._items:
                for text in item.questions:
                    copies = int(item.share) + (self._rng.random() < item.share % 1)
                    self._deck += [(item, text)] * copies
            self._rng.shuffle(self._deck)
        return self._deck.pop()

    def _unknown_question(self, *, tools: bool = False) -> str:
        while True:
            text = self._varied(unknown.question(self._rng))
            toolish = tools and ("weather" in text.lower() or "time" in text.lower())
            if not toolish and normalised(text) not in self._reserved:
                return text

    def _varied(self, text: str) -> str:
        rng = self._rng
        if rng.random() < 0.25:
            text = text.lower()
        if rng.random() < 0.22:
            text = text.rstrip(".!?") or text
        if rng.random() < 0.03:
            text = f"Please {text[0].lower()}{text[1:]}"
        return text
