"""The composition root: every adapter is named here, once, and nowhere else.

Providers are small functions that import what they build when it is first asked for, so that a command pays for what it
uses. Tests build the same use cases on ``in_memory_adapters``.
"""

from typing import TYPE_CHECKING

from mlxk.entrypoints import engine_providers as engine
from mlxk.entrypoints import image_providers as images
from mlxk.entrypoints import operation_providers as operations
from mlxk.entrypoints import server_providers as serving
from mlxk.entrypoints import sound_providers as sounds
from mlxk.entrypoints.injection import containers, providers
from mlxk.entrypoints.settings import Settings

if TYPE_CHECKING:
    from mlxk.application.ports.audio_decoder import AudioDecoder
    from mlxk.application.ports.backend_registry import BackendRegistry
    from mlxk.application.ports.built_in_models import BuiltInModels
    from mlxk.application.ports.cache_editor import CacheEditor
    from mlxk.application.ports.clock import Clock
    from mlxk.application.ports.content_verifier import ContentVerifier
    from mlxk.application.ports.event_log import EventLog
    from mlxk.application.ports.image_reader import ImageReader
    from mlxk.application.ports.memory_probe import MemoryProbe
    from mlxk.application.ports.model_cache import ModelCache
    from mlxk.application.ports.model_files import ModelFiles
    from mlxk.application.ports.model_hub import ModelHub
    from mlxk.application.ports.model_publisher import ModelPublisher
    from mlxk.application.ports.publication_folder import PublicationFolder
    from mlxk.application.ports.speech_transcriber import SpeechTranscriber
    from mlxk.application.ports.text_embedder import TextEmbedder
    from mlxk.application.ports.text_generator import TextGenerator
    from mlxk.application.ports.weight_converter import WeightConverter
    from mlxk.application.ports.workspace_builder import WorkspaceBuilder
    from mlxk.application.ports.workspace_store import WorkspaceStore
    from mlxk.application.use_cases.ask_about_recording import AskAboutRecording
    from mlxk.application.use_cases.check_health import CheckHealth
    from mlxk.application.use_cases.clone_model import CloneModel
    from mlxk.application.use_cases.convert_model import ConvertModel
    from mlxk.application.use_cases.describe_images import DescribeImages
    from mlxk.application.use_cases.describe_model import DescribeModel
    from mlxk.application.use_cases.embed_text import EmbedText
    from mlxk.application.use_cases.estimate_memory import EstimateMemory
    from mlxk.application.use_cases.generate_text import GenerateText
    from mlxk.application.use_cases.list_models import ListModels
    from mlxk.application.use_cases.pull_model import PullModel
    from mlxk.application.use_cases.push_model import PushModel
    from mlxk.application.use_cases.remove_model import RemoveModel
    from mlxk.application.use_cases.resolve_model import ResolveModel
    from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
    from mlxk.application.use_cases.serve_images import ServeImages
    from mlxk.application.use_cases.serve_text import ServeText
    from mlxk.application.use_cases.show_model import ShowModel
    from mlxk.application.use_cases.transcribe_audio import TranscribeAudio
    from mlxk.entrypoints.server_settings import ServerSettings


def _model_cache(settings: Settings) -> "ModelCache":
    from mlxk.adapters.huggingface.cache import HuggingFaceModelCache

    return HuggingFaceModelCache(settings.hub_cache)


def _content_verifier(cache: "ModelCache", workspaces: "WorkspaceStore") -> "ContentVerifier":
    from mlxk.adapters.huggingface.verification import HuggingFaceContentVerifier

    return HuggingFaceContentVerifier(cache, workspaces)


def _model_files() -> "ModelFiles":
    from mlxk.adapters.filesystem.model_files import FilesystemModelFiles

    return FilesystemModelFiles()


def _workspaces(settings: Settings) -> "WorkspaceStore":
    from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore

    return FilesystemWorkspaceStore(settings.workspace_home)


def _built_in_models() -> "BuiltInModels":
    from mlxk.adapters.builtin.packaged import PackagedBuiltInModels

    return PackagedBuiltInModels()


def _backend_registry() -> "BackendRegistry":
    from mlxk.adapters.mlx.registry import MlxBackendRegistry

    return MlxBackendRegistry()


def _memory_probe() -> "MemoryProbe":
    import sys

    from mlxk.adapters.system.memory import system_memory_probe

    return system_memory_probe(sys.platform)


def _clock() -> "Clock":
    from mlxk.adapters.system.clock import SystemClock

    return SystemClock()


def _event_log(settings: Settings) -> "EventLog":
    from mlxk.adapters.logging.structlog_log import StructlogEventLog

    return StructlogEventLog(level=settings.log_level, as_json=settings.log_json, home=settings.home)


def _speech_transcriber(generator: "TextGenerator", log: "EventLog") -> "SpeechTranscriber":
    from mlxk.adapters.mlx.speech.transcriber import MlxSpeechTranscriber

    return MlxSpeechTranscriber(engine.lender(generator), log)


