"""Compatibility: which MLX library runs a model, or the first reason why none can.

    text              mlx-lm, or mlx-vlm when it alone knows the architecture; mlx-vlm for vision models in any case, so
                      that text and images share one copy of the weights and one batch
    images, audio     mlx-vlm, for models that generate text
    speech to text    mlx-audio
    text to speech    mlx-audio, the families of ``spoken_families``
    embeddings        mlx-vlm

Pure functions of a model's facts and the installed libraries. A model is refused where loading it would execute code
that came with it: ``model_file`` for all libraries; ``auto_map`` for mlx-vlm and mlx-audio, whose processors follow it
except for ``OWN_PROCESSORS``. mlx-lm ignores ``auto_map`` in ``config.json``, so it is harmless there. Weights that
other libraries have quantized are accepted in the methods and forms that the MLX library loads.
"""

import enum
from collections.abc import Callable, Iterator, Mapping

import attrs

from mlxk.adapters.mlx.spoken_families import voice_refusal
from mlxk.domain.errors import Remedy
from mlxk.domain.models.detection import Facts, foreign_quantization
from mlxk.domain.models.model import Capability, Framework, ModelType, Origin, Runtime
from mlxk.domain.models.reference import is_path
from mlxk.domain.models.snapshot import (
    ADAPTER_CONFIG,
    CONFIG,
    MODELOPT_CONFIG,
    PREPROCESSOR_CONFIG,
    PROCESSOR_CONFIG,
    TOKENIZER_CONFIG,
    ModelSnapshot,
)


class Library(enum.Enum):
    """An MLX library; the values are the names of the distributions."""

    MLX_LM = "mlx-lm"
    MLX_VLM = "mlx-vlm"
    MLX_AUDIO = "mlx-audio"


EMBEDDING_ARCHITECTURES = frozenset(
    {
        "bert",
        "colidefics3",
        "colqwen2_5",
        "embedding_gemma2",
        "gemma3_embedding",
        "gemma3_text",
        "lfm2",
        "lfm2_embedding",
        "lfm2_colbert",
        "llama_bidirec",
        "llama_nemotron_vl_embedding",
        "ministral3",
        "ministral3_embedding",
        "modernbert",
        "qwen3",
        "qwen3_embedding",
        "qwen3_vl",
        "qwen3_vl_embedding",
        "xlm-roberta",
        "xlm_roberta",
    }
)
"""Architectures that mlx-vlm's embedding loader supports; it would load others as text generators."""

_CROSS_ENCODERS = frozenset({"bert", "modernbert", "xlm-roberta", "xlm_roberta"})
"""Architectures whose classifiers mlx-vlm implements."""

_FOREIGN_TOKENIZERS = frozenset({"moondream1", "moondream2"})
"""Architectures whose processors in mlx-vlm load the tokenizer of another repository, and let its code run."""

OWN_PROCESSORS = frozenset({"florence2", "nemotron_parse"})
"""Architectures published with ``auto_map`` that mlx-vlm does not follow, since it implements their processors."""

_LEGACY = ("weights.", "pytorch_model-")
_HARMLESS: tuple[object, ...] = (None, {}, [])
_PROCESSOR_FILES = (CONFIG, TOKENIZER_CONFIG, PREPROCESSOR_CONFIG, PROCESSOR_CONFIG)


@attrs.frozen
class InstalledSupport:
    """Support of the installed libraries for one architecture."""

    installed: frozenset[Library]
    """The installed libraries."""
    loading: frozenset[Library]
    """The libraries that implement the architecture."""
    fp8: frozenset[Library] = frozenset()
    """The libraries that implement it for weights in FP8."""
    speaks: bool = False
    """Whether mlx-audio implements it as text to speech, and no library as anything else."""
    lacking: tuple[str, ...] = ()
    """Packages that its text to speech needs and that are not installed."""
    writes: bool = False
    """Whether only mlx-vlm implements it, with a language model that generates text."""
    instead: str | None = None
    """What it does in mlx-vlm instead of writing text, as a predicate; None when it writes, or mlx-lm implements it."""


def judge(snapshot: ModelSnapshot, facts: Facts, support: InstalledSupport) -> Runtime:
    """Return which installed libraries can run a model, or the first reason why none can."""
    if facts.model_type is ModelType.ADAPTER:
        return _adapter_runtime(snapshot)
    if facts.framework is not Framework.MLX and not _is_loaded_from_pytorch(snapshot, facts):
        reason = f"Incompatible framework: {facts.framework.value}"
        return Runtime(compatible=False, reason=reason, remedy=Remedy.FIND_CONVERSION)
    own_code = _own_code(snapshot, ("model_file",), (CONFIG,))
    if own_code:
        return Runtime(compatible=False, reason=own_code)
    libraries, refusal = _RULES.get(facts.model_type, _text_rule)(snapshot, facts, support)
    refuses_weights = refusal is not None and refusal in _weight_refusals(snapshot, libraries, support)
    remedy = Remedy.FIND_CONVERSION if refuses_weights else None
    return Runtime(refusal is None, refusal, tuple(library.value for library in libraries), remedy)


