"""Detection of framework, architecture, model type, capabilities and context length, from a model's files alone.

The backend registry judges whether an installed backend can run the model, ``domain.models.integrity`` whether its
files are complete.
"""

import re
from collections.abc import Iterator, Mapping

import attrs

from mlxk.domain.models.model import DEDICATED_TYPES, Capability, Framework, ModelType, Quantization
from mlxk.domain.models.snapshot import (
    PREPROCESSOR_CONFIG,
    PROCESSOR_CONFIG,
    TEMPLATE_DOCUMENT,
    TOKENIZER_CONFIG,
    ModelSnapshot,
    chat_templates,
    text_section,
)

_VISION_ARCHITECTURES = frozenset(
    {"llava", "llava_next", "pixtral", "qwen2_vl", "phi3_v", "mllama", "paligemma", "idefics", "smolvlm"}
)
_VISION_FILES = (PREPROCESSOR_CONFIG, PROCESSOR_CONFIG, "image_processor_config.json")
_VISION_SIZES = ("spatial_patch_size", "vision_n_layers", "vision_num_layers")
"""Top-level fields of configs without ``vision_config`` that describe a vision encoder. Such models have no
preprocessor file."""

_WITHOUT_PREPROCESSOR = ("d1_omni", "deepseek_v41")
"""Architectures with ``vision_config`` and without a preprocessor file."""
_VIDEO_PREPROCESSOR = "video_preprocessor_config.json"
_SENTENCE_TRANSFORMERS = "modules.json"

_SPEECH_WORDS = ("whisper", "vibevoice", "voxtral")
_AUDIO_PARTS = ("audio_config", "sound_config", "audio_processor")
_AUDIO_WORDS = ("gemma3n", "voxtral", "whisper", "vibevoice", "audio")
_NOT_TRANSLATING = re.compile(r"whisper-(tiny|base|small|medium)\.en|whisper-.*turbo")

_MULTILINGUAL_TOKENS = 51_865
"""Vocabulary of the smallest multilingual Whisper; English-only ones have fewer tokens."""

_ENCODERS = frozenset({"bert", "xlm-roberta", "xlm_roberta", "modernbert", "nomic_bert"})
_CROSS_ENCODERS = _ENCODERS - {"nomic_bert"}
_DECODERS = frozenset({"qwen3", "mistral"})
_LATE_INTERACTION = frozenset({"colqwen2_5", "colidefics3", "lfm2_colbert"})
_IMAGE_EMBEDDERS = frozenset({"qwen3_vl_embedding", "colqwen2_5", "colidefics3"})
_OTHER_EMBEDDERS = frozenset({"embedding_gemma2", "lfm2_colbert", "llama_nemotron_vl_embedding"})
_COLBERT_PROJECTION = "1_Dense/config.json"
"""The projection of token vectors in a sentence-transformers model without pooling."""

_ANSWERING_RERANKERS = frozenset({"qwen3", "qwen3_vl"})
"""Architectures of rerankers that answer whether a document meets a query; only their names tell them from decoders."""

_VOICE_FILE = re.compile(r"(?:voices|voice_embedding)/([^/]+)\.safetensors")
_USUAL_VOICES = ("af_heart", "casual_male", "expr-voice-5-m")
"""The default voices of model families."""

_VOICE_CLONERS = frozenset({"voxcpm", "voxcpm1.5", "voxcpm2"})

_WRITTEN_IN_CODE = frozenset({"deepseek_v4", "deepseek_v41", "florence2", "hrm_text", "kimi_k3", "nemotron_parse"})
"""Architectures whose conversations a library renders with its own code, without a template file."""

_TEMPLATE_IN_CODE = "chat_template_type"
"""The field of ``tokenizer_config.json`` that names a library's code for rendering."""

_NAMED_FOR_RERANKING = re.compile(r"re-?rank|cross-encoder")

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "context_length", "max_sequence_length", "seq_len")
_MAX_CONTEXT_DIGITS = 12


@attrs.frozen
class Facts:
    """The facts that a model's files state."""

    framework: Framework
    architecture: str | None
    """The config's ``model_type``, or the one that its other fields imply; None when there is none."""
    model_type: ModelType
    capabilities: tuple[Capability, ...]
    context_length: int | None
    """Context window, tokens; None when the config does not state it."""

    def can(self, capability: Capability) -> bool:
        """Whether the model has a capability."""
        return capability in self.capabilities


