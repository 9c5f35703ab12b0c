"""Making room in a context window: what has to go, and what a model is given to summarize. A token is a byte."""

import json
import struct
from collections.abc import Sequence

import pytest
from doubles.audio_decoder import InMemoryAudioDecoder
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.event_log import InMemoryEventLog
from doubles.image_reader import InMemoryImageReader
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.model_tokenizer import InMemoryModelTokenizer
from doubles.text_generator import InMemoryTextGenerator
from doubles.video_decoder import InMemoryVideoDecoder
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.make_room import INSTRUCTION, ROOM, SMALLEST_SUMMARY, SUMMARY, MakeRoom
from mlxk.application.use_cases.model_tasks import TokenizeText
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import Advice, ContextLengthError, ExecutionError, Remedy
from mlxk.domain.generation.conversation import Conversation, Message, Role, Turn
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.footprint import MemoryReading

NAME = "org/chat"
HEADER = json.dumps({"w": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}).encode()
FILES = {
    "chat_template.jinja": b"{{ messages }}",
    "config.json": json.dumps({"model_type": "llama"}).encode(),
    "model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(8),
    "tokenizer.json": b"{}",
}
OPTIONS = GenerationOptions()
FULL = ContextLengthError("full")


class Room:
    """The use case with everything around it in memory; ``prompts`` are those that the model was given."""

    def __init__(self, window: int, reply: Sequence[str] = ("Ann", " likes tea.")) -> None:
        self.window = window
        self.requests: list[GenerationRequest] = []
        cache = InMemoryModelCache({NAME: CachedModel(("a" * 40,))})
        workspaces = InMemoryWorkspaceStore()
        files = InMemoryModelFiles({f"/cache/{NAME}/{'a' * 40}": FILES})

        def answer(request: GenerationRequest) -> Sequence[str]:
            self.requests.append(request)
            return reply

        generate = GenerateText(
            ResolveModel(cache, workspaces, InMemoryModelSource(), default_owner="org"),
            DescribeModel(files, workspaces, InMemoryBackendRegistry({"mlx-lm": {"llama"}}), cache),
            InMemoryTextGenerator(answer),
            InMemoryImageReader(),
            InMemoryAudioDecoder({}),
            InMemoryVideoDecoder(),
            InMemoryMemoryProbe(MemoryReading(1 << 34, 1 << 34)),
            InMemoryEventLog(),
        )
        self.tokenizer = InMemoryModelTokenizer(window)
        self.make = MakeRoom(generate, TokenizeText(generate, self.tokenizer))

    @property
    def prompts(self) -> list[str]:
        conversations = [request.prompt for request in self.requests if isinstance(request.prompt, Conversation)]
        return [conversation.messages[-1].content for conversation in conversations]

    def tokens(self, conversation: Conversation) -> int:
        return self.make.count(NAME, conversation, OPTIONS)[0]


def turn(word: str, length: int) -> Turn:
    return Message(Role.USER, word.ljust(length, ".")), Message(Role.ASSISTANT, f"{word} heard")


WORDS = ("first", "second", "third", "fourth", "fifth")
TURNS = [turn(word, 100) for word in WORDS]


def with_message(kept: Sequence[Turn]) -> Conversation:
    return Conversation((*(message for each in kept for message in each), Message(Role.USER, "and now?")))


@pytest.mark.parametrize("window", range(120, 1000, 40))
def test_as_few_of_the_oldest_turns_go_as_leave_the_room_that_an_answer_needs(window: int) -> None:
    room = Room(window)
    count = room.make(NAME, TURNS, with_message, OPTIONS, FULL)
    assert count is not None

    def fits(dropped: int) -> bool:
        return Room(9999).tokens(with_message(TURNS[dropped:])) <= window - window // ROOM

    assert count == next((dropped for dropped in range(1, len(TURNS)) if fits(dropped)), len(TURNS))


def test_a_limit_below_the_window_counts_in_its_place() -> None:
    limited = ContextLengthError("full", detail={"context_length": 400})
    assert Room(4000).make(NAME, TURNS, with_message, OPTIONS, FULL) == 1
    assert Room(4000).make(NAME, TURNS, with_message, OPTIONS, limited) == Room(400).make(
        NAME, TURNS, with_message, OPTIONS, FULL
    )