def _text_embedder(generator: "TextGenerator") -> "TextEmbedder":
    from mlxk.adapters.mlx.embedding.embedder import MlxTextEmbedder

    return MlxTextEmbedder(engine.lender(generator))


class Adapters(containers.DeclarativeContainer):
    """The outside world, one instance of each adapter a process."""

    settings = providers.Dependency(instance_of=Settings)
    server: providers.Provider["ServerSettings | None"] = providers.Object(None)
    model_files: providers.Provider["ModelFiles"] = providers.ThreadSafeSingleton(_model_files)
    model_cache: providers.Provider["ModelCache"] = providers.ThreadSafeSingleton(_model_cache, settings)
    model_hub: providers.Provider["ModelHub"] = providers.ThreadSafeSingleton(operations.model_hub, settings)
    model_publisher: providers.Provider["ModelPublisher"] = providers.ThreadSafeSingleton(
        operations.model_publisher, settings
    )
    publication_folder: providers.Provider["PublicationFolder"] = providers.ThreadSafeSingleton(
        operations.publication_folder
    )
    cache_editor: providers.Provider["CacheEditor"] = providers.ThreadSafeSingleton(operations.cache_editor, settings)
    workspaces: providers.Provider["WorkspaceStore"] = providers.ThreadSafeSingleton(_workspaces, settings)
    content_verifier: providers.Provider["ContentVerifier"] = providers.ThreadSafeSingleton(
        _content_verifier, model_cache, workspaces
    )
    workspace_builder: providers.Provider["WorkspaceBuilder"] = providers.ThreadSafeSingleton(
        operations.workspace_builder, settings, workspaces
    )
    weight_converter: providers.Provider["WeightConverter"] = providers.ThreadSafeSingleton(operations.weight_converter)
    built_in_models: providers.Provider["BuiltInModels"] = providers.ThreadSafeSingleton(_built_in_models)
    backend_registry: providers.Provider["BackendRegistry"] = providers.ThreadSafeSingleton(_backend_registry)
    memory_probe: providers.Provider["MemoryProbe"] = providers.ThreadSafeSingleton(_memory_probe)
    clock: providers.Provider["Clock"] = providers.ThreadSafeSingleton(_clock)
    event_log: providers.Provider["EventLog"] = providers.ThreadSafeSingleton(_event_log, settings)
    text_generator: providers.Provider["TextGenerator"] = providers.ThreadSafeSingleton(
        engine.text_generator, event_log, clock, memory_probe, server
    )
    speech_transcriber: providers.Provider["SpeechTranscriber"] = providers.ThreadSafeSingleton(
        _speech_transcriber, text_generator, event_log
    )
    text_embedder: providers.Provider["TextEmbedder"] = providers.ThreadSafeSingleton(_text_embedder, text_generator)
    image_reader: providers.Provider["ImageReader"] = providers.ThreadSafeSingleton(images.image_reader)
    audio_decoder: providers.Provider["AudioDecoder"] = providers.ThreadSafeSingleton(sounds.audio_decoder)


def _resolve_model(cache: "ModelCache", workspaces: "WorkspaceStore", built_in: "BuiltInModels") -> "ResolveModel":
    from mlxk.application.use_cases.resolve_model import ResolveModel

    return ResolveModel(cache, workspaces, built_in)


def _describe_model(
    files: "ModelFiles", workspaces: "WorkspaceStore", registry: "BackendRegistry", cache: "ModelCache"
) -> "DescribeModel":
    from mlxk.application.use_cases.describe_model import DescribeModel

    return DescribeModel(files, workspaces, registry, cache)


def _list_models(
    cache: "ModelCache", workspaces: "WorkspaceStore", built_in: "BuiltInModels", describe: "DescribeModel"
) -> "ListModels":
    from mlxk.application.use_cases.list_models import ListModels

    return ListModels(cache, workspaces, built_in, describe)


def _show_model(resolve: "ResolveModel", describe: "DescribeModel", workspaces: "WorkspaceStore") -> "ShowModel":
    from mlxk.application.use_cases.show_model import ShowModel

    return ShowModel(resolve, describe, workspaces)


def _check_health(
    resolve: "ResolveModel",
    list_models: "ListModels",
    describe: "DescribeModel",
    workspaces: "WorkspaceStore",
    verifier: "ContentVerifier",
) -> "CheckHealth":
    from mlxk.application.use_cases.check_health import CheckHealth

    return CheckHealth(resolve, list_models, describe, workspaces, verifier)


def _estimate_memory(memory: "MemoryProbe") -> "EstimateMemory":
    from mlxk.application.use_cases.estimate_memory import EstimateMemory

    return EstimateMemory(memory)


