"""What the container builds only once it is used: adapters that cost an import, and use cases of few commands."""

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlxk.application.ports.media import AudioDecoder, ImageReader
from mlxk.application.ports.system import EventLog
from mlxk.application.ports.text_generator import EngineState, KeptPrompts, TextGenerator, TextStream
from mlxk.domain.generation.image_table import ImageFacts
from mlxk.domain.generation.media import DecodedAudio, DecodedImage, EncodedImage
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import Profile
from mlxk.domain.models.model import ModelHandle, served_id
from mlxk.entrypoints.settings_file import OwnNames

if TYPE_CHECKING:
    from mlxk.application.ports.backends import BackendRegistry, WeightConverter
    from mlxk.application.ports.hub import ModelHub, ModelPublisher, PublicationFolder
    from mlxk.application.ports.model_cache import ModelCache, ModelSource
    from mlxk.application.ports.model_directories import ModelFiles, WorkspaceStore
    from mlxk.application.ports.model_tasks import ModelTokenizer, SpeechTranscriber, TextEmbedder
    from mlxk.application.ports.other_processes import RunningServers
    from mlxk.application.ports.system import Clock, MemoryProbe
    from mlxk.application.use_cases.browse_hub import FindOutdated, RecommendModels, SearchModels, ShowRemoteModel
    from mlxk.application.use_cases.cache_upkeep import MeasureCache, PruneCache
    from mlxk.application.use_cases.clone_model import CloneModel
    from mlxk.application.use_cases.convert_model import ConvertModel
    from mlxk.application.use_cases.describe_model import DescribeModel
    from mlxk.application.use_cases.diagnose_installation import DiagnoseInstallation
    from mlxk.application.use_cases.generate_text import GenerateText
    from mlxk.application.use_cases.make_room import MakeRoom
    from mlxk.application.use_cases.measure_speed import MeasureModel, MeasureServer
    from mlxk.application.use_cases.model_tasks import EmbedText, LoadModel, TokenizeText, TranscribeAudio
    from mlxk.application.use_cases.pull_model import PullModel
    from mlxk.application.use_cases.push_model import PushModel
    from mlxk.application.use_cases.remove_models import RemoveModel, StopModels
    from mlxk.application.use_cases.resolve_model import ResolveModel
    from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
    from mlxk.domain.search import Recommendations


