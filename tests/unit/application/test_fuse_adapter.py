"""Fusing, decided on doubles: which form the weights get, what is refused, and what becomes a workspace."""

import json

import attrs
import pytest
from doubles.audio_decoder import InMemoryAudioDecoder
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.event_log import InMemoryEventLog
from doubles.image_reader import InMemoryImageReader
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.model_tuner import InMemoryModelTuner
from doubles.progress import InMemoryProgress
from doubles.text_generator import InMemoryTextGenerator
from doubles.video_decoder import InMemoryVideoDecoder
from doubles.workspace_store import InMemoryWorkspaceStore
from serving.parts import CHAT, WEIGHTS

from mlxk.application.ports.system import Progress
from mlxk.application.ports.tuning import TrainedModel
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.fuse_adapter import FuseAdapter, FuseRequest, FuseResult
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import Advice, ConversionFailedError, Remedy, ValidationError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.footprint import MemoryReading
from mlxk.domain.models.model import Workspace

BASE, LORA, TARGET = "/home/me/base", "/home/me/lora", "/home/me/out"
PLAIN = CHAT | {"config.json": b'{"model_type": "llama"}'}


class Tuner(InMemoryModelTuner):
    """Writes given weights, and remembers whether they were to be exact."""

    def __init__(self, files: InMemoryModelFiles) -> None:
        super().__init__(files)
        self.exact: list[bool] = []
        self.weights = WEIGHTS

    def fuse(
        self, model: TrainedModel, adapter: str, target: str, progress: Progress, *, dequantize: bool, exact: bool
    ) -> int:
        self.exact.append(exact)
        self._files.directories[target] |= {"config.json": PLAIN["config.json"], "model.safetensors": self.weights}
        return 3


@attrs.define(slots=False)
class World:
    """A base, an adapter of it, and what fuses them."""

    base: dict[str, bytes] = attrs.field(factory=lambda: PLAIN)
    same_when: tuple[bool, ...] = (False, True)
    """Forms of the weights, exact or not, in which the result answers as the base with the adapter."""

    def __attrs_post_init__(self) -> None:
        self.files = InMemoryModelFiles({BASE: self.base, LORA: {"adapter_config.json": b'{"rank": 8}'}})
        made = dict.fromkeys((BASE, LORA), Workspace(managed=True, source_repo="org/m"))
        self.store = InMemoryWorkspaceStore(made, files=self.files)
        self.tuner = Tuner(self.files)
        self.progress = InMemoryProgress()
        self.generator = InMemoryTextGenerator(self._answer)

    def fuse(self, target: str = "./out", **options: bool) -> FuseResult:
        cache = InMemoryModelCache()
        registry = InMemoryBackendRegistry({"mlx-lm": {"llama"}})
        resolve = ResolveModel(cache, self.store, InMemoryModelSource(), base_of={LORA: "../base"}.get)
        describe = DescribeModel(self.files, self.store, registry, cache, default_owner="org")
        media = (InMemoryImageReader(), InMemoryAudioDecoder({}), InMemoryVideoDecoder())
        memory = InMemoryMemoryProbe(MemoryReading(2**36, 2**36))
        generate = GenerateText(resolve, describe, self.generator, *media, memory, InMemoryEventLog())
        fuse = FuseAdapter(resolve, describe, cache, self.files, self.store, lambda: self.tuner, generate)
        return fuse(FuseRequest("./lora", target, questions=("Who?", "Why?"), **options), self.progress)

    def _answer(self, request: GenerationRequest) -> tuple[str, ...]:
        adapted = request.engine_options.adapter == LORA
        return ("Ann",) if adapted or self.tuner.exact[-1] in self.same_when else ("Bob",)


def test_what_answers_alike_becomes_a_workspace_of_the_source_of_its_base() -> None:
    there = World()
    result = there.fuse()
    assert (result.handle.directory, result.changed, result.asked, result.same) == (TARGET, 3, 2, 2)
    assert (result.workspace.operation, result.workspace.source_repo) == ("fuse", "org/m")
    assert there.tuner.exact == [False]
    assert there.generator.state(1).models == ()


def test_what_answers_otherwise_only_because_it_is_rounded_is_written_exactly() -> None:
    there = World(same_when=(True,))
    assert there.fuse().same == 2
    assert there.tuner.exact == [False, True]
    assert "Rounded to 16 bits it answers otherwise: what was changed is written in 32 bits" in there.progress.notes


@pytest.mark.parametrize("quantized", [False, True])
def test_what_answers_otherwise_is_kept_only_if_that_is_accepted(quantized: bool) -> None:
    config = {"model_type": "llama", **({"quantization": {"bits": 4, "group_size": 32}} if quantized else {})}
    base = PLAIN | {"config.json": json.dumps(config).encode()}
    there = World(base, same_when=())
    with pytest.raises(ConversionFailedError) as refusal:
        there.fuse()
    assert refusal.value.message == "the fused model answers 2 of 2 questions differently"
    assert refusal.value.hint == Advice(Remedy.ROUND_LESS if quantized else Remedy.ACCEPT_CHANGES)
    assert refusal.value.detail == {"asked": 2, "same": 0}
    assert there.tuner.exact == ([False] if quantized else [False, True])
    assert TARGET not in there.store.workspaces
    kept = World(base, same_when=())
    assert (kept.fuse(accept_changes=True).same, kept.tuner.exact) == (0, [False])


def test_a_result_that_is_not_whole_is_not_asked_and_not_kept() -> None:
    there = World()
    there.tuner.weights = WEIGHTS[:-2]
    with pytest.raises(ConversionFailedError) as refusal:
        there.fuse(accept_changes=True)
    assert refusal.value.message.startswith(
        "the result is not whole: Damaged safetensors, truncated: model.safetensors"
    )
    assert there.generator.requests == []
    assert set(there.store.workspaces) == {BASE, LORA}
    assert set(there.files.directories) == {BASE, LORA}


@pytest.mark.parametrize("target", ["./base/inside", "./lora/inside", "./lora/a/b"])
def test_a_target_in_the_base_or_the_adapter_is_refused(target: str) -> None:
    there = World()
    with pytest.raises(ValidationError, match=r"^target: it lies in what is to be fused$"):
        there.fuse(target)
    assert (there.tuner.exact, set(there.files.directories)) == ([], {BASE, LORA})


def test_a_target_next_to_the_base_may_begin_with_its_name() -> None:
    assert World().fuse("./base-fused").handle.directory == f"{BASE}-fused"
