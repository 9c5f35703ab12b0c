"""The server's application on in-memory adapters: models of every kind, one that does not run, and scripted answers."""

import json
import struct
from collections.abc import Callable, Mapping, Sequence

from doubles.backend_registry import InMemoryBackendRegistry
from doubles.document_reranker import InMemoryDocumentReranker
from doubles.event_log import InMemoryEventLog
from doubles.image_reader import InMemoryImageReader
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_hub import InMemoryModelHub
from doubles.model_source import InMemoryModelSource
from doubles.model_tokenizer import InMemoryModelTokenizer
from doubles.sound_encoder import InMemorySoundEncoder
from doubles.speech_synthesizer import InMemorySpeechSynthesizer
from doubles.speech_transcriber import InMemorySpeechTranscriber
from doubles.telemetry import InMemoryTelemetry
from doubles.text_embedder import InMemoryTextEmbedder
from doubles.text_generator import InMemoryTextGenerator
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.adapters.mlx.audio_file import MlxAudioDecoder
from mlxk.adapters.opencv.video_decoder import OpenCvVideoDecoder
from mlxk.adapters.system import SystemClock
from mlxk.application.named_media import NamedMedia
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.model_tasks import (
    EmbedText,
    LoadModel,
    RerankDocuments,
    SpeakText,
    TokenizeText,
    TranscribeAudio,
)
from mlxk.application.use_cases.pull_model import PullModel
from mlxk.application.use_cases.remove_models import RemoveModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.domain.models.footprint import MemoryReading
from mlxk.domain.transcription import Segment, TimedWord, Transcript
from mlxk.entrypoints.http.api import HttpApi, ServerContext, Services
from mlxk.entrypoints.http.app import APIS, Application
from mlxk.entrypoints.settings import ServerSettings

