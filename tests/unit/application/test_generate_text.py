"""Generating text: resolve, probe, policy, and only then the generator."""

import json
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

from mlxk.application.generation_input import GenerationOptions, Prompt, Recording
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import (
    CapabilityError,
    ExecutionError,
    IncompatibleModelError,
    InsufficientMemoryError,
    ModelNotFoundError,
    UnhealthyModelError,
    ValidationError,
)
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.profile import Profile
from mlxk.domain.generation.request import Finished, GenerationRequest, TextDelta
from mlxk.domain.generation.settings import Effort, EngineOptions, GenerationSettings
from mlxk.domain.generation.video import EncodedVideo, VideoSampling
from mlxk.domain.models.footprint import MemoryReading

GIB = 1024**3
HEADER = json.dumps({"w": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)


PLAIN = {"chat_template.jinja": b"{{ messages }}"}
TEMPLATES = {
    "plain": PLAIN,
    "able": {"chat_template.jinja": b"{% if enable_thinking %}<think>{% endif %}{{ tools }}"},
    "beside": {**PLAIN, "additional_chat_templates/tool_use.jinja": b"<thinking></thinking>{{ tools }}"},
    "unread": {"elsewhere/chat.jinja": b"{{ messages }}"},
}


def files(config: dict[str, object]) -> dict[str, bytes]:
    """Return the files of a whole little model."""
    return {"config.json": json.dumps(config).encode(), "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}


MODELS = {
    "mlx-community/chat": files({"model_type": "llama"}),
    "mlx-community/small": files({"model_type": "llama"}),
    **{f"mlx-community/{name}": {**files({"model_type": "llama"}), **found} for name, found in TEMPLATES.items()},
    **{
        f"mlx-community/{mode}": files(
            {"model_type": "llama", "quantization": {"bits": 8, "group_size": 32, "mode": mode}}
        )
        for mode in ("mxfp8", "nvfp4", "affine")
    },
    "mlx-community/broken": {"config.json": b"{"},
    "mlx-community/whisper": files({"model_type": "whisper"}),
    "mlx-community/novel": files({"model_type": "nobody-knows"}),
}


class Kitchen:
    """The use case with everything around it in memory."""

    def __init__(self, total: int = 16 * GIB, *, activations: bool = False) -> None:
        self.asked: list[GenerationRequest] = []
        self.fails_after: int | None = None
        self.profiles: dict[str, Profile] = {}
        self.usual = Profile()
        self.models = {name: CachedModel(("a" * 40,)) for name in MODELS}
        self.log = InMemoryEventLog()
        cache = InMemoryModelCache(self.models)
        model_files = InMemoryModelFiles({f"/cache/{name}/{'a' * 40}": content for name, content in MODELS.items()})
        workspaces = InMemoryWorkspaceStore()
        backends = {"mlx-lm": {"llama"}, "mlx-audio": {"whisper"}}
        registry = InMemoryBackendRegistry(backends, activations=activations)
        self.generator = InMemoryTextGenerator(self._answer)
        self.generate = GenerateText(
            ResolveModel(cache, workspaces, InMemoryModelSource(), default_owner="mlx-community"),
            DescribeModel(model_files, workspaces, registry, cache, default_owner="mlx-community"),
            self.generator,
            InMemoryImageReader(),
            InMemoryAudioDecoder({}),
            InMemoryVideoDecoder(),
            InMemoryMemoryProbe(MemoryReading(total, total)),
            self.log,
        )

    def start(self, reference: str, prompt: Prompt, **options: Any) -> TextStream:
        aliases = {name: profile.model for name, profile in self.profiles.items()}
        resolve = attrs.evolve(self.generate.resolve, aliases=aliases)
        generate = attrs.evolve(self.generate, resolve=resolve, profiles=self.profiles, usual=self.usual)
        (stream,) = generate(reference, [prompt], GenerationOptions(**options))
        return stream

    def _answer(self, request: GenerationRequest) -> tuple[str, ...]:
        if len(self.asked) == self.fails_after:
            raise ExecutionError("The queue is full.")
        self.asked.append(request)
        return ("Hello", " there")


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen()


def test_an_answer_is_its_deltas_and_one_last_event(kitchen: Kitchen) -> None:
    with kitchen.start("chat", "hi") as stream:
        *deltas, last = list(stream)
    assert "".join(each.text for each in deltas if isinstance(each, TextDelta)) == "Hello there"
    assert isinstance(last, Finished)


def test_what_was_asked_reaches_the_generator_with_one_resolved_handle(kitchen: Kitchen) -> None:
    prompt = Conversation.of("hi", "Be brief.")
    with kitchen.start(
        "chat",
        prompt,
        settings=GenerationSettings(seed=7),
        thinking=True,
        engine_options=EngineOptions(kv_bits=8),
        draft_reference="small",
    ) as stream:
        list(stream)
    (request,) = kitchen.asked
    assert request.model.name == "mlx-community/chat"
    assert (request.prompt, request.settings.seed, request.thinking) == (prompt, 7, True)
    assert request.engine_options.draft_model is not None
    assert request.engine_options.draft_model.name == "mlx-community/small"


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("nosuch", ModelNotFoundError),
        ("broken", UnhealthyModelError),
        ("whisper", CapabilityError),
        ("novel", IncompatibleModelError),
    ],
)
def test_a_model_that_cannot_answer_is_refused_before_it_is_loaded(
    kitchen: Kitchen, reference: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=reference):
        kitchen.start(reference, "hi")
    with pytest.raises(error, match=reference):
        kitchen.start("chat", "hi", draft_reference=reference)
    assert kitchen.asked == []


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("nosuch", ModelNotFoundError),
        ("broken", UnhealthyModelError),
        ("whisper", CapabilityError),
        ("novel", IncompatibleModelError),
        ("chat", CapabilityError),
    ],
)
def test_media_are_prepared_only_for_a_model_that_can_answer_about_them(
    kitchen: Kitchen, reference: str, error: type[Exception]
) -> None:
    generate, nothing = kitchen.generate, Recording("/nowhere", "nothing")
    with pytest.raises(error, match=reference):
        generate.prepare_images(reference, (), 1)
    with pytest.raises(error, match=reference):
        generate.prepare_video(reference, EncodedVideo.of(b"GIF89a".ljust(64), "clip", VideoSampling()), 1)
    with pytest.raises(error, match=reference):
        generate.prepare_recording(reference, nothing)


