"""What the registry reads from the installed libraries, against the libraries themselves."""

import importlib
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxk.adapters.mlx.compatibility import Library
from mlxk.adapters.mlx.registry import MlxBackendRegistry
from mlxk.adapters.mlx.spoken_families import FAMILIES, REFUSED
from mlxk.domain.models.detection import detect
from mlxk.domain.models.file_formats import Document
from mlxk.domain.models.model import Capability
from mlxk.domain.models.snapshot import ModelSnapshot

NOT_MODELS = ("base", "cache", "rope_utils", "switch_layers", "pipeline", "nosuchtype", "Llama", "a/b", "..", "")

MLX_LM = """
    llama mistral qwen2 qwen3 qwen3_moe qwen3_next gemma gemma2 gemma3 gemma3_text gemma3n gemma4 gemma4_unified
    phi phi3 phi-msft phixtral phimoe mixtral cohere cohere2 deepseek deepseek_v2 deepseek_v3 kimi_k2
    joyai_llm_flash falcon_mamba falcon_h1 mamba mamba2 gpt2 gpt_neox gpt_oss glm4 glm4_moe granite internlm2
    jamba lfm2 lfm2-vl lille-130m llama4 llava minimax minimax_m2 nemotron-nas olmo2 openelm pixtral qwen2_5_vl
    qwen2_vl smollm3 starcoder2 stablelm xverse iquestcoder Klear klear mllama bert whisper
"""

MLX_VLM = """
    llava llava_next llava_qwen2 llava-qwen2 bunny-llama pixtral mllama gemma3 gemma3n gemma4 qwen2_vl
    qwen2_5_vl qwen3_vl qwen3_omni_moe idefics2 idefics3 smolvlm paligemma phi3_v phi4mm phi4-siglip
    internvl_chat molmo molmo2 florence2 deepseek_vl_v2 kimi_vl mistral3 llama4 lfm2_vl lfm2-vl LFM2-VL
    aya_vision cohere2_vision granite_vision granite-vision moondream1 jvlm glm4v ernie4_5_moe_vl hunyuan_vl
    minicpmo bert modernbert xlm_roberta siglip whisper voxtral sam3.1_video rf-detr fastvlm attention pooling
"""

MLX_AUDIO = """
    whisper voxtral voxtral_realtime parakeet parakeet_tdt vibevoice vibevoice_asr qwen3_asr qwen2_audio canary
    moonshine mms granite_speech granite_speech_plus glm glmasr sensevoice fireredasr2 cohere_asr wav2vec nemo
    lasr_ctc nemotron_asr mimo llama kokoro bark
"""


def mlx_lm_loads(model_type: str) -> bool:
    loader = importlib.import_module("mlx_lm.utils")
    try:
        loader._get_classes({"model_type": model_type})
    except (ValueError, AttributeError):  # unknown; or a module of building blocks
        return False
    return True


def mlx_vlm_loads(model_type: str) -> bool:
    loader = importlib.import_module("mlx_vlm.utils")
    try:
        architecture, _ = loader.get_model_and_args({"model_type": model_type})
    except (ValueError, ImportError, KeyError):  # no library agrees with another on what an odd name raises
        return False
    return hasattr(architecture, "Model") and hasattr(architecture, "ModelConfig")


def mlx_audio_loads(model_type: str) -> bool:
    aliases = importlib.import_module("mlx_audio.stt.utils").MODEL_REMAPPING
    try:
        architecture, _ = importlib.import_module("mlx_audio.utils").get_model_class(model_type, None, "stt", aliases)
    except (ValueError, ImportError):
        return False
    return hasattr(architecture, "Model")


@pytest.mark.mlx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("backend", "types", "loads"),
    [
        (Library.MLX_LM, MLX_LM, mlx_lm_loads),
        (Library.MLX_VLM, MLX_VLM, mlx_vlm_loads),
        (Library.MLX_AUDIO, MLX_AUDIO, mlx_audio_loads),
    ],
    ids=["mlx-lm", "mlx-vlm", "mlx-audio"],
)
def test_a_type_is_supported_exactly_when_the_library_has_a_class_for_it(
    backend: Library, types: str, loads: Callable[[str], bool]
) -> None:
    registry = MlxBackendRegistry()
    assert registry.installed(backend)
    supported = {name: registry.supports(backend.value, name) for name in (*types.split(), *NOT_MODELS)}
    assert supported == {name: loads(name) for name in supported}


@pytest.mark.mlx
@pytest.mark.filterwarnings("ignore")
def test_embedding_models_are_supported_under_the_names_their_loader_maps() -> None:
    aliases = importlib.import_module("mlx_vlm.embedding_loader").EMBEDDING_MODEL_REMAPPING
    registry = MlxBackendRegistry()
    assert aliases
    assert all(registry.supports("mlx-vlm", alias) for alias in aliases)


def test_what_only_speaks_is_a_voice() -> None:
    registry = MlxBackendRegistry()
    voices = ("qwen3_tts", "soprano", "kokoro", "kitten_tts", "bark")
    assert [registry.dedicated_to(each) for each in voices] == [Capability.TEXT_TO_SPEECH] * 5
    others = {"whisper": Capability.AUDIO, "llama": None, "qwen3": None, "dense": None, "nothing": None}
    assert {each: registry.dedicated_to(each) for each in others} == others


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("csm", "it fetches codec and tokenizer from elsewhere"),
        ("bark", "it fetches a tokenizer from elsewhere"),
        ("arktts", "it was not tried"),
    ],
)
def test_a_voice_of_another_family_is_refused_by_name_with_the_reason(architecture: str, why: str) -> None:
    document = Document({"model_type": architecture, "quantization": {"bits": 4}})
    files = {"config.json": 1, "model.safetensors": 300}
    snapshot = ModelSnapshot("org/voice", files=files, documents={"config.json": document})
    reason = MlxBackendRegistry().judge(snapshot, detect(snapshot, Capability.TEXT_TO_SPEECH)).reason
    assert (reason or "").startswith(
        f"Text to speech of '{architecture}' is not supported: {why}; supported are: kitten"
    )