COMMIT = "a" * 40
HEADER = json.dumps({"weight": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)
CHAT = {
    "config.json": json.dumps(
        {"model_type": "llama", "max_position_embeddings": 2048, "quantization": {"bits": 4, "group_size": 32}}
    ).encode(),
    "chat_template.jinja": b"{{ messages }}{{ tools }}{{ enable_thinking }}",
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
}
BASE = {name: data for name, data in CHAT.items() if name != "chat_template.jinja"}
BROKEN = {name: data for name, data in CHAT.items() if name != "model.safetensors"}

SPEECH = {
    "config.json": json.dumps({"model_type": "whisper", "vocab_size": 51865, "quantization": {"bits": 4}}).encode(),
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
}
VISION = {
    **CHAT,
    "config.json": json.dumps(
        {"model_type": "qwen2_vl", "vision_config": {"depth": 1}, "quantization": {"bits": 4, "group_size": 32}}
    ).encode(),
    "preprocessor_config.json": b"{}",
}
VOICE = {
    **SPEECH,
    "config.json": json.dumps(
        {
            "model_type": "qwen3_tts",
            "tts_model_type": "custom_voice",
            "talker_config": {"spk_id": {"ryan": 1, "nova": 2}},
            "quantization": {"bits": 4},
        }
    ).encode(),
}
CLONER = {
    **SPEECH,
    "config.json": json.dumps(
        {"model_type": "qwen3_tts", "tts_model_type": "base", "talker_config": {}, "quantization": {"bits": 4}}
    ).encode(),
}
EMBEDDING = {**SPEECH, "config.json": json.dumps({"model_type": "bert", "quantization": {"bits": 4}}).encode()}

SPOKEN = Transcript(
    "Hello there. How are you?",
    3.0,
    "en",
    (
        Segment(" Hello there.", 0.0, 1.25, (TimedWord(" Hello", 0.0, 0.5), TimedWord(" there.", 0.5, 1.25))),
        Segment(" How are you?", 1.5, 2.75, (TimedWord(" How", 1.5, 2.0), TimedWord(" are you?", 2.0, 2.75))),
    ),
)
"""What is heard in every file of sound."""

BACKENDS = {"mlx-lm": {"llama"}, "mlx-audio": {"qwen3_tts", "whisper"}, "mlx-vlm": {"bert", "gemma3n", "qwen2_vl"}}

CHAT_MODEL = "org/chat-model"
OTHER_MODEL = "org/other-chat"
BASE_MODEL = "org/base-model"
BROKEN_MODEL = "org/broken-model"
SPEECH_MODEL = "org/whisper-large"
ENGLISH_SPEECH_MODEL = "org/whisper-tiny.en"
EMBEDDING_MODEL = "org/encoder"
VOICE_MODEL = "org/voice"
"""A name for ``VOICE``, which no application has by itself."""
CLONER_MODEL = "org/cloner"
"""A name for ``CLONER``, which no application has by itself."""
EYE = "org/eye"
"""A name for ``VISION``, which no application has by itself."""


class Parts:
    """An application and everything it stands on.

    Args:
        generator: Answers; echoes the prompt when not given.
        settings: The operator's.
        budget: Memory of the machine, bytes.
        keep_alive_seconds: Silence after which a stream gets a keep-alive frame.
        models: More models, each with its files by name.
        images: Decodes images; all of them when not given.
        apis: HTTP APIs beside the product's.
        named_media: What requests may name by path or address; nothing when not given.
    """

    def __init__(
        self,
        generator: InMemoryTextGenerator | None = None,
        settings: ServerSettings | None = None,
        budget: int = 2**40,
        keep_alive_seconds: float = 10.0,
        models: Mapping[str, Mapping[str, bytes]] | None = None,
        images: InMemoryImageReader | None = None,
        apis: Sequence[Callable[[ServerContext], HttpApi]] = (),
        named_media: NamedMedia | None = None,
    ) -> None:
        self.generator = generator or InMemoryTextGenerator()
        self.settings = settings or ServerSettings()
        self.log, self.telemetry = InMemoryEventLog(), InMemoryTelemetry()
        directories = {CHAT_MODEL: CHAT, OTHER_MODEL: CHAT, BASE_MODEL: BASE, BROKEN_MODEL: BROKEN}
        directories |= {SPEECH_MODEL: SPEECH, ENGLISH_SPEECH_MODEL: SPEECH, EMBEDDING_MODEL: EMBEDDING}
        directories |= {name: dict(files) for name, files in (models or {}).items()}
        self.cache = InMemoryModelCache(
            {name: CachedModel((COMMIT,)) for name in directories},
            files=(
                files := InMemoryModelFiles({f"/cache/{name}/{COMMIT}": each for name, each in directories.items()})
            ),
        )
        self.hub = InMemoryModelHub({}, self.cache, files)
        workspaces = InMemoryWorkspaceStore()
        built_in = InMemoryModelSource()
        describe = DescribeModel(
            files, workspaces, InMemoryBackendRegistry(BACKENDS), self.cache, default_owner="mlx-community"
        )
        clock = SystemClock()
        resolve = ResolveModel(self.cache, workspaces, built_in, default_owner="mlx-community")
        self.catalogue = ServeCatalogue(resolve, describe, self.generator, clock, self.settings.allow_paths)
        memory = InMemoryMemoryProbe(MemoryReading(budget, budget))
        self.transcriber = InMemorySpeechTranscriber(default=SPOKEN)
        self.synthesizer, self.encoder = InMemorySpeechSynthesizer(), InMemorySoundEncoder()
        self.embedder, self.reranker = InMemoryTextEmbedder(), InMemoryDocumentReranker()
        self.tokenizer = InMemoryModelTokenizer()
        media = (images or InMemoryImageReader(), MlxAudioDecoder(), OpenCvVideoDecoder())
        generate = GenerateText(resolve, describe, self.generator, *media, memory, self.log)
        services = Services(
            catalogue=self.catalogue,
            generate=generate,
            load=LoadModel(self.generator, memory, self.log),
            audio_decoder=MlxAudioDecoder(),
            named_media=named_media or NamedMedia(),
            transcribe=TranscribeAudio(self.transcriber, memory),
            speak=SpeakText(self.synthesizer, memory),
            sound_encoder=self.encoder,
            embed=EmbedText(self.embedder, memory, media[0]),
            rerank=RerankDocuments(self.reranker, memory, media[0]),
            tokenize=TokenizeText(generate, self.tokenizer),
            pull=lambda: PullModel(self.cache, built_in, self.hub, describe, default_owner="mlx-community"),
            remove=lambda: RemoveModel(self.cache, resolve),
            generator=self.generator,
            clock=clock,
            log=self.log,
            telemetry=self.telemetry,
        )
        self.application = Application(services, self.settings, keep_alive_seconds, (*APIS, *apis))
        self.application.lifecycle.preloaded = True

    def close(self) -> None:
        """End everything."""
        self.application.close()
        self.generator.close()
