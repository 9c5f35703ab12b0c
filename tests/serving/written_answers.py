"""A generator whose model writes what a seed says: thoughts, text, calls well-formed and not, in pieces of any size.

What it writes goes through the same stages as an engine's answers: stop sequences, reasoning, tool calls.
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Self

from doubles.text_generator import InMemoryTextGenerator

from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import ReasoningFormat, ReasoningStyle
from mlxk.domain.formats.tool_arguments import Tools
from mlxk.domain.formats.tool_calls import ForcedCallSplitter, ToolCallFormat
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import Finished, FinishReason, GenerationEvent, GenerationRequest, Timings, Usage

STOPS = ("END", "</", "🙂é", "\n\n\n")
FRAGMENTS = (
    "word",
    " ",
    "\n",
    "\n\n\n",
    "E",
    "EN",
    "END",
    "🙂",
    "🙂é",
    "世",
    '"',
    "\\",
    "<",
    "</",
    "<think>",
    "</think>",
    "data: ",
    "<tool_call>",
    "</tool_call>",
    "<tool_call>{broken</tool_call>",
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Köln \\"END\\""}}</tool_call>',
    '<tool_call>{"name": "get_weather", "arguments": {"city": [</tool_call>',
    '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
    "<tool_call><function=get_weather><parameter=city>Köln",
    "</parameter></function></tool_call>",
    "<tool_call><function=f></function></tool_call>",
)
THINKING = ReasoningFormat(ReasoningStyle.TAGS, "<think>", "</think>")


def written(chance: random.Random, request: GenerationRequest) -> str:
    """Return what the model writes: an object where it is held to one, anything elsewhere."""
    if request.settings.grammar is not None:
        city = {"city": "".join(chance.choices(FRAGMENTS[:14], k=chance.randint(0, 4)))}
        several = "anyOf" in request.settings.grammar.text
        return json.dumps({"name": "get_weather", "arguments": city} if several else city, ensure_ascii=False)
    thought = f"<think>{''.join(chance.choices(FRAGMENTS[:14], k=3))}</think>" if chance.random() < 0.4 else ""
    return thought + "".join(chance.choices(FRAGMENTS, k=chance.randint(0, 12)))


def pieces(chance: random.Random, text: str) -> Iterator[str]:
    """Cut a text."""
    while text:
        size = chance.choice((1, 1, 2, 3, 8, 40))
        yield text[:size]
        text = text[size:]


def events(request: GenerationRequest) -> list[GenerationEvent]:
    """Return the events of an answer; the same seed gives the same."""
    chance = random.Random(request.settings.seed)
    offered = isinstance(request.prompt, Conversation) and bool(request.prompt.tools)
    tools = Tools(request.prompt.tools) if isinstance(request.prompt, Conversation) and offered else None
    calls = ToolCallFormat((), tools, lambda: f"call_{chance.random()}") if tools is not None else None
    forced = request.settings.forced_call
    splitter = ForcedCallSplitter(forced.name, f"call_{chance.random()}") if forced is not None else None
    free = request.settings.grammar is None
    parser = OutputParser(request.settings.stop, THINKING if free else None, calls if free else None, "", splitter)
    found: list[GenerationEvent] = []
    count, reason = 0, FinishReason.STOP
    for piece in pieces(chance, written(chance, request)):
        count += 1
        found += parser.feed(piece)
        if parser.stopped:
            break
        if count == request.settings.max_tokens:
            reason = FinishReason.LENGTH
            break
    found += parser.flush(complete=reason is FinishReason.STOP)
    if parser.stopped:
        reason = FinishReason.STOP
    usage = Usage(chance.randint(1, 99), count, chance.randint(0, 1))
    return [*found, Finished(reason, usage, Timings(0, 0, 0))]


class WrittenStream(TextStream):
    """An answer whose events come one by one, or several at a time."""

    def __init__(self, request: GenerationRequest) -> None:
        self.adaptations = ()
        self._left = events(request)
        last = self._left[-1]
        self.prompt_tokens = last.usage.prompt_tokens if isinstance(last, Finished) else 0
        self._chance = random.Random(request.settings.seed)

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> GenerationEvent:
        """Return the next event."""
        if not self._left:
            raise StopIteration
        return self._left.pop(0)

    def take(self) -> tuple[GenerationEvent, ...]:
        """Return what has come."""
        count = self._chance.randint(1, 4)
        taken, self._left = self._left[:count], self._left[count:]
        return tuple(taken)

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call once: everything is there."""
        callback()

    def cancel(self) -> None:
        """Do nothing: it is written already."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Do nothing."""


class WritingGenerator(InMemoryTextGenerator):
    """Answers every request with what its seed says."""

    def submit(self, request: GenerationRequest) -> TextStream:
        """Start an answer."""
        request.validate()
        return WrittenStream(request)
