"""Generating text about images: chunks, facts, isolation, refusals, and what is not done before it has to be."""

import datetime
import hashlib
import json
import re
import struct
from typing import Any

import attrs
import pytest
from doubles.audio_decoder import InMemoryAudioDecoder
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.event_log import InMemoryEventLog
from doubles.image_reader import InMemoryImageReader
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.text_generator import InMemoryTextGenerator
from doubles.video_decoder import InMemoryVideoDecoder
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.generation_input import GenerationOptions, ImageSource, IncomingConversation, IncomingMessage
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.text_streams import ImageTableDelta
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import (
    CapabilityError,
    InsufficientMemoryError,
    ParameterNotSupportedError,
    ValidationError,
)
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.grammar import Grammar
from mlxk.domain.generation.media import MAX_IMAGE_BYTES, DecodedImage, EncodedImage, ImageFormat
from mlxk.domain.generation.media_facts import ImageFacts
from mlxk.domain.generation.request import GenerationRequest, TextDelta
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.generation.video import EncodedVideo, VideoSampling
from mlxk.domain.models.footprint import MemoryReading

COMMIT = "a" * 40
HEADER = json.dumps({"__metadata__": {"format": "mlx"}, "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}})
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER.encode() + bytes(16)
TEMPLATE = b'{"chat_template": "{{ messages }}"}'
COMMON = {"model.safetensors": WEIGHTS, "tokenizer.json": b"{}", "tokenizer_config.json": TEMPLATE}
VISION = {
    **COMMON,
    "config.json": b'{"model_type": "qwen2_vl", "vision_config": {"depth": 1}}',
    "preprocessor_config.json": b"{}",
}
TEXT = {**COMMON, "config.json": b'{"model_type": "llama"}'}
BOTH = {"mlx-vlm": {"qwen2_vl", "llama"}, "mlx-lm": {"qwen2_vl", "llama"}}
TAKEN = datetime.datetime(2023, 12, 6, 12, 19)


def image(name: str) -> EncodedImage:
    return EncodedImage(name.encode(), ImageFormat.JPEG, hashlib.sha256(name.encode()).hexdigest(), f"{name}.jpg")


FACTS = {image(name).digest: ImageFacts(TAKEN, 32.79, -16.92, f"Camera {name}") for name in "abcde"}


class World:
    """A model of memory and what it was asked."""

    def __init__(self, memory_bytes: int = 10**12, damaged: tuple[str, ...] = (), exif: bool = True) -> None:
        self.requests: list[GenerationRequest] = []
        self.read: list[str] = []
        self.completions_before_read: list[tuple[str, int]] = []
        cache = InMemoryModelCache({name: CachedModel((COMMIT,)) for name in ("org/eye", "org/text")})
        directories = {f"/cache/org/eye/{COMMIT}": VISION, f"/cache/org/text/{COMMIT}": TEXT}
        workspaces = InMemoryWorkspaceStore()
        describe = DescribeModel(
            InMemoryModelFiles(directories),
            workspaces,
            InMemoryBackendRegistry(BOTH),
            cache,
            default_owner="mlx-community",
        )
        memory = InMemoryMemoryProbe(MemoryReading(memory_bytes, memory_bytes))
        self.generate = GenerateText(
            ResolveModel(cache, workspaces, InMemoryModelSource(), default_owner="mlx-community"),
            describe,
            InMemoryTextGenerator(self._answer),
            InMemoryImageReader(damaged, FACTS),
            InMemoryAudioDecoder({}),
            InMemoryVideoDecoder(),
            memory,
            InMemoryEventLog(),
            exif,
        )

    def _answer(self, request: GenerationRequest) -> tuple[str, ...]:
        self.requests.append(request)
        return (f"Answer {len(self.requests)}.",)

    def sources(self, names: str) -> list[ImageSource]:
        def source(name: str) -> ImageSource:
            def read() -> EncodedImage:
                self.read.append(name)
                self.completions_before_read.append((name, len(self.requests)))
                return image(name)

            return read

        return [source(name) for name in names]

    def show(self, names: str, model: str = "org/eye", system: str | None = None, **options: Any) -> TextStream:
        prompt = IncomingConversation.of(Conversation.of("Describe.", system), *self.sources(names))
        (stream,) = self.generate(model, [prompt], GenerationOptions(**options))
        return stream


def said(stream: TextStream) -> list[tuple[str, str]]:
    """Return the chunks of an answer: each table and the text about its images."""
    chunks: list[tuple[str, str]] = []
    for event in stream:
        if isinstance(event, ImageTableDelta):
            chunks.append((event.text, ""))
        elif isinstance(event, TextDelta):
            table, text = chunks.pop()
            chunks.append((table, text + event.text))
    return chunks


def turns(request: GenerationRequest) -> tuple[Any, ...]:
    assert isinstance(request.prompt, Conversation)
    return request.prompt.messages


def test_five_images_two_at_a_time_are_three_conversations() -> None:
    asked = World()
    summary = re.compile(r"<summary>(.*)</summary>")
    answers = [(summary.findall(table)[0], text) for table, text in said(asked.show("abcde", chunk=2))]
    assert answers == [
        ("📸 Chunk 1/3: Images 1-2", "Answer 1."),
        ("📸 Chunk 2/3: Images 3-4", "Answer 2."),
        ("📸 Chunk 3/3: Image 5", "Answer 3."),
    ]
    shown = [tuple(part.digest for part in turns(each)[-1].images) for each in asked.requests]
    assert shown == [tuple(image(name).digest for name in names) for names in ("ab", "cd", "e")]
    assert [len(turns(each)) for each in asked.requests] == [1, 1, 1]


def test_the_model_is_told_what_the_table_tells() -> None:
    asked = World()
    ((table, _),) = said(asked.show("a"))
    assert "| 1 | image_" in table
    facts = "[GPS: 32.7900°N, 16.9200°W | Date: 2023-12-06 12:19 | Camera: Camera a]"
    assert turns(asked.requests[0])[0].content == f"{facts}\n\nDescribe."


def test_without_facts_neither_the_model_nor_the_reader_is_told_any() -> None:
    asked = World(exif=False)
    ((table, _),) = said(asked.show("a"))
    assert "GPS" not in turns(asked.requests[0])[0].content
    assert "📍" not in table
    assert "| 1 | image_" in table


def test_the_system_prompt_opens_every_chunk() -> None:
    asked = World()
    said(asked.show("ab", system="Be brief."))
    assert [(turns(each)[0].role, turns(each)[0].content) for each in asked.requests] == [
        (Role.SYSTEM, "Be brief.")
    ] * 2


def test_images_are_read_when_it_is_their_turn() -> None:
    asked = World()
    stream = asked.show("abc")
    assert asked.read == ["a"]
    said(stream)
    assert asked.completions_before_read == [("a", 0), ("b", 1), ("c", 2)]


def test_answers_about_images_are_greedy_unless_asked_otherwise() -> None:
    for settings, temperature in ((GenerationSettings(), 0.0), (GenerationSettings(temperature=0.9, top_p=0.5), 0.9)):
        asked = World()
        said(asked.show("a", settings=settings))
        (request,) = asked.requests
        assert (request.settings.temperature, request.backends[0]) == (temperature, "mlx-vlm")
        assert request.settings.top_p == settings.top_p


def test_a_text_model_is_refused_before_any_image_is_read() -> None:
    asked = World()
    with pytest.raises(CapabilityError, match="'org/text' is a text model and takes no images"):
        asked.show("a", model="org/text")
    assert asked.read == []


def test_a_model_that_does_not_fit_is_refused_and_not_merely_warned_of() -> None:
    with pytest.raises(InsufficientMemoryError):
        World(memory_bytes=10).show("a")


@pytest.mark.parametrize("chunk", [0, 6])
def test_a_chunk_of_another_size_is_refused(chunk: int) -> None:
    with pytest.raises(ValidationError, match="chunk"):
        World().show("a", chunk=chunk)


def test_images_for_a_conversation_are_numbered_from_where_it_stands() -> None:
    asked = World()
    seen = asked.generate.prepare_images("org/eye", asked.sources("ab"), 3)
    assert [(each.shown.number, each.pixels.digest) for each in seen] == [
        (3, image("a").digest),
        (4, image("b").digest),
    ]
    assert seen[0].shown.facts == FACTS[image("a").digest]
    without = World(exif=False)
    assert without.generate.prepare_images("org/eye", without.sources("a"), 1)[0].shown.facts is None


def test_images_for_a_conversation_with_a_text_model_are_refused_unread() -> None:
    asked = World()
    with pytest.raises(CapabilityError, match="takes no images"):
        asked.generate.prepare_images("org/text", asked.sources("a"), 1)
    assert asked.read == []


def test_a_damaged_image_ends_the_run_after_the_chunks_before_it() -> None:
    asked = World(damaged=(image("b").digest,))
    events = []
    with pytest.raises(ValidationError, match=r"'b\.jpg' is damaged"):
        for event in asked.show("abc"):
            events.append(event)
    assert events[1:] == [TextDelta("Answer 1.")]


def test_a_request_names_the_backends_of_its_model() -> None:
    asked = World()
    for model in ("org/eye", "org/text"):
        for stream in asked.generate(model, [Conversation.of("Hello")], GenerationOptions()):
            list(stream)
    described = [asked.generate.describe(each.model).runtime.backends for each in asked.requests]
    assert [each.backends for each in asked.requests] == described
    assert all(described)


def test_images_in_a_question_to_a_text_model_are_refused() -> None:
    asked = World()
    shown = DecodedImage(1, 1, b"abc", "0" * 64)
    with pytest.raises(CapabilityError, match="takes no images"):
        asked.generate("org/text", [Conversation((Message.of_parts(shown, "?"),))], GenerationOptions())


def test_several_answers_to_several_chunks_are_refused() -> None:
    with pytest.raises(ParameterNotSupportedError, match="one answer to more images"):
        World().show("ab", choices=2)


def test_an_answer_that_follows_a_grammar_has_no_table() -> None:
    stream = World().show("a", settings=GenerationSettings(grammar=Grammar.json_object()))
    assert [event.text for event in stream if isinstance(event, TextDelta)] == ["Answer 1."]


def test_images_of_earlier_messages_keep_their_numbers_and_the_others_come_after_them() -> None:
    first = IncomingMessage(Message(Role.USER, "Which?"), (image("a"), image("b"), "Which?"))
    answered = IncomingMessage(Message(Role.ASSISTANT, "The first."))
    last = IncomingMessage(Message(Role.USER, "And?"), (image("c"), image("b"), image("d"), "And?"))
    asked = World()
    (stream,) = asked.generate("org/eye", [IncomingConversation((first, answered, last))], GenerationOptions(chunk=2))
    numbers = [re.findall(r"^\| (\d+) \|", table, re.MULTILINE) for table, _ in said(stream)]
    assert numbers == [["3", "2"], ["4"]]


@pytest.mark.parametrize("count", [5, 6])
def test_beside_a_clip_all_images_are_shown_together_and_more_than_that_are_refused(count: int) -> None:
    clip = EncodedVideo.of(b"GIF89a".ljust(64), "clip", VideoSampling())
    asked = World()
    prompt = IncomingConversation.of(
        Conversation.of("?"), *asked.sources("abcdef"[:count]), clip, images_field="--image"
    )
    if count == 5:
        (stream,) = asked.generate("org/eye", [prompt], GenerationOptions(chunk=1))
        said(stream)
        assert [len(turns(each)[-1].images) for each in asked.requests] == [5]
        return
    with pytest.raises(ValidationError) as refusal:
        asked.generate("org/eye", [prompt], GenerationOptions(chunk=1))
    assert refusal.value.message == "--image: 6 images are too many beside a clip, with which all of them are shown"
    assert (refusal.value.hint, asked.requests) == ("At most 5 are taken.", [])


@pytest.mark.parametrize("exif", [True, False])
def test_where_a_clip_was_recorded_is_told_only_if_it_may_be(exif: bool) -> None:
    clip, recorded = EncodedVideo.of(b"GIF89a".ljust(64), "clip", VideoSampling()), FACTS[image("a").digest]
    asked = World(exif=exif)
    asked.generate = attrs.evolve(asked.generate, videos=InMemoryVideoDecoder(recorded=recorded))
    shown = asked.generate.prepare_video("org/eye", clip, 3)
    assert (shown.number, shown.read.facts.recorded) == (3, recorded if exif else None)
    prompt = IncomingConversation.of(Conversation.of("?"), clip)
    (stream,) = asked.generate("org/eye", [prompt], GenerationOptions())
    ((table, _),) = said(stream)
    assert ("32.79" in table, "32.79" in turns(asked.requests[0])[0].content) == (exif, exif)


LARGE = bytes(MAX_IMAGE_BYTES)


def large(name: str) -> EncodedImage:
    return EncodedImage(LARGE, ImageFormat.JPEG, hashlib.sha256(name.encode()).hexdigest(), f"{name}.jpg")


@pytest.mark.parametrize("chunk", [3, 4, 5])
def test_images_that_are_too_large_together_are_refused_before_any_is_shown(chunk: int) -> None:
    asked = World()
    sources = [lambda name=name: large(name) for name in "abcdef"]
    prompt = IncomingConversation.of(Conversation.of("Describe."), *sources, images_field="--image")
    with pytest.raises(ValidationError, match=rf"^--image: {chunk} images have {20 * chunk}\.0 MiB together"):
        asked.generate("org/eye", [prompt], GenerationOptions(chunk=chunk))
    assert asked.requests == []


def test_as_many_large_images_are_shown_together_as_may_be_and_one_after_another_any_number() -> None:
    asked = World()
    sources = [lambda name=name: large(name) for name in "abcdef"]
    prompt = IncomingConversation.of(Conversation.of("Describe."), *sources)
    (stream,) = asked.generate("org/eye", [prompt], GenerationOptions(chunk=2))
    assert len(said(stream)) == 3


@pytest.mark.parametrize("chunk", [1, 3, 5])
@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_images_of_one_request_count_together_wherever_they_are(chunk: int, earlier: int) -> None:
    images = [large(name) for name in "abc"]
    before = (IncomingMessage(Message(Role.USER, "Describe."), (*images[:earlier], "Describe.")),) if earlier else ()
    answered = (IncomingMessage(Message(Role.ASSISTANT, "Yes.")),) if earlier else ()
    last = IncomingMessage(Message(Role.USER, "And?"), (*images[earlier:], "And?"))
    asked = World()
    prompt = IncomingConversation((*before, *answered, last))
    with pytest.raises(ValidationError, match=r"messages: 3 images have 60\.0 MiB together"):
        asked.generate("org/eye", [prompt], GenerationOptions(chunk=chunk))
    assert asked.requests == []