def _adapter_runtime(snapshot: ModelSnapshot) -> Runtime:
    """Judge an adapter; it runs wherever its base model does."""
    if snapshot.adapter_base is None:
        return Runtime(compatible=False, reason=f"{ADAPTER_CONFIG} does not say which model it was trained on")
    if snapshot.origin is Origin.CACHE and is_path(snapshot.adapter_base):
        return Runtime(compatible=False, reason="Its base is named by a path of its maker's machine")
    return Runtime(compatible=True, backends=(Library.MLX_LM.value,))


def _weight_refusals(
    snapshot: ModelSnapshot, libraries: tuple[Library, ...], support: InstalledSupport
) -> list[str | None]:
    """Return the refusals that concern the form of the weights: another conversion of the model may not have them."""
    return [
        refusal
        for library in libraries
        for refusal in (_weights_refusal(snapshot, library), _quantization_refusal(snapshot, library, support))
    ]


def _is_loaded_from_pytorch(snapshot: ModelSnapshot, facts: Facts) -> bool:
    """Whether the weights are PyTorch safetensors, whose names and layouts the loaders convert.

    Of speech models, mlx-audio loads only Whisper and Qwen3-TTS in that form.
    """
    is_speech = facts.model_type in (ModelType.AUDIO, ModelType.VOICE)
    loadable = not is_speech or (facts.architecture or "").lower() in ("whisper", "qwen3_tts")
    return facts.framework is Framework.PYTORCH and bool(snapshot.top_level(".safetensors")) and loadable


def dedicated_to(support: InstalledSupport) -> Capability | None:
    """Return speech to text or text to speech where an architecture is implemented for that alone; else None."""
    if support.speaks:
        return Capability.TEXT_TO_SPEECH
    return Capability.AUDIO if support.loading == {Library.MLX_AUDIO} else None


def text_libraries(facts: Facts, support: InstalledSupport) -> tuple[Library, ...]:
    """Return the libraries that can generate text with a model, the preferred one first."""
    loading, media = support.loading, _takes_media(facts)
    if Library.MLX_VLM not in loading or not (media or (support.writes and Library.MLX_LM not in loading)):
        return (Library.MLX_LM,)
    if Library.MLX_LM not in loading:
        return (Library.MLX_VLM,)
    both = (Library.MLX_LM, Library.MLX_VLM)
    return both[::-1] if facts.can(Capability.VISION) else both


_Verdict = tuple[tuple[Library, ...], str | None]
"""The libraries for a model, and the reason why they cannot run it; None when they can."""


def _speech_rule(snapshot: ModelSnapshot, facts: Facts, support: InstalledSupport) -> _Verdict:
    voxtral = (facts.architecture or "").lower() == "voxtral"
    tekken_only = "tekken.json" in snapshot.files and "tokenizer.json" not in snapshot.files
    return (Library.MLX_AUDIO,), (
        _unavailable(Library.MLX_AUDIO, facts, support)
        or ("Voxtral tekken.json tokenizer not supported by mlx-audio" if voxtral and tekken_only else None)
        or _weights_refusal(snapshot, Library.MLX_AUDIO)
        or _quantization_refusal(snapshot, Library.MLX_AUDIO, support)
        or _own_code(snapshot, ("auto_map",), _PROCESSOR_FILES)
    )


def _voice_rule(snapshot: ModelSnapshot, facts: Facts, support: InstalledSupport) -> _Verdict:
    return (Library.MLX_AUDIO,), (
        (None if Library.MLX_AUDIO in support.installed else _unavailable(Library.MLX_AUDIO, facts, support))
        or voice_refusal(facts.architecture or "", snapshot.files, support.lacking)
        or _weights_refusal(snapshot, Library.MLX_AUDIO)
        or _quantization_refusal(snapshot, Library.MLX_AUDIO, support)
        or _own_code(snapshot, ("auto_map",), _PROCESSOR_FILES)
    )


def _embedding_rule(snapshot: ModelSnapshot, facts: Facts, support: InstalledSupport) -> _Verdict:
    if facts.architecture and facts.architecture.lower() not in EMBEDDING_ARCHITECTURES:
        return (), f"Embedding architecture not supported: {facts.architecture}"
    return (Library.MLX_VLM,), _media_refusal(snapshot, facts, support)