def detect(snapshot: ModelSnapshot, dedicated: Capability | None = None) -> Facts:
    """Detect the facts about a model.

    Args:
        snapshot: The model's files.
        dedicated: The operation for which the backends support its architecture; None unless it is exactly one.
    """
    model_type = _model_type(snapshot, dedicated)
    return Facts(
        framework=framework(snapshot),
        architecture=architecture(snapshot),
        model_type=model_type,
        capabilities=_capabilities(snapshot, model_type),
        context_length=context_length(snapshot.config),
    )


def framework(snapshot: ModelSnapshot) -> Framework:
    """Return the format of the weights: by evidence of MLX first, then by the kind of files."""
    if (
        snapshot.published_for_mlx
        or snapshot.card.made_for_mlx
        or "quantization" in snapshot.config
        or any(header.written_for_mlx for header in snapshot.headers.values())
    ):
        return Framework.MLX
    if snapshot.has_any(".gguf") and not snapshot.top_level(".safetensors"):
        return Framework.GGUF
    if snapshot.has_any(".safetensors") or any(_is_pytorch(path) for path in snapshot.files):
        return Framework.PYTORCH
    return Framework.UNKNOWN


def architecture(snapshot: ModelSnapshot) -> str | None:
    """Return the architecture's name; NeMo checkpoints are detected by their training class, Kokoro by its parts."""
    named = snapshot.config.get("model_type")
    if isinstance(named, str) and named:
        return named
    if isinstance(snapshot.config.get("istftnet"), dict) and isinstance(snapshot.config.get("plbert"), dict):
        return "kokoro"
    target = snapshot.config.get("target")
    return "parakeet" if isinstance(target, str) and target.startswith("nemo.collections.asr.") else None


def is_speech(snapshot: ModelSnapshot) -> bool:
    """Whether the architecture is, by its name, a speech-to-text model."""
    name = (architecture(snapshot) or "").lower()
    return any(word in name for word in _SPEECH_WORDS)


def voices(snapshot: ModelSnapshot) -> tuple[str, ...]:
    """Return the names of the voices in a model's config and files, the default one first."""
    talker, aliases = snapshot.config.get("talker_config"), snapshot.config.get("voice_aliases")
    speakers = talker.get("spk_id") if isinstance(talker, dict) else None
    names = {match[1] for path in snapshot.files if (match := _VOICE_FILE.fullmatch(path))}
    for table in (speakers, aliases):
        names |= {name for name in table if isinstance(name, str)} if isinstance(table, dict) else set()
    return tuple(sorted(names, key=lambda name: (name not in _USUAL_VOICES, name)))


def clones_voices(config: Mapping[str, object]) -> bool:
    """Whether a text-to-speech model can imitate the voice of a recording; of Qwen3-TTS only the Base variant can."""
    named = _named(config)
    return named in _VOICE_CLONERS or (named == "qwen3_tts" and config.get("tts_model_type", "base") == "base")


def is_vision(snapshot: ModelSnapshot) -> bool:
    """Whether the model reads images."""
    config = snapshot.config
    described = _has_part(config, "vision_config") or needs_no_preprocessor(config)
    if described or _named(config) in _VISION_ARCHITECTURES or config.get("image_processor"):
        return True
    inline = config.get("preprocessor_config")
    if isinstance(inline, dict) and not _reads_video(inline):
        return True
    if _VIDEO_PREPROCESSOR in snapshot.files or _reads_video(snapshot.document(PREPROCESSOR_CONFIG).mapping):
        return False
    return snapshot.has_any(*_VISION_FILES)


def needs_no_preprocessor(config: Mapping[str, object]) -> bool:
    """Whether a model reads images without a preprocessor file."""
    described = _named(config) in _WITHOUT_PREPROCESSOR and _has_part(dict(config), "vision_config")
    return described or any(_positive(config.get(size)) for size in _VISION_SIZES)


def has_chat_template(snapshot: ModelSnapshot) -> bool:
    """Whether the model has a chat template, or a library has code in place of one."""
    coded = snapshot.document(TOKENIZER_CONFIG).mapping.get(_TEMPLATE_IN_CODE)
    return bool(_chat_templates(snapshot) or coded or _named(snapshot.config) in _WRITTEN_IN_CODE)