def test_settings_are_checked_before_the_model_is_looked_for(kitchen: Kitchen) -> None:
    with pytest.raises(ValidationError, match=r"temperature.*; top_p"):
        kitchen.start("nosuch", "hi", settings=GenerationSettings(temperature=-1, top_p=2))


def test_a_model_beyond_the_budget_runs_with_a_warning_or_is_refused_when_asked() -> None:
    kitchen = Kitchen(total=1024)
    with kitchen.start("chat", "hi") as stream:
        list(stream)
    assert any("memory budget" in event.event for event in kitchen.log.events)
    with pytest.raises(InsufficientMemoryError, match="chat"):
        Kitchen(total=1024).start("chat", "hi", strict_memory=True)


@pytest.mark.parametrize("able", ["able", "beside", "unread"])
@pytest.mark.parametrize(
    ("field", "prompt", "options"),
    [
        ("tools", Conversation.of("hi", None, ('{"type": "function"}',)), {"strict_capabilities": True}),
        ("thinking", Conversation.of("hi"), {"thinking": True}),
    ],
)
def test_what_the_chat_template_would_leave_out_is_refused(
    kitchen: Kitchen, field: str, prompt: Conversation, options: dict[str, Any], able: str
) -> None:
    with pytest.raises(CapabilityError, match=f"^{field}: .*'mlx-community/plain'") as refusal:
        kitchen.start("plain", prompt, **options)
    assert refusal.value.hint
    assert kitchen.asked == []
    with kitchen.start(able, prompt, **options) as stream:
        list(stream)
    assert len(kitchen.asked) == 1


def test_a_model_that_does_not_reason_may_be_told_not_to(kitchen: Kitchen) -> None:
    with kitchen.start("plain", Conversation.of("hi"), thinking=False) as stream:
        list(stream)
    assert len(kitchen.asked) == 1


def test_every_prompt_has_its_choices_side_by_side_with_seeds_of_their_own(kitchen: Kitchen) -> None:
    options = GenerationOptions(GenerationSettings(seed=7), choices=2)
    streams = kitchen.generate("chat", ["one", (1, 2)], options)
    assert len(streams) == 4
    assert [request.prompt for request in kitchen.asked] == ["one", "one", (1, 2), (1, 2)]
    assert len({request.settings.seed for request in kitchen.asked}) == 2


def test_completions_that_were_started_are_cancelled_when_a_later_one_cannot_start(kitchen: Kitchen) -> None:
    kitchen.fails_after = 2
    with pytest.raises(ExecutionError, match="full"):
        kitchen.generate("chat", ["one", "two", "three"], GenerationOptions())
    assert [stream.cancelled for stream in kitchen.generator.streams] == [True, True]


def test_a_model_that_was_judged_already_is_not_looked_for(kitchen: Kitchen) -> None:
    details = kitchen.generate.describe.details(kitchen.generate.resolve("chat"))
    kitchen.models.clear()
    (stream,) = kitchen.generate(details, ["hi"], GenerationOptions())
    assert isinstance(list(stream)[-1], Finished)


def test_a_loaded_model_is_not_judged_again() -> None:
    kitchen = Kitchen(total=1024)
    for _ in range(2):
        list(kitchen.start("chat", "hi"))
    assert len(kitchen.log.events) == 1
    list(kitchen.start("chat", "hi", strict_memory=True))


SAID: dict[str, tuple[Any, Any]] = {
    "settings": (GenerationSettings(temperature=0.1, stop=("a",)), GenerationSettings(temperature=0.2, stop=("b",))),
    "thinking": (True, False),
    "effort": (Effort.LOW, Effort.HIGH),
    "thinking_tags": (("<a>", "</a>"), ("<b>", "</b>")),
    "template_options": ({"a": 1}, {"a": 2}),
    "engine_options": (EngineOptions(kv_bits=4), EngineOptions(max_kv_size=64)),
    "context_limit": (100, 200),
    "keep_alive_seconds": (0.0, float("inf")),
    "alternatives_limit": (0, 5),
}