def _reranker_rule(snapshot: ModelSnapshot, facts: Facts, support: InstalledSupport) -> _Verdict:
    architecture = (facts.architecture or "").lower()
    if architecture == "qwen3":
        return _text_rule(snapshot, facts, support)
    if architecture not in _CROSS_ENCODERS and architecture != "qwen3_vl":
        return (), f"Reranker architecture not supported: {facts.architecture}"
    return (Library.MLX_VLM,), _media_refusal(snapshot, facts, support)


def _text_rule(snapshot: ModelSnapshot, facts: Facts, support: InstalledSupport) -> _Verdict:
    if support.instead and Library.MLX_LM not in support.loading:
        return (), f"Model type {facts.architecture} {support.instead}"
    libraries = text_libraries(facts, support)
    if Library.MLX_VLM in libraries or (_takes_media(facts) and Library.MLX_LM not in support.loading):
        return libraries, _media_refusal(snapshot, facts, support)
    return libraries, (
        _weights_refusal(snapshot, Library.MLX_LM)
        or _unavailable(Library.MLX_LM, facts, support)
        or _quantization_refusal(snapshot, Library.MLX_LM, support)
        or (None if "tokenizer.json" in snapshot.files else _own_code(snapshot, ("auto_map",), (TOKENIZER_CONFIG,)))
    )


_RULES: dict[ModelType, Callable[[ModelSnapshot, Facts, InstalledSupport], _Verdict]] = {
    ModelType.AUDIO: _speech_rule,
    ModelType.EMBEDDING: _embedding_rule,
    ModelType.RERANKER: _reranker_rule,
    ModelType.VOICE: _voice_rule,
}
"""The rule of each model type; all others generate text."""


def _media_refusal(snapshot: ModelSnapshot, facts: Facts, support: InstalledSupport) -> str | None:
    has_own_processor = (facts.architecture or "").lower() in OWN_PROCESSORS
    return (
        _unavailable(Library.MLX_VLM, facts, support)
        or _weights_refusal(snapshot, Library.MLX_VLM)
        or _quantization_refusal(snapshot, Library.MLX_VLM, support)
        or (None if has_own_processor else _own_code(snapshot, ("auto_map",), _PROCESSOR_FILES))
        or foreign_tokenizer(facts.architecture)
    )


def foreign_tokenizer(architecture: str | None) -> str | None:
    """Return the refusal of an architecture whose processor would run code of another model; None for all others."""
    if architecture is None or architecture.lower() not in _FOREIGN_TOKENIZERS:
        return None
    return f"Model type {architecture} takes its tokenizer from another model, with code of that model"


def _unavailable(library: Library, facts: Facts, support: InstalledSupport) -> str | None:
    """Return why a library cannot load the architecture; None when it can."""
    if library not in support.installed:
        return f"{library.value} not installed"
    if facts.architecture is None:
        return f"{CONFIG} missing model_type field"
    if library in support.loading:
        return None
    if library is Library.MLX_AUDIO:
        return f"Model type '{facts.architecture}' not supported by {library.value}"
    return f"Model type {facts.architecture} not supported."


def _weights_refusal(snapshot: ModelSnapshot, library: Library) -> str | None:
    """Return why a library's file pattern does not match the weights; None when it does."""
    names = snapshot.top_level(".safetensors")
    if library is not Library.MLX_LM:
        matches = any(not name.endswith("consolidated.safetensors") for name in names)
        return None if matches else f"No *.safetensors that {library.value} would load"
    if any(name.startswith("model") for name in names):
        return None
    if any(name.startswith(_LEGACY) for name in names):
        return "Legacy format not supported by mlx-lm"
    return "No weights named model*.safetensors, the only ones mlx-lm loads"


def _own_code(snapshot: ModelSnapshot, keys: tuple[str, ...], paths: tuple[str, ...]) -> str | None:
    """Return the refusal for a JSON file that names code of the model, at any depth; None when there is none."""
    for path in paths:
        pending: list[object] = [snapshot.document(path).value]
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                key = next((key for key in keys if value.get(key) not in _HARMLESS), None)
                if key:
                    return f"requires executing model-supplied code ({path}: {key})"
                pending.extend(child for child in value.values() if isinstance(child, (dict, list)))
            elif isinstance(value, list):
                pending.extend(child for child in value if isinstance(child, (dict, list)))
    return None


def _takes_media(facts: Facts) -> bool:
    return facts.can(Capability.VISION) or facts.can(Capability.AUDIO)


