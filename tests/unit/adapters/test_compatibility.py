"""Which MLX library runs a model, and why none does."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.adapters.mlx.compatibility import InstalledSupport, Library, dedicated_to, judge
from mlxk.adapters.mlx.loaders import library_for
from mlxk.domain.generation.conversation import Conversation, Message
from mlxk.domain.generation.media import DecodedImage
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import EngineOptions
from mlxk.domain.models.detection import detect
from mlxk.domain.models.model import Capability, ModelHandle, Origin, Runtime
from mlxk.domain.models.snapshot import ModelSnapshot

Snapshots = Callable[..., ModelSnapshot]
ALL = frozenset(Library)
VISION = {"model_type": "llava", "vision_config": {"a": 1}}
OMNI = {"model_type": "gemma3n", "vision_config": {"a": 1}, "audio_config": {"a": 1}}


def reason(found: ModelSnapshot, loading: frozenset[Library] = ALL, installed: frozenset[Library] = ALL) -> str | None:
    """Why a whole model cannot run; None when it can."""
    verdict = judged(found, loading, installed)
    assert verdict.compatible == (verdict.reason is None)
    return verdict.reason


def judged(found: ModelSnapshot, loading: frozenset[Library] = ALL, installed: frozenset[Library] = ALL) -> Runtime:
    """The verdict on a model."""
    support = InstalledSupport(installed, loading)
    return judge(found, detect(found, dedicated_to(support)), support)


@given(data=st.data())
def test_any_snapshot_gets_a_verdict(data: st.DataObject, any_snapshot: st.SearchStrategy[ModelSnapshot]) -> None:
    loading = frozenset(data.draw(st.sets(st.sampled_from(Library))))
    reason(data.draw(any_snapshot), loading)


def test_a_text_model_runs_with_the_one_library_that_writes_text_with_it(make_snapshot: Snapshots) -> None:
    found = make_snapshot({"config.json": {"model_type": "flint"}})
    alone = frozenset({Library.MLX_VLM})
    for support, libraries, refusal in (
        (InstalledSupport(ALL, alone, writes=True), ("mlx-vlm",), None),
        (InstalledSupport(ALL, ALL, writes=True), ("mlx-lm",), None),
        (InstalledSupport(ALL, alone), ("mlx-lm",), "Model type flint not supported."),
        (InstalledSupport(ALL, alone, instead="finds boxes"), (), "Model type flint finds boxes"),
        (InstalledSupport(ALL, ALL, instead="finds boxes"), ("mlx-lm",), None),
    ):
        verdict = judge(found, detect(found), support)
        assert verdict.backends == libraries
        assert (verdict.reason or "").startswith(refusal or "-") == bool(refusal)


@pytest.mark.parametrize(
    ("config", "loading", "libraries"),
    [
        ({"model_type": "llama"}, ALL, ("mlx-lm",)),
        (VISION, ALL, ("mlx-vlm", "mlx-lm")),
        (VISION, frozenset({Library.MLX_VLM}), ("mlx-vlm",)),
        (OMNI, ALL, ("mlx-vlm", "mlx-lm")),
        ({"model_type": "qwen2_audio", "audio_config": {"a": 1}}, ALL, ("mlx-lm", "mlx-vlm")),
        ({"model_type": "whisper"}, ALL, ("mlx-audio",)),
        ({"model_type": "bert"}, ALL, ("mlx-vlm",)),
    ],
)
def test_each_kind_of_model_has_its_libraries_in_order_of_preference(
    config: dict[str, Any], loading: frozenset[Library], libraries: tuple[str, ...], make_snapshot: Snapshots
) -> None:
    found = make_snapshot({"config.json": config})
    assert judged(found, loading).backends == libraries


ALONE = ("mlx-lm",)
VISION_FIRST = ("mlx-vlm", "mlx-lm")
TEXT_FIRST = ("mlx-lm", "mlx-vlm")
PLAIN = EngineOptions()
IMAGE = Conversation((Message.of_parts(DecodedImage(4, 4, b"0" * 48, "digest"), "What?"),))


@pytest.mark.parametrize(
    ("backends", "prompt", "options", "library"),
    [
        ((), "Hello", PLAIN, Library.MLX_LM),
        ((), IMAGE, PLAIN, Library.MLX_LM),
        (ALONE, "Hello", PLAIN, Library.MLX_LM),
        (VISION_FIRST, "Hello", PLAIN, Library.MLX_VLM),
        (TEXT_FIRST, "Hello", PLAIN, Library.MLX_LM),
        (TEXT_FIRST, IMAGE, PLAIN, Library.MLX_VLM),
        (ALONE, IMAGE, PLAIN, Library.MLX_VLM),
        (VISION_FIRST, "Hello", EngineOptions(kv_bits=8), Library.MLX_VLM),
        (VISION_FIRST, "Hello", EngineOptions(max_kv_size=64), Library.MLX_LM),
        (VISION_FIRST, "Hello", EngineOptions(adapter="/adapter"), Library.MLX_VLM),
        (("mlx-vlm",), "Hello", EngineOptions(kv_bits=8), Library.MLX_VLM),
    ],
)
def test_text_for_a_vision_model_goes_to_the_same_library_unless_only_the_other_can(
    backends: tuple[str, ...], prompt: Conversation | str, options: EngineOptions, library: Library
) -> None:
    handle = ModelHandle("org/x", "/x", Origin.CACHE)
    assert library_for(GenerationRequest(handle, prompt, engine_options=options, backends=backends)) is library


@pytest.mark.parametrize(
    ("base", "origin", "said"),
    [
        (None, Origin.WORKSPACE, "adapter_config.json does not say which model it was trained on"),
        ("/home/ada/models/base", Origin.CACHE, "Its base is named by a path of its maker's machine"),
        ("/home/ada/models/base", Origin.WORKSPACE, None),
        ("org/base", Origin.CACHE, None),
    ],
)
def test_an_adapter_runs_where_its_base_can_be_found(
    base: str | None, origin: Origin, said: str | None, make_snapshot: Snapshots
) -> None:
    stated = {"fine_tune_type": "lora", **({} if base is None else {"model": base})}
    files = {"adapter_config.json": stated, "adapters.safetensors": 300}
    found = make_snapshot({"config.json": None, "model.safetensors": None, **files}, origin=origin)
    assert reason(found) == said


def test_a_whole_model_of_a_known_architecture_runs(make_snapshot: Snapshots) -> None:
    assert reason(make_snapshot()) is None


def test_the_format_of_the_weights_comes_first(make_snapshot: Snapshots) -> None:
    pickled = make_snapshot({"model.safetensors": None, "pytorch_model.bin": 300}, mlx=False)
    assert judged(pickled, frozenset()).reason == "Incompatible framework: PyTorch"
    assert judged(make_snapshot(mlx=False), frozenset({Library.MLX_LM})).compatible


@pytest.mark.parametrize(("architecture", "runs"), [("whisper", True), ("voxtral", False)])
def test_of_speech_models_published_for_pytorch_only_whisper_runs(
    architecture: str, runs: bool, make_snapshot: Snapshots
) -> None:
    found = make_snapshot({"config.json": {"model_type": architecture}}, mlx=False)
    assert judged(found, frozenset({Library.MLX_AUDIO})).compatible is runs


VOICES = frozenset({Library.MLX_AUDIO})
CODEC = {"speech_tokenizer/model.safetensors": 300}
KOKORO = {"config.json": {"model_type": "kokoro"}, "voices/a.safetensors": 300}


@pytest.mark.parametrize(
    ("files", "lacking", "expected"),
    [
        ({"config.json": {"model_type": "qwen3_tts"}, **CODEC}, (), None),
        ({"config.json": {"model_type": "qwen3_tts"}}, (), "speech_tokenizer/ is missing"),
        ({"config.json": {"model_type": "soprano"}}, (), None),
        ({"config.json": {"model_type": "soprano", "auto_map": {"A": "b.C"}}}, (), "model-supplied code"),
        (KOKORO, ("misaki[en]",), "package misaki[en], not installed"),
        (KOKORO, (), None),
        ({"config.json": {"model_type": "bark"}}, (), "'bark' is not supported: it fetches a tokenizer"),
    ],
)
def test_what_a_voice_lacks_is_named(
    files: dict[str, Any], lacking: tuple[str, ...], expected: str | None, make_snapshot: Snapshots
) -> None:
    support = InstalledSupport(VOICES, frozenset(), speaks=True, lacking=lacking)
    found = make_snapshot(files)
    assert dedicated_to(support) is Capability.TEXT_TO_SPEECH
    verdict = judge(found, detect(found, dedicated_to(support)), support)
    assert verdict.compatible is (expected is None)
    assert (expected or "") in (verdict.reason or "")


@pytest.mark.parametrize(("architecture", "runs"), [("qwen3_tts", True), ("soprano", False)])
def test_of_voices_published_for_pytorch_only_qwen3_runs(
    architecture: str, runs: bool, make_snapshot: Snapshots
) -> None:
    support = InstalledSupport(VOICES, frozenset(), speaks=True)
    found = make_snapshot({"config.json": {"model_type": architecture}, **CODEC}, mlx=False)
    assert judge(found, detect(found, dedicated_to(support)), support).compatible is runs


def test_an_unknown_architecture_or_a_missing_backend_is_named(make_snapshot: Snapshots) -> None:
    assert reason(make_snapshot(), frozenset()) == "Model type llama not supported."
    assert reason(make_snapshot(), frozenset(), frozenset()) == "mlx-lm not installed"
    assert reason(make_snapshot({"config.json": {"a": 1}})) == "config.json missing model_type field"
    speech = make_snapshot({"config.json": {"model_type": "whisperx"}})
    assert reason(speech, frozenset()) == "Model type 'whisperx' not supported by mlx-audio"


def test_a_vision_model_runs_when_either_backend_knows_it(make_snapshot: Snapshots) -> None:
    found = make_snapshot({"config.json": VISION, "preprocessor_config.json": {}})
    assert reason(found, frozenset({Library.MLX_VLM})) is None
    assert reason(found, frozenset({Library.MLX_LM})) is None
    assert reason(found, frozenset()) == "Model type llava not supported."


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_code_of_the_model_is_refused_wherever_the_vision_backend_would_find_it(
    place: str, make_snapshot: Snapshots
) -> None:
    files: dict[str, Any] = {"config.json": VISION, "preprocessor_config.json": {}}
    nested = {"nested": [{"auto_map": {"AutoModel": "evil.Model"}}]}
    found = make_snapshot(files | {place: files.get(place, {}) | nested})
    assert reason(found) == f"requires executing model-supplied code ({place}: auto_map)"


def test_code_that_mlx_lm_ignores_is_harmless(make_snapshot: Snapshots) -> None:
    config = {"model_type": "phi3", "auto_map": {"AutoModel": "modeling_phi3.Phi3"}}
    assert reason(make_snapshot({"config.json": config})) is None
    assert reason(make_snapshot({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["t.T", None]}}})) is None


def test_a_tokenizer_that_exists_only_as_code_is_refused(make_snapshot: Snapshots) -> None:
    files = {
        "tokenizer.json": None,
        "qwen.tiktoken": 100,
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["t.T", None]}},
    }
    assert reason(make_snapshot(files)) == "requires executing model-supplied code (tokenizer_config.json: auto_map)"


@pytest.mark.parametrize("config", [{"model_file": "evil.py"}, {"text_config": {"model_file": "evil.py"}}])
def test_a_model_file_is_always_refused(config: dict[str, Any], make_snapshot: Snapshots) -> None:
    found = make_snapshot({"config.json": {"model_type": "llama"} | config})
    assert reason(found) == "requires executing model-supplied code (config.json: model_file)"


def test_an_empty_request_for_code_is_none(make_snapshot: Snapshots) -> None:
    assert reason(make_snapshot({"config.json": {"model_type": "llama", "model_file": None}})) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("weights.00.safetensors", "Legacy format not supported by mlx-lm"),
        ("pytorch_model-00001.safetensors", "Legacy format not supported by mlx-lm"),
        ("foo.safetensors", "No weights named model*.safetensors, the only ones mlx-lm loads"),
        ("model-q4.safetensors", None),
    ],
)
def test_weights_must_have_names_the_backend_looks_for(
    name: str, expected: str | None, make_snapshot: Snapshots
) -> None:
    assert reason(make_snapshot({"model.safetensors": None, name: 400})) == expected


def test_an_embedding_model_needs_an_architecture_that_gives_vectors(make_snapshot: Snapshots) -> None:
    assert reason(make_snapshot({"config.json": {"model_type": "bert"}})) is None
    llama = make_snapshot(
        {"config.json": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}}, name="org/embedder"
    )
    assert reason(llama) == "Embedding architecture not supported: llama"