def chat_template_text(snapshot: ModelSnapshot) -> str:
    """Return the text of the chat templates, joined; empty when there is none."""
    return "\n".join(dict.fromkeys(_chat_templates(snapshot).values()))


def added_tokens(snapshot: ModelSnapshot) -> frozenset[str]:
    """Return the texts of the added tokens in ``tokenizer_config.json``; recent tokenizers list them elsewhere."""
    config = snapshot.document(TOKENIZER_CONFIG).mapping
    decoder = config.get("added_tokens_decoder")
    entries = decoder.values() if isinstance(decoder, dict) else ()
    texts = [entry.get("content") if isinstance(entry, dict) else None for entry in entries]
    special = config.get("additional_special_tokens", config.get("extra_special_tokens"))
    texts += special if isinstance(special, list) else []
    return frozenset(text for text in texts if isinstance(text, str))


def _chat_templates(snapshot: ModelSnapshot) -> dict[str, str]:
    documents = (snapshot.document(path) for path in (TOKENIZER_CONFIG, TEMPLATE_DOCUMENT, PROCESSOR_CONFIG))
    return chat_templates(snapshot.template_files, *documents)


def context_length(config: Mapping[str, object]) -> int | None:
    """Return the context window in tokens, from the config or its section about the language model."""
    for section in (config, text_section(config)):
        for key in _CONTEXT_KEYS:
            tokens = _positive(section.get(key))
            if tokens:
                return tokens
    return None


def quantization(config: dict[str, object]) -> Quantization | None:
    """Return the quantization of the weights; None when there is none or the config states it incorrectly."""
    stated = config.get("quantization")
    if not isinstance(stated, dict):
        return None
    bits, group_size, mode = stated.get("bits"), stated.get("group_size", 64), stated.get("mode", "affine")
    if type(bits) is not int or type(group_size) is not int or not isinstance(mode, str):
        return None
    return Quantization(bits, group_size, mode)