class DeferredTextGenerator(TextGenerator):
    """Builds the engine with the first request, so that no error about a name or a file waits for the import of MLX."""

    def __init__(self, build: Callable[[], TextGenerator]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._built: TextGenerator | None = None

    @property
    def engine(self) -> TextGenerator:
        """The engine, built if need be."""
        with self._lock:
            self._built = self._built or self._build()
            return self._built

    def submit(self, request: GenerationRequest) -> TextStream:
        return self.engine.submit(request)

    def load(self, request: GenerationRequest) -> None:
        self.engine.load(request)

    def state(self, timeout_seconds: float) -> EngineState:
        if self._built is None:
            return EngineState(responding=True, running=0, waiting=0, models=())
        return self._built.state(timeout_seconds)

    def unload(self, model: ModelHandle | None = None, *, once_idle: bool = False) -> tuple[ModelHandle, ...]:
        return () if self._built is None else self._built.unload(model, once_idle=once_idle)

    def kept_prompts(self, tenant: str | None = None) -> KeptPrompts:
        return KeptPrompts(0, 0, 0) if self._built is None else self._built.kept_prompts(tenant)

    def forget_prompts(self, tenant: str | None = None) -> None:
        if self._built is not None:
            self._built.forget_prompts(tenant)

    def close(self) -> None:
        if self._built is not None:
            self._built.close()


class DeferredEventLog(EventLog):
    """Builds the log with the first event: most commands have none."""

    def __init__(self, build: Callable[[], EventLog]) -> None:
        self._log = functools.cache(build)

    def debug(self, event: str, **fields: object) -> None:
        self._log().debug(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        self._log().info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        self._log().warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        self._log().error(event, **fields)


class DeferredImageReader(ImageReader):
    """Builds the reader with the first image."""

    def __init__(self, build: Callable[[], ImageReader]) -> None:
        self._reader = functools.cache(build)

    def decode(self, image: EncodedImage) -> DecodedImage:
        return self._reader().decode(image)

    def read_exif(self, image: EncodedImage) -> ImageFacts:
        return self._reader().read_exif(image)


class DeferredAudioDecoder(AudioDecoder):
    """Builds the decoder with the first recording."""

    def __init__(self, build: Callable[[], AudioDecoder]) -> None:
        self._decoder = functools.cache(build)

    def decode(self, path: str, name: str) -> DecodedAudio:
        return self._decoder().decode(path, name)


def measure_cache(cache: "ModelCache") -> "MeasureCache":
    """Return the use case that measures the cache."""
    from mlxk.application.use_cases.cache_upkeep import MeasureCache

    return MeasureCache(cache)


def prune_cache(cache: "ModelCache") -> "PruneCache":
    """Return the use case that removes waste."""
    from mlxk.application.use_cases.cache_upkeep import PruneCache

    return PruneCache(cache, measure_cache(cache))


def search_models(hub: "ModelHub", memory: "MemoryProbe") -> "SearchModels":
    """Return the use case that searches the hub."""
    from mlxk.application.use_cases.browse_hub import SearchModels

    return SearchModels(hub, memory)


def diagnose_installation(*looked_at: Any) -> "DiagnoseInstallation":  # noqa: ANN401 - the fields of the use case
    """Return the use case that diagnoses the installation."""
    from mlxk.application.use_cases.diagnose_installation import DiagnoseInstallation

    return DiagnoseInstallation(*looked_at)


def measure_model(*ports_and_use_cases: Any) -> "MeasureModel":  # noqa: ANN401 - as above
    """Return the use case that measures a model; the first three are those of the machine."""
    from mlxk.application.use_cases.measure_speed import MachineReader, MeasureModel

    return MeasureModel(MachineReader(*ports_and_use_cases[:3]), *ports_and_use_cases[3:])


def measure_server(*ports: Any) -> "MeasureServer":  # noqa: ANN401 - as above
    """Return the use case that measures a server; the first three ports are those of the machine."""
    from mlxk.application.use_cases.measure_speed import MachineReader, MeasureServer

    return MeasureServer(MachineReader(*ports[:3]), *ports[3:])


def recommend_models(read: "Callable[[], Recommendations]", memory: "MemoryProbe") -> "RecommendModels":
    """Return the use case that recommends models."""
    from mlxk.application.use_cases.browse_hub import RecommendModels

    return RecommendModels(read(), memory)


def find_outdated(cache: "ModelCache", hub: "ModelHub") -> "FindOutdated":
    """Return the use case that compares cached models with the hub."""
    from mlxk.application.use_cases.browse_hub import FindOutdated

    return FindOutdated(cache, hub)


def show_remote_model(cache: "ModelCache", hub: "ModelHub", memory: "MemoryProbe", owner: str) -> "ShowRemoteModel":
    """Return the use case that describes a model on the hub."""
    from mlxk.application.use_cases.browse_hub import ShowRemoteModel

    return ShowRemoteModel(cache, hub, memory, owner)


def clone_model(
    resolve: "ResolveModel",
    pull: "PullModel",
    files: "ModelFiles",
    workspaces: "WorkspaceStore",
    cache: "ModelCache",
    describe: "DescribeModel",
) -> "CloneModel":
    """Return the use case that copies a model into a workspace."""
    from mlxk.application.use_cases.clone_model import CloneModel

    return CloneModel(resolve=resolve, pull=pull, files=files, workspaces=workspaces, cache=cache, describe=describe)


def convert_model(  # noqa: PLR0913 - one for each port
    resolve: "ResolveModel",
    cache: "ModelCache",
    files: "ModelFiles",
    workspaces: "WorkspaceStore",
    registry: "BackendRegistry",
    converter: "WeightConverter",
    describe: "DescribeModel",
) -> "ConvertModel":
    """Return the use case that converts a model into a workspace."""
    from mlxk.application.use_cases.convert_model import ConvertModel

    return ConvertModel(
        resolve=resolve,
        cache=cache,
        files=files,
        workspaces=workspaces,
        registry=registry,
        converter=converter,
        describe=describe,
    )


def push_model(
    folder: "PublicationFolder",
    workspaces: "WorkspaceStore",
    publisher: "ModelPublisher",
    describe: "DescribeModel",
    home: str,
) -> "PushModel":
    """Return the use case that publishes a workspace."""
    from mlxk.application.use_cases.push_model import PushModel

    return PushModel(folder, workspaces, publisher, describe, home)


def pull_model(
    cache: "ModelCache", built_in: "ModelSource", hub: "ModelHub", describe: "DescribeModel", owner: str
) -> "PullModel":
    """Return the use case that fetches a model."""
    from mlxk.application.use_cases.pull_model import PullModel

    return PullModel(cache, built_in, hub, describe, owner)


def remove_model(cache: "ModelCache", resolve: "ResolveModel") -> "RemoveModel":
    """Return the use case that removes models."""
    from mlxk.application.use_cases.remove_models import RemoveModel

    return RemoveModel(cache, resolve)


def transcribe_audio(
    resolve: "ResolveModel", describe: "DescribeModel", transcriber: "SpeechTranscriber", memory: "MemoryProbe"
) -> "TranscribeAudio":
    """Return the use case that transcribes recordings."""
    from mlxk.application.use_cases.model_tasks import TranscribeAudio

    return TranscribeAudio(resolve, describe, transcriber, memory)


def embed_text(
    resolve: "ResolveModel", describe: "DescribeModel", embedder: "TextEmbedder", memory: "MemoryProbe"
) -> "EmbedText":
    """Return the use case that embeds texts."""
    from mlxk.application.use_cases.model_tasks import EmbedText

    return EmbedText(resolve, describe, embedder, memory)


def generate_text(  # noqa: PLR0913 - one for each port
    resolve: "ResolveModel",
    describe: "DescribeModel",
    generator: TextGenerator,
    images: ImageReader,
    audio: AudioDecoder,
    memory: "MemoryProbe",
    log: EventLog,
    exif: bool,
    names: OwnNames,
    of_models: tuple[tuple[str, Profile], ...],
) -> "GenerateText":
    """Return the use case that generates text."""
    from mlxk.application.use_cases.generate_text import GenerateText

    @functools.cache
    def profiles() -> dict[str, Profile]:
        return {served_id(resolve(reference)): profile for reference, profile in of_models}

    own = (names.profiles, names.usual, lambda model: profiles().get(served_id(model), Profile()))
    return GenerateText(resolve, describe, generator, images, audio, memory, log, exif, *own)


def stop_models(servers: "RunningServers", resolve: "ResolveModel") -> "StopModels":
    """Return the use case that has servers unload a model."""
    from mlxk.application.use_cases.remove_models import StopModels

    return StopModels(servers, resolve)


def load_model(generate: "GenerateText") -> "LoadModel":
    """Return the use case that has a model in memory."""
    from mlxk.application.use_cases.model_tasks import LoadModel

    return LoadModel(generate.generator, generate.memory, generate.log, generate.profile_of)


def tokenize_text(generate: "GenerateText", tokenizer: "ModelTokenizer") -> "TokenizeText":
    """Return the use case that counts tokens and renders prompts."""
    from mlxk.application.use_cases.model_tasks import TokenizeText

    return TokenizeText(generate, tokenizer)


def make_room(generate: "GenerateText", tokenize: "TokenizeText") -> "MakeRoom":
    """Return the use case that fits conversations into a context window."""
    from mlxk.application.use_cases.make_room import MakeRoom

    return MakeRoom(generate, tokenize)


def serve_catalogue(  # noqa: PLR0913 - one for each port
    resolve: "ResolveModel",
    describe: "DescribeModel",
    generator: TextGenerator,
    clock: "Clock",
    by_path: bool,
    registry: "BackendRegistry",
    names: OwnNames,
) -> "ServeCatalogue":
    """Return the use case that finds the models of a server."""
    from mlxk.application.use_cases.serve_catalogue import ServeCatalogue

    def adapter_version(name: str) -> str | None:
        profile = names.profiles.get(name)
        directory = None if profile is None else profile.engine_options.adapter
        return None if directory is None else registry.adapter(directory).version

    return ServeCatalogue(resolve, describe, generator, clock, by_path, adapter_version)