def _generate_text(
    resolve: "ResolveModel",
    describe: "DescribeModel",
    generator: "TextGenerator",
    memory: "MemoryProbe",
    log: "EventLog",
) -> "GenerateText":
    from mlxk.application.use_cases.generate_text import GenerateText

    return GenerateText(resolve, describe, generator, memory, log)


def _transcribe_audio(
    resolve: "ResolveModel", describe: "DescribeModel", transcriber: "SpeechTranscriber", memory: "MemoryProbe"
) -> "TranscribeAudio":
    from mlxk.application.use_cases.transcribe_audio import TranscribeAudio

    return TranscribeAudio(resolve, describe, transcriber, memory)


def _embed_text(
    resolve: "ResolveModel", describe: "DescribeModel", embedder: "TextEmbedder", memory: "MemoryProbe"
) -> "EmbedText":
    from mlxk.application.use_cases.embed_text import EmbedText

    return EmbedText(resolve, describe, embedder, memory)


class UseCases(containers.DeclarativeContainer):
    """What can be asked. Use cases are values that hold ports, so they are built anew at every request."""

    adapters = providers.DependenciesContainer()
    resolve_model: providers.Provider["ResolveModel"] = providers.Factory(
        _resolve_model, adapters.model_cache, adapters.workspaces, adapters.built_in_models
    )
    describe_model: providers.Provider["DescribeModel"] = providers.Factory(
        _describe_model, adapters.model_files, adapters.workspaces, adapters.backend_registry, adapters.model_cache
    )
    list_models: providers.Provider["ListModels"] = providers.Factory(
        _list_models, adapters.model_cache, adapters.workspaces, adapters.built_in_models, describe_model
    )
    show_model: providers.Provider["ShowModel"] = providers.Factory(
        _show_model, resolve_model, describe_model, adapters.workspaces
    )
    check_health: providers.Provider["CheckHealth"] = providers.Factory(
        _check_health,
        resolve_model,
        list_models,
        describe_model,
        adapters.workspaces,
        adapters.content_verifier,
    )
    pull_model: providers.Provider["PullModel"] = providers.Factory(
        operations.pull_model,
        adapters.model_cache,
        adapters.built_in_models,
        adapters.model_hub,
        adapters.cache_editor,
        describe_model,
    )
    remove_model: providers.Provider["RemoveModel"] = providers.Factory(
        operations.remove_model, adapters.model_cache, adapters.built_in_models, resolve_model, adapters.cache_editor
    )
    clone_model: providers.Provider["CloneModel"] = providers.Factory(
        operations.clone_model, resolve_model, pull_model, describe_model, adapters
    )
    convert_model: providers.Provider["ConvertModel"] = providers.Factory(
        operations.convert_model, resolve_model, describe_model, adapters
    )
    push_model: providers.Provider["PushModel"] = providers.Factory(
        operations.push_model, describe_model, adapters, adapters.settings
    )
    estimate_memory: providers.Provider["EstimateMemory"] = providers.Factory(_estimate_memory, adapters.memory_probe)
    transcribe_audio: providers.Provider["TranscribeAudio"] = providers.Factory(
        _transcribe_audio, resolve_model, describe_model, adapters.speech_transcriber, adapters.memory_probe
    )
    embed_text: providers.Provider["EmbedText"] = providers.Factory(
        _embed_text, resolve_model, describe_model, adapters.text_embedder, adapters.memory_probe
    )
    generate_text: providers.Provider["GenerateText"] = providers.Factory(
        _generate_text,
        resolve_model,
        describe_model,
        adapters.text_generator,
        adapters.memory_probe,
        adapters.event_log,
    )
    ask_about_recording: providers.Provider["AskAboutRecording"] = providers.Factory(
        sounds.ask_about_recording, generate_text, adapters.audio_decoder
    )
    describe_images: providers.Provider["DescribeImages"] = providers.Factory(
        images.describe_images, generate_text, adapters.image_reader
    )
    # It remembers what clients asked for a moment ago, so there is one.
    serve_catalogue: providers.Provider["ServeCatalogue"] = providers.ThreadSafeSingleton(
        serving.serve_catalogue,
        resolve_model,
        list_models,
        describe_model,
        adapters.text_generator,
        adapters.clock,
        adapters.server,
    )
    serve_text: providers.Provider["ServeText"] = providers.Factory(
        serving.serve_text,
        serve_catalogue,
        adapters.text_generator,
        adapters.memory_probe,
        adapters.event_log,
        adapters.server,
    )
    serve_images: providers.Provider["ServeImages"] = providers.Factory(
        images.serve_images, serve_text, adapters.image_reader, adapters.settings
    )


class Container:
    """Adapters and the use cases built on them."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters
        self.use_cases = UseCases(adapters=adapters)


def build(settings: Settings, server: "ServerSettings | None" = None) -> Container:
    """Wire the program for this machine.

    Args:
        settings: The environment.
        server: What the operator of a server decided; None for commands.
    """
    return Container(Adapters(settings=settings, server=providers.Object(server)))