def foreign_quantization(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return a config's ``quantization_config``, as other libraries than MLX's write it; empty without one."""
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        stated = part.get("quantization_config")
        if isinstance(stated, dict) and stated:
            return stated
    return {}


def listed(config: Mapping[str, object]) -> tuple[object, ...]:
    """Return the values of a config's ``architectures``; names of classes if it is valid."""
    classes = config.get("architectures")
    return tuple(classes) if isinstance(classes, list) else ()


def _model_type(snapshot: ModelSnapshot, dedicated: Capability | None) -> ModelType:
    named = _named(snapshot.config)
    if snapshot.is_adapter:
        return ModelType.ADAPTER
    if _is_reranker(snapshot):
        return ModelType.RERANKER
    if _is_embedder(snapshot):
        return ModelType.EMBEDDING
    if named == "chat" or named in _VISION_ARCHITECTURES:
        return ModelType.CHAT
    if dedicated is Capability.TEXT_TO_SPEECH:
        return ModelType.VOICE
    if is_speech(snapshot):
        return ModelType.AUDIO
    if dedicated in DEDICATED_TYPES:
        return DEDICATED_TYPES[dedicated]
    return ModelType.CHAT if has_chat_template(snapshot) or _named_for_chat(snapshot) else ModelType.BASE


def _classes(snapshot: ModelSnapshot) -> str:
    return " ".join(item for item in listed(snapshot.config) if isinstance(item, str)).lower()


def _is_reranker(snapshot: ModelSnapshot) -> bool:
    """Whether it is a reranker: an encoder with one classification output, or a decoder with "rerank" in its name."""
    named = _named(snapshot.config)
    if named in _ANSWERING_RERANKERS:
        return "rerank" in snapshot.short_name
    if named not in _CROSS_ENCODERS or "sequenceclassification" not in _classes(snapshot):
        return False
    labels, names = snapshot.config.get("num_labels"), snapshot.config.get("id2label")
    if type(labels) is not int:
        labels = len(names) if isinstance(names, dict) else None
    return labels == 1 or (labels is None and _NAMED_FOR_RERANKING.search(snapshot.short_name) is not None)


def _is_embedder(snapshot: ModelSnapshot) -> bool:
    """Whether it is an embedding model: an encoder, or a decoder with "embed" in its name."""
    named = _named(snapshot.config)
    classes = _classes(snapshot)
    if named in _ENCODERS:
        return "classification" not in classes
    if named in _IMAGE_EMBEDDERS | _OTHER_EMBEDDERS:
        return True
    if _SENTENCE_TRANSFORMERS in snapshot.files and not is_vision(snapshot):
        return True
    if named == "qwen3_vl":
        return "embed" in snapshot.short_name
    return ("forcausallm" in classes or named in _DECODERS) and "embed" in snapshot.short_name


def _capabilities(snapshot: ModelSnapshot, model_type: ModelType) -> tuple[Capability, ...]:
    if model_type is ModelType.ADAPTER:
        return ()
    dedicated = next((operation for operation, type_ in DEDICATED_TYPES.items() if type_ is model_type), None)
    if dedicated is Capability.AUDIO and _translates(snapshot):
        return (Capability.AUDIO, Capability.AUDIO_TRANSLATE_EN)
    if dedicated is not None:
        capabilities = {dedicated, *_further_capabilities(snapshot, dedicated)}
        return tuple(capability for capability in Capability if capability in capabilities)
    generating = [Capability.TEXT_GENERATION]
    if model_type is ModelType.CHAT:
        generating.append(Capability.CHAT)
    if is_vision(snapshot):
        generating.append(Capability.VISION)
    if _takes_audio(snapshot):
        generating.append(Capability.AUDIO)
    return tuple(generating)


def _further_capabilities(snapshot: ModelSnapshot, dedicated: Capability) -> Iterator[Capability]:
    """Yield the capabilities of a model for one operation besides that operation."""
    named = _named(snapshot.config)
    if dedicated is Capability.EMBEDDINGS:
        has_vision = named == "embedding_gemma2" and bool(snapshot.config.get("vision_config"))
        if has_vision or named in _IMAGE_EMBEDDERS or named == "qwen3_vl":
            yield Capability.VISION
        if named in _LATE_INTERACTION or (named == "lfm2" and _COLBERT_PROJECTION in snapshot.files):
            yield Capability.MULTI_VECTOR
    if dedicated is Capability.RERANK and named == "qwen3_vl":
        yield Capability.VISION
    if dedicated is Capability.TEXT_TO_SPEECH and clones_voices(snapshot.config):
        yield Capability.VOICE_CLONING


def _translates(snapshot: ModelSnapshot) -> bool:
    """Whether a speech model translates: it is a multilingual Whisper, and not a variant without that training."""
    if _named(snapshot.config) != "whisper":
        return False
    tokens = next((snapshot.config[key] for key in ("vocab_size", "n_vocab") if key in snapshot.config), None)
    english_only = isinstance(tokens, int) and tokens < _MULTILINGUAL_TOKENS
    return not english_only and _NOT_TRANSLATING.search(snapshot.short_name) is None


def _takes_audio(snapshot: ModelSnapshot) -> bool:
    """Whether a model that generates text also takes audio."""
    extractor = snapshot.document(PREPROCESSOR_CONFIG).mapping.get("feature_extractor_type")
    named = _named(snapshot.config)
    return (
        _has_part(snapshot.config, *_AUDIO_PARTS)
        or any(word in named for word in _AUDIO_WORDS)
        or (isinstance(extractor, str) and "whisper" in extractor.lower())
    )


def _has_part(config: dict[str, object], *names: str) -> bool:
    """Whether a config, or its section ``thinker_config``, has a non-empty section of one of the names."""
    thinker = config.get("thinker_config")
    sections = (config, thinker) if isinstance(thinker, dict) else (config,)
    return any(isinstance(part := section.get(name), dict) and bool(part) for section in sections for name in names)


def _named(config: Mapping[str, object]) -> str:
    """Return the config's ``model_type`` in lower case; empty without one."""
    named = config.get("model_type")
    return named.lower() if isinstance(named, str) else ""


def _named_for_chat(snapshot: ModelSnapshot) -> bool:
    return "instruct" in snapshot.short_name or "chat" in snapshot.short_name


def _reads_video(preprocessor: dict[str, object]) -> bool:
    return preprocessor.get("processor_class") == "AutoVideoProcessor" or "temporal_patch_size" in preprocessor


def _is_pytorch(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith("pytorch_model") and name.endswith(".bin")


def _positive(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MAX_CONTEXT_DIGITS:
        value = int(value)
    return value if type(value) is int and 0 < value < 10**_MAX_CONTEXT_DIGITS else None
