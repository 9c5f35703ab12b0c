"""Detection: the type and the capabilities of a model, from its files alone.

Maps a snapshot to facts: framework, architecture, model type, capabilities, context length. The backend registry judges
whether an installed backend can run the model, ``domain.models.integrity`` whether its files are complete.
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
_EYES = ("spatial_patch_size", "vision_n_layers", "vision_num_layers")
"""Sizes of what reads images, in configs that have no part for it; such models have no file for their preprocessor."""

_WITHOUT_PREPROCESSOR = ("d1_omni", "deepseek_v41")
"""Architectures that have such a part, and no file for their preprocessor either."""
_VIDEO_PREPROCESSOR = "video_preprocessor_config.json"
_SENTENCE_TRANSFORMERS = "modules.json"

_SPEECH_WORDS = ("whisper", "vibevoice", "voxtral")
_AUDIO_PARTS = ("audio_config", "sound_config", "audio_processor")
_AUDIO_WORDS = ("gemma3n", "voxtral", "whisper", "vibevoice", "audio")
_ENGLISH_ONLY = re.compile(r"whisper-(tiny|base|small|medium)\.en|whisper-.*turbo")

_MULTILINGUAL_TOKENS = 51_865
"""Vocabulary of the smallest multilingual Whisper; English-only ones have fewer tokens."""

_ENCODERS = frozenset({"bert", "xlm-roberta", "xlm_roberta", "modernbert", "nomic_bert"})
_CROSS_ENCODERS = _ENCODERS - {"nomic_bert"}
_DECODERS = frozenset({"qwen3", "mistral"})
_LATE_INTERACTION = frozenset({"colqwen2_5", "colidefics3", "lfm2_colbert"})
_PICTURE_EMBEDDERS = frozenset({"qwen3_vl_embedding", "colqwen2_5", "colidefics3"})
_OTHER_EMBEDDERS = frozenset({"embedding_gemma2", "lfm2_colbert", "llama_nemotron_vl_embedding"})
_COLBERT_PROJECTION = "1_Dense/config.json"
"""Where sentence-transformers keeps the projection of the vectors of tokens, beside a model without pooling."""

_ANSWERING_RERANKERS = frozenset({"qwen3", "qwen3_vl"})
"""Architectures of rerankers that are asked whether a document meets a query; their names say what they are."""

_VOICE_FILE = re.compile(r"(?:voices|voice_embedding)/([^/]+)\.safetensors")
_USUAL_VOICES = ("af_heart", "casual_male", "expr-voice-5-m")
"""Those that families take where none is named."""

_VOICE_CLONERS = frozenset({"voxcpm", "voxcpm1.5", "voxcpm2"})

_WRITTEN_IN_CODE = frozenset({"deepseek_v4", "deepseek_v41", "florence2", "hrm_text", "kimi_k3", "nemotron_parse"})
"""Architectures whose conversations a library writes with code of its own, without a template among their files."""

_TEMPLATE_IN_CODE = "chat_template_type"
"""Names that code in ``tokenizer_config.json``."""

_NAMED_FOR_RERANKING = re.compile(r"re-?rank|cross-encoder")

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "context_length", "max_sequence_length", "seq_len")
_MAX_CONTEXT_DIGITS = 12


@attrs.frozen
class Facts:
    """The facts about a model that its files state."""

    framework: Framework
    architecture: str | None
    """The config's ``model_type``, or the one its other fields imply; None when there is none."""
    model_type: ModelType
    capabilities: tuple[Capability, ...]
    context_length: int | None
    """Tokens; None when the config does not state it."""

    def can(self, capability: Capability) -> bool:
        """Whether the model has a capability."""
        return capability in self.capabilities


def detect(snapshot: ModelSnapshot, dedicated: Capability | None = None) -> Facts:
    """Detect the facts about a model.

    Args:
        snapshot: Its files.
        dedicated: The one operation for which the backends know its architecture; None if it is not exactly one.
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
    """Return the format of the weights: evidence of MLX first, then the kind of the files."""
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
    """Return the architecture's name; checkpoints of NeMo state only the class that trained them, Kokoro its parts."""
    named = snapshot.config.get("model_type")
    if isinstance(named, str) and named:
        return named
    if isinstance(snapshot.config.get("istftnet"), dict) and isinstance(snapshot.config.get("plbert"), dict):
        return "kokoro"
    target = snapshot.config.get("target")
    return "parakeet" if isinstance(target, str) and target.startswith("nemo.collections.asr.") else None


def is_speech(snapshot: ModelSnapshot) -> bool:
    """Whether the architecture's name is that of a speech-to-text model."""
    name = (architecture(snapshot) or "").lower()
    return any(word in name for word in _SPEECH_WORDS)


def voices(snapshot: ModelSnapshot) -> tuple[str, ...]:
    """Return the names of the voices that a model's config or files have, the usual one first."""
    talker, aliases = snapshot.config.get("talker_config"), snapshot.config.get("voice_aliases")
    speakers = talker.get("spk_id") if isinstance(talker, dict) else None
    found = {match[1] for path in snapshot.files if (match := _VOICE_FILE.fullmatch(path))}
    for named in (speakers, aliases):
        found |= {name for name in named if isinstance(name, str)} if isinstance(named, dict) else set()
    return tuple(sorted(found, key=lambda name: (name not in _USUAL_VOICES, name)))