def test_nothing_can_go_for_a_message_that_fills_the_window_alone() -> None:
    alone = Room(9999).tokens(with_message([]))
    assert Room(alone + 1).make(NAME, TURNS, with_message, OPTIONS, FULL) == len(TURNS)
    assert Room(alone).make(NAME, TURNS, with_message, OPTIONS, FULL) is None
    assert Room(alone - 1).make(NAME, TURNS, with_message, OPTIONS, FULL) is None
    assert Room(9999).make(NAME, [], with_message, OPTIONS, FULL) is None


def test_turns_that_fit_together_are_summarized_at_once() -> None:
    room = Room(8000)
    found = room.make.summary(NAME, TURNS, OPTIONS)
    assert (found.text, found.cut) == ("Ann likes tea.", 0)
    (prompt,) = room.prompts
    assert prompt.startswith(INSTRUCTION)
    spoken = [f"{speaker}{word}" for word in WORDS for speaker in ("User: ", "Assistant: ")]
    lines = prompt.removeprefix(INSTRUCTION).split("\n")
    assert [line.partition(".")[0].removesuffix(" heard") for line in lines if line] == spoken


def test_others_are_summarized_in_parts_each_with_the_summary_of_those_before() -> None:
    room = Room(800)
    found = room.make.summary(NAME, TURNS, OPTIONS, "They met.")
    assert (found.text, found.cut) == ("Ann likes tea.", 0)
    assert len(room.prompts) > 1
    before = ["They met.", *["Ann likes tea."] * (len(room.prompts) - 1)]
    for prompt, summary in zip(room.prompts, before, strict=True):
        assert prompt.startswith(f"{INSTRUCTION}Summary of what was said before: {summary}\n\n")
        assert room.tokens(Conversation.of(prompt)) + room.window // SUMMARY < room.window
    together = "".join(room.prompts)
    assert [together.count(f"User: {each[0].content}") for each in TURNS] == [1] * len(TURNS)


def test_the_turns_of_a_part_are_found_with_few_counts_of_tokens() -> None:
    room = Room(800)
    room.make.summary(NAME, [turn(f"turn {number}", 20) for number in range(100)], OPTIONS)
    assert len(room.tokenizer.requests) < 12 * len(room.prompts)


@pytest.mark.parametrize("position", range(3))
def test_of_a_turn_that_is_too_long_the_beginning_is_summarized_and_that_is_counted(position: int) -> None:
    turns = [turn("short", 20), turn("brief", 20), turn("terse", 20)]
    turns[position] = turn("endless", 2000)
    room = Room(800)
    assert room.make.summary(NAME, turns, OPTIONS).cut == 1
    together = "".join(room.prompts)
    assert together.count("User: endless.....") == 1
    assert "endless heard" not in together
    assert [together.count(f"{each[0].content}\n") for each in turns].count(1) == 2
    assert room.make.summary(NAME, [turn("endless", 2000)] * 2, OPTIONS).cut == 2


@pytest.mark.parametrize(("window", "most"), [(8000, 8000 // SUMMARY), (800, 100), (420, 420 // SUMMARY)])
def test_a_summary_is_a_part_of_the_window_and_no_reasoning(window: int, most: int) -> None:
    room = Room(window)
    room.make.summary(NAME, TURNS[:1], OPTIONS)
    (request,) = room.requests
    assert (request.settings.max_tokens, request.thinking) == (most, False)


@pytest.mark.parametrize(
    ("window", "reply"), [(len(INSTRUCTION) + SMALLEST_SUMMARY, ("x",)), (8000, (" ", "\n")), (8000, ())]
)
def test_a_summary_that_cannot_be_made_says_what_else_helps(window: int, reply: tuple[str, ...]) -> None:
    with pytest.raises(ExecutionError) as refusal:
        Room(window, reply).make.summary(NAME, TURNS, OPTIONS)
    assert refusal.value.hint == Advice(Remedy.DROP_TURNS)