def _quantization_refusal(snapshot: ModelSnapshot, library: Library, support: InstalledSupport) -> str | None:
    """Return why a library cannot load weights that another library has quantized; None when it can.

    MLX states its own quantization under ``quantization``; other libraries use ``quantization_config`` or a separate
    file.
    """
    fp8 = library in support.fp8
    if isinstance(snapshot.config.get("quantization"), dict):
        return None
    quantization = _foreign_quantization(snapshot)
    if quantization is None:
        fp8_dtype = next((dtype for dtype in _dtypes(snapshot) if dtype.startswith("F8_E")), None)
        loads = fp8_dtype is None or fp8
        return None if loads else f"Weights in {fp8_dtype} without a quantization that {library.value} loads"
    method = quantization.get("quant_method")
    if not isinstance(method, str):
        return "Quantized by a method that its config does not name"
    form = _form(quantization)
    accepted = _METHODS[library].get(method)
    if accepted is None or (accepted and form not in accepted):
        return f"Quantized by {method}{f' ({form})' if form else ''}, which {library.value} does not load"
    if method == "fp8" and not fp8 and not _is_mxfp8(quantization):
        return f"Quantized by fp8, which {library.value} does not load for this architecture"
    if method in {"awq", "gptq"} and not _is_packed_by_outputs(snapshot):
        return f"Quantized by {method} in a packing that {library.value} does not load"
    return None


_METHODS: dict[Library, dict[str, frozenset[str]]] = {
    Library.MLX_LM: {
        "awq": frozenset({"4"}),
        "bitnet": frozenset(),
        "compressed-tensors": frozenset({"nvfp4-pack-quantized", "mxfp4-pack-quantized", "pack-quantized"}),
        "fp8": frozenset(),
        "gptq": frozenset({"4"}),
        "modelopt": frozenset({"NVFP4"}),
        "mxfp4": frozenset(),
        "mxfp8": frozenset(),
    },
    Library.MLX_VLM: {
        "compressed-tensors": frozenset({"mxfp4-pack-quantized", "pack-quantized"}),
        "fp8": frozenset(),
        "modelopt": frozenset({"NVFP4", "MXFP8"}),
        "mxfp4": frozenset(),
    },
    Library.MLX_AUDIO: {},
}
"""The quantization methods that each library loads, with their forms; an empty set stands for every form.

Names are compared as they are written, as the libraries do: neither ``AWQ`` nor ``compressed_tensors`` is loaded.
"""


def _foreign_quantization(snapshot: ModelSnapshot) -> Mapping[str, object] | None:
    quantization = foreign_quantization(snapshot.config)
    if quantization:
        return quantization
    separate = snapshot.document(MODELOPT_CONFIG).mapping.get("quantization")
    return {"quant_method": "modelopt", **separate} if isinstance(separate, dict) else None


def _form(quantization: Mapping[str, object]) -> str:
    """Return the form of a quantization method: its format, algorithm or bits; empty where none is stated."""
    settings = quantization.get("quantization")
    for part in (quantization, settings if isinstance(settings, dict) else {}):
        for key in ("format", "quant_algo", "bits"):
            if isinstance(part.get(key), (str, int)):
                return str(part[key])
    return "4" if quantization.get("quant_method") in {"awq", "gptq"} else ""


def _is_mxfp8(quantization: Mapping[str, object]) -> bool:
    return quantization.get("scale_fmt") == "ue8m0" and quantization.get("weight_block_size") == [32, 32]


def _is_packed_by_outputs(snapshot: ModelSnapshot) -> bool:
    """Whether eight outputs share a word, as AWQ packs them; GPTQ packs inputs, and may reorder them."""
    shapes = {name: _shape(tensor) for header in snapshot.headers.values() for name, tensor in header.tensors.items()}
    if any(name.endswith(".g_idx") for name in shapes):
        return False
    for name, shape in shapes.items():
        scales = shapes.get(f"{name.removesuffix('qweight')}scales", ())
        if name.endswith(".qweight") and len(shape) == len(scales) == 2 and shape[1] * 8 != scales[1]:
            return False
    return True


def _shape(tensor: object) -> tuple[int, ...]:
    shape = tensor.get("shape") if isinstance(tensor, dict) else None
    return tuple(size for size in shape if type(size) is int) if isinstance(shape, list) else ()


def _dtypes(snapshot: ModelSnapshot) -> Iterator[str]:
    """Yield the dtypes of the weights, without those of scales."""
    for header in snapshot.headers.values():
        for name, tensor in header.tensors.items():
            if isinstance(tensor, dict) and name.endswith("weight"):
                yield str(tensor.get("dtype"))