def clones_voices(config: Mapping[str, object]) -> bool:
    """Whether a model that speaks imitates the voice of a recording: of Qwen3-TTS its Base alone."""
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
    """Whether a model reads images, and no file beside its config says how they are prepared."""
    described = _named(config) in _WITHOUT_PREPROCESSOR and _has_part(dict(config), "vision_config")
    return described or any(_positive(config.get(size)) for size in _EYES)


def has_chat_template(snapshot: ModelSnapshot) -> bool:
    """Whether there is a chat template that the model is rendered with, or a library has code in its place."""
    coded = snapshot.document(TOKENIZER_CONFIG).mapping.get(_TEMPLATE_IN_CODE)
    return bool(_chat_templates(snapshot) or coded or _named(snapshot.config) in _WRITTEN_IN_CODE)


def chat_template_text(snapshot: ModelSnapshot) -> str:
    """Return the text of the chat templates, joined; empty when there is none."""
    return "\n".join(dict.fromkeys(_chat_templates(snapshot).values()))


def added_tokens(snapshot: ModelSnapshot) -> frozenset[str]:
    """Return the added tokens that ``tokenizer_config.json`` lists, by their texts; later files list them elsewhere."""
    config = snapshot.document(TOKENIZER_CONFIG).mapping
    decoder = config.get("added_tokens_decoder")
    entries = decoder.values() if isinstance(decoder, dict) else ()
    texts = [each.get("content") if isinstance(each, dict) else None for each in entries]
    listed = config.get("additional_special_tokens", config.get("extra_special_tokens"))
    texts += listed if isinstance(listed, list) else []
    return frozenset(text for text in texts if isinstance(text, str))


def _chat_templates(snapshot: ModelSnapshot) -> dict[str, str]:
    documents = (snapshot.document(path) for path in (TOKENIZER_CONFIG, TEMPLATE_DOCUMENT, PROCESSOR_CONFIG))
    return chat_templates(snapshot.template_files, *documents)


def context_length(config: Mapping[str, object]) -> int | None:
    """Return the context window in tokens, from the config or the part that describes its language model."""
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
    """Return what a config states of a quantization by another library than MLX's; empty when it states none."""
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        stated = part.get("quantization_config")
        if isinstance(stated, dict) and stated:
            return stated
    return {}


def listed(config: Mapping[str, object]) -> tuple[object, ...]:
    """Return the classes that a config names."""
    known = config.get("architectures")
    return tuple(known) if isinstance(known, list) else ()


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
    """Whether it is a reranker: an encoder that classifies with one output, or a decoder named for reranking."""
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
    """Whether it is an embedding model: an encoder, or a decoder trained and named for embeddings."""
    named = _named(snapshot.config)
    classes = _classes(snapshot)
    if named in _ENCODERS:
        return "classification" not in classes
    if named in _PICTURE_EMBEDDERS | _OTHER_EMBEDDERS:
        return True
    if _SENTENCE_TRANSFORMERS in snapshot.files and not is_vision(snapshot):
        return True
    if named == "qwen3_vl":
        return "embed" in snapshot.short_name
    return ("forcausallm" in classes or named in _DECODERS) and "embed" in snapshot.short_name


def _capabilities(snapshot: ModelSnapshot, model_type: ModelType) -> tuple[Capability, ...]:
    if model_type is ModelType.ADAPTER:
        return ()
    dedicated = next((operation for operation, made in DEDICATED_TYPES.items() if made is model_type), None)
    if dedicated is Capability.AUDIO and _translates(snapshot):
        return (Capability.AUDIO, Capability.AUDIO_TRANSLATE_EN)
    if dedicated is not None:
        return tuple(each for each in Capability if each is dedicated or each in _beside(snapshot, dedicated))
    found = [Capability.TEXT_GENERATION]
    if model_type is ModelType.CHAT:
        found.append(Capability.CHAT)
    if is_vision(snapshot):
        found.append(Capability.VISION)
    if _takes_audio(snapshot):
        found.append(Capability.AUDIO)
    return tuple(found)


def _beside(snapshot: ModelSnapshot, dedicated: Capability) -> Iterator[Capability]:
    """Yield what a model for one operation takes or gives besides what all of them do."""
    named = _named(snapshot.config)
    if dedicated is Capability.EMBEDDINGS:
        reads = named == "embedding_gemma2" and bool(snapshot.config.get("vision_config"))
        if reads or named in _PICTURE_EMBEDDERS or named == "qwen3_vl":
            yield Capability.VISION
        if named in _LATE_INTERACTION or (named == "lfm2" and _COLBERT_PROJECTION in snapshot.files):
            yield Capability.MULTI_VECTOR
    if dedicated is Capability.RERANK and named == "qwen3_vl":
        yield Capability.VISION
    if dedicated is Capability.TEXT_TO_SPEECH and clones_voices(snapshot.config):
        yield Capability.VOICE_CLONING


def _translates(snapshot: ModelSnapshot) -> bool:
    """Whether a speech model is a Whisper with the tokens of other languages, and of a variant that translates."""
    if _named(snapshot.config) != "whisper":
        return False
    tokens = next((snapshot.config[key] for key in ("vocab_size", "n_vocab") if key in snapshot.config), None)
    few = isinstance(tokens, int) and tokens < _MULTILINGUAL_TOKENS
    return not few and _ENGLISH_ONLY.search(snapshot.short_name) is None


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
    """Whether a config, or its part about what reads the prompt, describes a part of the model by one of the names."""
    thinker = config.get("thinker_config")
    holders = (config, thinker) if isinstance(thinker, dict) else (config,)
    return any(isinstance(part := holder.get(name), dict) and bool(part) for holder in holders for name in names)


def _named(config: Mapping[str, object]) -> str:
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
