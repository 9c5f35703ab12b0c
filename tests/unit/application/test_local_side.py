"""A model of this machine as one side of a comparison: what it is asked, what is counted, and what it leaves behind."""

import attrs
import pytest
from doubles.audio_decoder import InMemoryAudioDecoder
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.clock import InMemoryClock
from doubles.event_log import InMemoryEventLog
from doubles.image_reader import InMemoryImageReader
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.text_generator import InMemoryTextGenerator
from doubles.video_decoder import InMemoryVideoDecoder
from doubles.workspace_store import InMemoryWorkspaceStore
from serving.parts import CHAT

from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.measure_servers import LocalSide
from mlxk.application.use_cases.model_tasks import LoadModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.generation.conversation import Conversation, Role
from mlxk.domain.models.footprint import MemoryReading

COMMIT = "a" * 40


@pytest.fixture
def generator() -> InMemoryTextGenerator:
    return InMemoryTextGenerator(lambda _: ("Hello", " there", " you"))


@pytest.fixture
def side(generator: InMemoryTextGenerator) -> LocalSide:
    files = InMemoryModelFiles({f"/cache/org/chat/{COMMIT}": CHAT})
    cache, workspaces = InMemoryModelCache({"org/chat": CachedModel((COMMIT,))}, files=files), InMemoryWorkspaceStore()
    registry = InMemoryBackendRegistry({"mlx-lm": {"llama"}})
    describe = DescribeModel(files, workspaces, registry, cache, default_owner="org")
    resolve = ResolveModel(cache, workspaces, InMemoryModelSource(), default_owner="org")
    media = (InMemoryImageReader(), InMemoryAudioDecoder({}), InMemoryVideoDecoder())
    memory, log = InMemoryMemoryProbe(MemoryReading(2**36, 2**36)), InMemoryEventLog()
    generate = GenerateText(resolve, describe, generator, *media, memory, log)
    load = LoadModel(generator, memory, log)
    return LocalSide(generate, load, InMemoryClock(), describe.details(resolve("org/chat")))


def test_a_question_is_asked_greedily_and_its_answer_counted(side: LocalSide, generator: InMemoryTextGenerator) -> None:
    found = side.ask("What is the sky like?", 2)
    assert (found.text, found.prompt_tokens, found.completion_tokens) == ("Hello there", 5, 2)
    (request,) = generator.requests
    assert (request.settings.temperature, request.settings.max_tokens) == (0.0, 2)
    assert attrs.evolve(request.settings, temperature=None, max_tokens=None) == type(request.settings)()
    assert isinstance(request.prompt, Conversation)
    assert [(each.role, each.content) for each in request.prompt.messages] == [(Role.USER, "What is the sky like?")]


def test_nothing_is_in_memory_before_it_is_loaded_nor_after_it_has_left(
    side: LocalSide, generator: InMemoryTextGenerator
) -> None:
    side.load()
    assert [each.name for each in generator.state(1).models] == ["org/chat"]
    assert (side.server, side.memory_bytes()) == (None, None)
    side.leave()
    assert generator.state(1).models == ()