def test_every_family_that_the_library_speaks_with_is_known_and_documented() -> None:
    speech = importlib.import_module("mlx_audio.tts.utils")
    backbones, same = {"dense", "llama", "qwen3"}, {"moss_tts_delay", "moss_tts_local"}
    packages = set(speech.get_available_models()) - backbones
    assert (packages | set(speech.MODEL_REMAPPING)) - FAMILIES.keys() == REFUSED.keys()
    page = (Path(__file__).parents[2] / "docs" / "speech-out.md").read_text(encoding="utf-8")
    assert {name for name in packages - same if f"`{name}`" not in page} == set()


def test_packages_that_a_voice_needs_are_looked_for_without_importing_them(tmp_path: Path) -> None:
    family = tmp_path / "mlx_audio" / "tts" / "models" / "kokoro"
    for folder in (family, tmp_path / "mlx_audio" / "stt" / "models"):
        folder.mkdir(parents=True)
    (tmp_path / "mlx_audio" / "__init__.py").touch()
    (family / "__init__.py").write_text("from .kokoro import Model\n")
    document = Document({"model_type": "kokoro", "quantization": {"bits": 4}})
    files = {"config.json": 1, "model.safetensors": 300, "voices/af_heart.safetensors": 300}
    snapshot = ModelSnapshot("org/kokoro", files=files, documents={"config.json": document})
    facts = detect(snapshot, Capability.TEXT_TO_SPEECH)
    reason = MlxBackendRegistry([str(tmp_path)]).judge(snapshot, facts).reason
    assert reason == "Text to speech of 'kokoro' needs the Python package misaki[en], not installed"
    for name in ("misaki", "en_core_web_sm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError\n")
    assert MlxBackendRegistry([str(tmp_path)]).judge(snapshot, facts).compatible


def test_asking_imports_no_library_and_takes_milliseconds() -> None:
    program = """
        import sys, time
        from mlxk.adapters.mlx.registry import MlxBackendRegistry
        from mlxk.adapters.mlx.compatibility import Library
        start = time.process_time()
        registry = MlxBackendRegistry()
        answers = [registry.supports(backend.value, kind) for backend, kind in
                   [(Library.MLX_LM, "llama"), (Library.MLX_VLM, "llava"), (Library.MLX_AUDIO, "whisper")]]
        print(all(answers), time.process_time() - start)
        print(*sorted({name.partition(".")[0] for name in sys.modules} & {"mlx", "mlx_lm", "mlx_vlm", "mlx_audio"}))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    answers, imported = output.splitlines()
    supported, seconds = answers.split()
    assert supported == "True"
    assert float(seconds) < 0.05  # about 3 ms; the limit allows for a busy machine
    assert imported == ""


def test_a_second_question_costs_nothing() -> None:
    registry = MlxBackendRegistry()
    registry.supports("mlx-lm", "llama")
    start = time.process_time()
    for _ in range(1000):
        registry.supports("mlx-lm", "llama")
    assert time.process_time() - start < 0.05


def library(root: Path, table: str) -> MlxBackendRegistry:
    models = root / "mlx_lm" / "models"
    models.mkdir(parents=True)
    (models / "llama.py").write_text("class ModelArgs: ...\nclass Model: ...\n")
    (models / "again.py").write_text("from .llama import Model, ModelArgs\n")
    (models / "blocks.py").write_text("class ModelArgs: ...\nclass Models: ...\n")
    (models / "notes.txt").write_text("class Model: ...\n")
    (models / "_private.py").write_text("class Model: ...\n")
    (root / "mlx_lm" / "__init__.py").touch()
    (root / "mlx_lm" / "utils.py").write_text(table)
    return MlxBackendRegistry([str(root)])


@pytest.mark.parametrize(
    "table",
    [
        'MODEL_REMAPPING = {"mistral": "llama"}\n',
        'import os\n\nMODEL_REMAPPING = {\n    "x": "y",\n    "mistral": "llama",  # a comment\n}\n',
        "MODEL_REMAPPING: dict[str, str] = {'mistral': 'llama'}\n",
    ],
)
def test_a_table_is_read_however_it_is_laid_out(tmp_path: Path, table: str) -> None:
    registry = library(tmp_path, table)
    assert registry.supports("mlx-lm", "mistral")
    assert not registry.supports("mlx-lm", "x")


@pytest.mark.parametrize("table", ["", "MODEL_REMAPPING = make()\n", "MODEL_REMAPPING = {oops: 1}\n", "\0", "{" * 1000])
def test_a_table_that_cannot_be_read_leaves_the_modules(tmp_path: Path, table: str) -> None:
    registry = library(tmp_path, table)
    asked = ("llama", "again", "blocks", "notes", "_private", "mistral")
    assert [name for name in asked if registry.supports("mlx-lm", name)] == ["llama", "again"]


def test_a_package_without_models_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "mlx_lm").mkdir()
    (tmp_path / "mlx_lm" / "__init__.py").touch()
    assert not MlxBackendRegistry([str(tmp_path)]).installed(Library.MLX_LM)