@pytest.mark.parametrize("field", SAID)
def test_a_profile_fills_in_what_a_request_leaves_out_and_lies_over_what_holds_for_every_model(
    kitchen: Kitchen, field: str
) -> None:
    first, second = SAID[field]
    kitchen.profiles = {"own": Profile("able", **{field: first}), "bare": Profile("able")}
    kitchen.usual = Profile(**{field: second})
    for reference in ("own", "bare", "able"):
        kitchen.start(reference, "hi").cancel()
    kitchen.start("own", "hi", **{field: second}).cancel()
    found = [getattr(request, field) for request in kitchen.asked]
    assert found == [first, second, second, second]
    assert {request.model.name for request in kitchen.asked} == {"mlx-community/able"}


def test_a_smaller_model_of_a_profile_is_found_for_the_request(kitchen: Kitchen) -> None:
    kitchen.profiles = {"own": Profile("chat", draft_reference="small")}
    kitchen.start("own", "hi").cancel()
    draft = kitchen.asked[0].engine_options.draft_model
    assert draft is not None
    assert draft.name == "mlx-community/small"


@pytest.mark.parametrize("reference", ["nosuch", "broken", "whisper"])
def test_a_usual_smaller_model_that_cannot_help_is_left_out_with_a_warning(kitchen: Kitchen, reference: str) -> None:
    options = EngineOptions(draft_required=False)
    kitchen.start("chat", "hi", draft_reference=reference, engine_options=options).cancel()
    assert kitchen.asked[0].engine_options.draft_model is None
    (warned,) = kitchen.log.events
    assert (warned.event, warned.fields["model"]) == ("a default draft model is not used", reference)
    assert reference in str(warned.fields["reason"])


def test_reasoning_of_a_profile_is_for_models_that_can_and_for_requests_that_say_nothing_of_it(
    kitchen: Kitchen,
) -> None:
    settings = GenerationSettings(thinking_budget=5)
    kitchen.usual = Profile(thinking=True, effort=Effort.LOW, settings=settings)
    kitchen.start("plain", "hi").cancel()
    kitchen.start("able", "hi").cancel()
    kitchen.start("able", "hi", effort=Effort.NONE).cancel()
    kitchen.start("able", "hi", template_options={"enable_thinking": False}).cancel()
    said = [(each.thinking, each.effort, each.settings.thinking_budget) for each in kitchen.asked]
    assert said == [(None, None, None), (True, Effort.LOW, 5), (None, Effort.NONE, 5), (None, Effort.LOW, 5)]
    assert [each.reasons for each in kitchen.asked] == [None, True, False, False]


def test_an_option_that_excludes_one_of_a_profile_replaces_it(kitchen: Kitchen) -> None:
    kitchen.profiles = {"own": Profile("chat", engine_options=EngineOptions(max_kv_size=64, adapter="/a"))}
    kitchen.start("own", "hi", engine_options=EngineOptions(kv_bits=4)).cancel()
    assert kitchen.asked[0].engine_options == EngineOptions(kv_bits=4, adapter="/a")


@pytest.mark.parametrize(("reference", "used"), [("mxfp8", True), ("nvfp4", True), ("affine", None), ("chat", None)])
def test_activations_are_quantized_only_beside_weights_of_their_formats(reference: str, used: bool | None) -> None:
    kitchen = Kitchen(activations=True)
    kitchen.start(reference, "hi", engine_options=EngineOptions(quantize_activations=True)).cancel()
    assert kitchen.asked[0].engine_options.quantize_activations is used
    assert [(each.event, each.fields) for each in kitchen.log.events] == (
        []
        if used
        else [
            (
                "activations are not quantized",
                {
                    "model": f"mlx-community/{reference}",
                    "reason": "the weights are quantized neither as mxfp8 nor as nvfp4",
                },
            )
        ]
    )


def test_activations_that_the_machine_cannot_quantize_are_refused(kitchen: Kitchen) -> None:
    with pytest.raises(CapabilityError, match="quantize_activations"):
        kitchen.start("chat", "hi", engine_options=EngineOptions(quantize_activations=True))
    assert kitchen.asked == []


def test_a_size_of_groups_belongs_to_the_bits_of_the_same_place_or_of_the_profile(kitchen: Kitchen) -> None:
    kitchen.profiles = {"own": Profile("chat", engine_options=EngineOptions(kv_bits=8, kv_group_size=64))}
    asked = [EngineOptions(kv_group_size=32), EngineOptions(kv_bits=4), EngineOptions(max_kv_size=64)]
    for options in asked:
        kitchen.start("own", "hi", engine_options=options).cancel()
    found = [each.engine_options for each in kitchen.asked]
    assert found == [EngineOptions(kv_bits=8, kv_group_size=32), *asked[1:]]
    with pytest.raises(ValidationError, match="kv_group_size needs kv_bits"):
        kitchen.start("own", "hi", engine_options=EngineOptions(kv_group_size=32, max_kv_size=64))
