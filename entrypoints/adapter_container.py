"""The adapter of every port, chosen by machine and settings, for a command or a server.

Only this module imports adapters. Those that ``list`` and ``show`` need are imported at the top, all others by their
provider with the first instance, so that a command loads only what it uses.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mlxk import __version__
from mlxk.adapters.builtin import PackagedModelSource
from mlxk.adapters.filesystem.model_files import FilesystemModelFiles
from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore
from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.adapters.mlx.registry import MlxBackendRegistry, computes_on_cpu, has_nvidia_gpu
from mlxk.adapters.system import CpuMemoryProbe, SystemClock, run_quietly, system_memory_probe
from mlxk.application.named_media import NamedMedia
from mlxk.application.policy import estimate_memory
from mlxk.application.ports.text_generator import TextGenerator
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.domain.errors import BackendNotInstalledError, ExecutionError
from mlxk.domain.models.footprint import Matrices, MemoryVerdict, Widening
from mlxk.domain.ranks import Division
from mlxk.entrypoints import providers
from mlxk.entrypoints.providers import Provider, Singleton, deferred, imported
from mlxk.entrypoints.settings import MIB, ServerSettings, Settings, temporary_environment
from mlxk.entrypoints.settings_file import own_names, profile_of

if TYPE_CHECKING:
    from mlxk.adapters.huggingface.client import HubClient
    from mlxk.adapters.mlx.memory import EngineLimits
    from mlxk.adapters.unix_socket.listener import SocketListener, UseCounts
    from mlxk.adapters.unix_socket.protocol import Program
    from mlxk.adapters.unix_socket.servers import SocketRunningServers
    from mlxk.application.ports.hub import ModelHub, ModelPublisher, PublicationFolder
    from mlxk.application.ports.installation import InstallationProbe
    from mlxk.application.ports.measuring import ChartWriter, CompletionClient, MachineProbe, ServerProbe
    from mlxk.application.ports.media import MediaSource, SoundEncoder
    from mlxk.application.ports.memory import MemoryProbe
    from mlxk.application.ports.model_directories import ContentVerifier
    from mlxk.application.ports.model_tasks import (
        DocumentReranker,
        ModelTokenizer,
        SpeechSynthesizer,
        SpeechTranscriber,
        TextEmbedder,
    )
    from mlxk.application.ports.other_processes import ToolServers
    from mlxk.application.ports.system import EventLog
    from mlxk.application.ports.telemetry import Telemetry
    from mlxk.application.ports.tuning import ModelTuner
    from mlxk.domain.host_checks import Examine
    from mlxk.domain.models.model import ModelHandle


def _hub_client(settings: Settings, *, writing: bool = False) -> "HubClient":
    from mlxk.adapters.huggingface.client import HubAccess, HubClient, stored_token

    access = HubAccess(
        endpoint=settings.hub_endpoint,
        token=settings.hub_token or stored_token(settings.hub_token_file),
        offline=settings.hub_offline,
        timeout=settings.hub_timeout,
        metadata_timeout=settings.hub_metadata_timeout,
        token_for_writing_only=settings.hub_token_for_writing_only and not writing,
    )
    return HubClient(access)


def _model_hub(settings: Settings) -> "ModelHub":
    from mlxk.adapters.huggingface.hub import HuggingFaceModelHub

    return HuggingFaceModelHub(_hub_client(settings), settings.hub_cache, settings.default_owner, settings.hub_links)


def _model_publisher(settings: Settings) -> "ModelPublisher":
    from mlxk.adapters.huggingface.publisher import HuggingFaceModelPublisher

    return HuggingFaceModelPublisher(_hub_client(settings, writing=True))


def _installation_probe(settings: Settings) -> "InstallationProbe":
    from mlxk.adapters.installation import SystemInstallationProbe

    return SystemInstallationProbe(settings.search_path, run_quietly, has_nvidia_gpu)


def _event_log(settings: Settings, *, is_server: bool) -> "EventLog":
    def build() -> "EventLog":
        from mlxk.adapters.logging import StructlogEventLog

        return StructlogEventLog(level=settings.log_level, as_json=settings.log_json, home=settings.home)

    return build() if is_server else providers.DeferredEventLog(build)


def _program(ports: "Adapters") -> "Program":
    from mlxk.adapters.unix_socket.protocol import Program

    settings = ports.settings
    return Program(settings.hub_cache, settings.workspace_home, settings.engine_variables, ports.cpu_dtype, ports.blas)


def _running_servers(ports: "Adapters") -> "SocketRunningServers":
    from mlxk.adapters.unix_socket.servers import SocketRunningServers

    return SocketRunningServers(ports.settings.server_sockets, _program(ports))


_WIDENING = {"auto": Widening.WHERE_FREE, "float32": Widening.WITHIN_BUDGET, "model": Widening.NEVER}


def _memory_probe(cpu_dtype: str, blas: str) -> "MemoryProbe":
    probe = system_memory_probe(sys.platform)
    on_cpu = computes_on_cpu(sys.platform)
    return CpuMemoryProbe(probe, _WIDENING[cpu_dtype], lambda: _matrices(blas == "auto")) if on_cpu else probe


def _matrices(load_library: bool) -> Matrices:
    from mlxk.adapters.mlx import blas

    return Matrices(True, blas.take() if load_library else blas.in_use(), load_library)


def engine_limits(memory: "MemoryProbe", server: ServerSettings | None) -> "EngineLimits":
    """Return the limits of the engine: shares of the memory available to MLX now, changed by a server's settings."""
    from mlxk.adapters.mlx.memory import DiskLimits, EngineLimits

    reading, limits = memory.read(), dict[str, Any]()
    if reading is not None:
        limits = {"model_budget_bytes": reading.budget, "swap_used_bytes": lambda: (memory.read() or reading).swap_used}
        limits |= dict.fromkeys(("cache_budget_bytes", "prefix_cache_bytes"), reading.cache_budget)
    if computes_on_cpu(sys.platform):  # on a GPU, the engine asks MLX for the free memory
        limits["free_bytes"] = lambda: None if (now := memory.read()) is None else now.available
    if server is None:
        return EngineLimits(**limits)
    if server.memory_budget_mib is not None:
        limits["model_budget_bytes"] = server.memory_budget_mib * MIB
    limits["vision_cache_bytes"] = server.vision_cache_mib * MIB
    if server.prefix_cache_dir is not None:
        limits["disk"] = DiskLimits(server.prefix_cache_dir, int(server.prefix_cache_disk_gib * 1024 * MIB))
    return EngineLimits(**limits, max_rows=server.max_streams, keep_alive_seconds=server.keep_alive)


def _text_generator(ports: "Adapters") -> TextGenerator:
    if ports.server is not None:
        return _engine(ports)
    local = providers.DeferredTextGenerator(lambda: _engine(ports))
    if not ports.settings.use_server:
        return local
    from mlxk.adapters.unix_socket.sharing import SharedTextGenerator

    return SharedTextGenerator(local, ports.running_servers())


def _before_mlx(ports: "Adapters") -> None:
    """Make the start checks, and load a BLAS library, which must precede the import of MLX."""
    if ports.server is None:  # a server makes the checks before it binds its port
        imported("mlxk.entrypoints.start_checks:require_address_space")()
        imported("mlxk.entrypoints.start_checks:require_temporary_folder")(ports.settings.temporary_folder)
    ports.memory_probe().matrices()


def _model_tuner(ports: "Adapters") -> Any:  # noqa: ANN401 - a ModelTuner
    _before_mlx(ports)
    images = imported("mlxk.application.example_images:ExampleImages")(ports.training_files(), ports.image_reader())
    return imported("mlxk.adapters.mlx.tuning.trainer:MlxModelTuner")(images)


_RANK = "mlxk.entrypoints.rank"
"""The module that runs every rank but the first."""


def _engine(ports: "Adapters") -> TextGenerator:
    server = ports.server
    launch = None
    if len(ports.division.hosts) > 1:  # the other ranks start while this process imports its libraries
        launch = imported("mlxk.adapters.mlx.ranks.launch:launched")(ports.division, _RANK, {"blas": ports.blas})
    _before_mlx(ports)
    if server is not None:
        imported("mlxk.adapters.mlx.memory:use_single_arena")()
    try:
        from mlxk.adapters.mlx.text_generator import MlxTextGenerator
    except ExecutionError as error:
        # The cause is logged, not shown to clients: it may name directories.
        ports.event_log().error("a library cannot be imported", reason=str(error.__cause__)[:300])
        raise
    limits = engine_limits(ports.memory_probe(), server)
    hold = None if server is None else lambda handle: ports.model_cache().use(handle, "serving it")
    arguments = (ports.event_log(), ports.clock(), limits, hold, ports.judge)
    if launch is None:
        return MlxTextGenerator(*arguments)
    ranked = imported("mlxk.adapters.mlx.ranks.generator:RankedTextGenerator")
    return ranked(launch, ports.rank_surroundings(), lambda: ports.on_rank_loss(), *arguments)  # type: ignore[no-any-return]


def _engine_of(generator: TextGenerator) -> TextGenerator:
    local = getattr(generator, "local", generator)  # a SharedTextGenerator has it
    return local.engine if isinstance(local, providers.DeferredTextGenerator) else local


def _leasing(path: str) -> Callable[..., Any]:
    """Return a factory of the adapter ``MODULE:NAME``, which leases models from the engine."""

    def factory(generator: TextGenerator, *further: object) -> object:
        engine = _engine_of(generator)  # it loads a BLAS library, before the next line imports MLX
        from mlxk.adapters.mlx.text_generator import leases_of

        return imported(path)(leases_of(engine), *further)

    return factory


def _text_embedder(ports: "Adapters", generator: TextGenerator) -> "TextEmbedder":
    build = _leasing("mlxk.adapters.mlx.embedding.embedder:MlxTextEmbedder")
    if ports.server is not None or not ports.settings.use_server:
        return build(generator)  # type: ignore[no-any-return]
    from mlxk.adapters.unix_socket.sharing import SharedTextEmbedder

    return SharedTextEmbedder(lambda: build(generator), ports.running_servers())


def _of_extra(path: str, purpose: str, package: str) -> Callable[..., Any]:
    """Return ``imported(path)`` with an error that names the optional package where it is missing."""

    def factory(*arguments: object) -> Any:  # noqa: ANN401
        try:
            return imported(path)(*arguments)
        except ImportError as error:
            fault = f"{purpose} needs {package}, which is not installed"
            raise BackendNotInstalledError(fault, hint=f"Install it: pip install {package}") from error

    return factory


def _chart_writer() -> "ChartWriter":
    try:
        return _of_extra("mlxk.adapters.plotting:MatplotlibChartWriter", "a plot", "matplotlib")()  # type: ignore[no-any-return]
    except ValueError as error:  # such as an unknown backend in MPLBACKEND
        raise ExecutionError(f"matplotlib refuses its settings: {str(error)[:200]}") from error


def _telemetry(ports: "Adapters") -> "Telemetry":
    if ports.server is None or not ports.server.otlp:
        return imported("mlxk.application.ports.telemetry:NoTelemetry")()  # type: ignore[no-any-return]
    from mlxk.adapters.telemetry import OtlpTelemetry
    from mlxk.entrypoints.start_checks import require_exporter

    require_exporter()
    return OtlpTelemetry(ports.event_log(), __version__, dict(ports.settings.telemetry_variables))


class Adapters:
    """One instance of each adapter, built with the first use; for a server or, without its settings, a command."""

    def __init__(self, settings: Settings, server: ServerSettings | None) -> None:
        self.settings = settings
        self.server = server
        self.on_rank_loss: Callable[[], None] = lambda: None
        """Called on any thread when another rank has ended."""
        computing = server or settings
        self.cpu_dtype, self.blas = computing.cpu_dtype, computing.blas
        examine = "mlxk.adapters.mlx.ranks.examination:examine"
        self.examine_hosts: Examine = imported(examine, _RANK, {"blas": self.blas})
        self.names = own_names(settings.file, server.entries if server else None, server.preferred if server else {})
        defaults = server.model_defaults if server else ()
        self.model_profiles = tuple((reference, profile_of(values)) for reference, values in defaults)
        self.model_files = Singleton(FilesystemModelFiles)
        self.model_cache = Singleton(HuggingFaceModelCache, settings.hub_cache)
        self.model_hub = Singleton(_model_hub, settings)
        self.model_publisher = Singleton(_model_publisher, settings)
        self.publication_folder: Provider[PublicationFolder] = Singleton(
            imported("mlxk.adapters.filesystem.publication_folder:FilesystemPublicationFolder")
        )
        self.workspaces = Singleton(FilesystemWorkspaceStore, settings.workspace_home, (settings.hub_cache,))
        verifier = imported("mlxk.adapters.huggingface.verification:HuggingFaceContentVerifier")
        self.content_verifier: Provider[ContentVerifier] = Singleton(verifier, self.model_cache, self.workspaces)
        self.weight_converter = Singleton(imported("mlxk.adapters.mlx.conversion:MlxWeightConverter"))
        self.training_files = Singleton(imported("mlxk.adapters.filesystem.training_files:FilesystemTrainingFiles"))
        self.model_tuner: Provider[ModelTuner] = Singleton(_model_tuner, self)
        self.built_in_models = Singleton(PackagedModelSource)
        self.backend_registry = Singleton(MlxBackendRegistry)
        self.schema_check = _of_extra("mlxk.adapters.schema_checks:schema_check", "--schema", "jsonschema")
        self.recommendations = imported("mlxk.adapters.builtin.lists:recommendations")
        self.model_pairs = imported("mlxk.adapters.builtin.lists:model_pairs")
        self.clock = Singleton(SystemClock)
        self.event_log = Singleton(_event_log, settings, is_server=server is not None)
        self._provide_media(server)
        self._provide_measurements(settings)
        self.running_servers = Singleton(_running_servers, self)
        self.text_generator = generator = Singleton(_text_generator, self)
        self.speech_transcriber: Provider[SpeechTranscriber] = Singleton(
            _leasing("mlxk.adapters.mlx.speech.transcriber:MlxSpeechTranscriber"), generator, self.event_log
        )
        self.speech_synthesizer: Provider[SpeechSynthesizer] = Singleton(
            _leasing("mlxk.adapters.mlx.voice.synthesizer:MlxSpeechSynthesizer"), generator
        )
        self.text_embedder = Singleton(_text_embedder, self, self.text_generator)
        self.document_reranker: Provider[DocumentReranker] = Singleton(
            _leasing("mlxk.adapters.mlx.reranking.reranker:MlxDocumentReranker"), generator
        )
        self.model_tokenizer: Provider[ModelTokenizer] = Singleton(
            _leasing("mlxk.adapters.mlx.model_tokenizer:MlxModelTokenizer"), generator
        )
        self.tool_servers: Provider[ToolServers] = Singleton(
            _of_extra("mlxk.adapters.mcp.tool_servers:McpToolServers", "a server of tools", "mcp")
        )

    def _provide_media(self, server: ServerSettings | None) -> None:
        """Provide the decoders and sources of images, clips and recordings, and the encoder of sound."""
        encoder = imported("mlxk.adapters.sound_encoding:FfmpegSoundEncoder")
        self.sound_encoder: Provider[SoundEncoder] = Singleton(encoder)
        self.image_reader = deferred(providers.DeferredImageReader, "mlxk.adapters.pillow:PillowImageReader")
        self.audio_decoder = deferred(providers.DeferredAudioDecoder, "mlxk.adapters.mlx.audio_file:MlxAudioDecoder")
        decoder = "mlxk.adapters.opencv.video_decoder:OpenCvVideoDecoder"
        self.video_decoder = deferred(providers.DeferredVideoDecoder, decoder)
        self.media_folders: Provider[MediaSource] = Singleton(
            imported("mlxk.adapters.filesystem.media_folders:FolderMediaSource"), server.media_paths if server else ()
        )
        self.remote_media: Provider[MediaSource] = Singleton(imported("mlxk.adapters.remote_media:RemoteMediaSource"))

    def _provide_measurements(self, settings: Settings) -> None:
        """Provide the probes of this machine and of servers, the writer of charts, and telemetry."""
        self.memory_probe = Singleton(_memory_probe, self.cpu_dtype, self.blas)
        self.installation_probe = Singleton(_installation_probe, settings)
        self.machine_meter = Singleton(imported("mlxk.adapters.system.machine_meter:SystemMachineMeter"))
        client = imported("mlxk.adapters.completion_client:HttpCompletionClient")
        self.completion_client: Provider[CompletionClient] = Singleton(client)
        machine_probe = imported("mlxk.adapters.system.machine_probe:system_machine_probe")
        found = (sys.platform, has_nvidia_gpu, settings.search_path)
        self.machine_probe: Provider[MachineProbe] = Singleton(machine_probe, *found)
        self.server_probe: Provider[ServerProbe] = Singleton(imported("mlxk.adapters.metrics_page:HttpServerProbe"))
        self.chart_writer = Singleton(_chart_writer)
        self.telemetry = Singleton(_telemetry, self)

    def named_media(self) -> NamedMedia:
        """Return the media that requests may name by path or URL."""
        if self.server is None:
            return NamedMedia()
        files = self.media_folders() if self.server.media_paths else None
        return NamedMedia(files, self.remote_media() if self.server.allow_remote_media else None)

    def describe(self) -> DescribeModel:
        """Return the use case that describes models."""
        ports = (self.model_files(), self.workspaces(), self.backend_registry(), self.model_cache())
        return DescribeModel(*ports, self.settings.default_owner)

    def rank_surroundings(self) -> Any:  # noqa: ANN401 - RankSurroundings, whose module imports MLX
        """Return what a rank needs of this program: its version, and how to set variables for MLX."""
        return imported("mlxk.adapters.mlx.ranks.follower:RankSurroundings")(__version__, temporary_environment)

    def follow_rank_zero(self, orders: Mapping[str, Any], resolve: "Callable[[str], ModelHandle]") -> None:
        """Compute this rank's share of a model until rank 0, which sent the orders, ends; see ``follower.follow``."""
        _before_mlx(self)
        imported("mlxk.adapters.mlx.ranks.follower:follow")(orders, resolve, self.rank_surroundings())

    def answer_examination(self, orders: Mapping[str, Any], resolve: "Callable[[str], ModelHandle]") -> None:
        """Report on this host to rank 0, which sent the orders, until it ends; see ``examined.examined``."""

        def account() -> Any:  # noqa: ANN401 - the result of ``follower.account``
            _before_mlx(self)
            return imported("mlxk.adapters.mlx.ranks.follower:account")(orders, resolve)

        backends = imported("mlxk.adapters.mlx.ranks.ring:available_backends")
        examine_model = None if orders["name"] is None else account
        facts = (self.memory_probe().read(), __version__, backends, examine_model)
        knowledge = imported("mlxk.adapters.mlx.ranks.examined:HostKnowledge")(*facts)
        imported("mlxk.adapters.mlx.ranks.examined:examined")(orders, knowledge, sys.stdin, sys.stdout)

    @functools.cached_property
    def division(self) -> Division:
        """The ranks over which a model is divided."""
        computing = self.server or self.settings
        return Division.of(computing.local_ranks, computing.rank_hosts, computing.rank_timeout)

    def judge(self, handle: "ModelHandle") -> MemoryVerdict:
        """Return whether a model fits into memory; commands, server and engine share this judgement."""
        return estimate_memory(self.division.held_here(self.describe()(handle)), self.memory_probe())


def socket_listener(
    ports: Adapters, url: str, admit: Callable[[], Callable[[], None]], counts: "UseCounts", owner: int
) -> "SocketListener":
    """Return the socket through which commands of this user compute on a server; for arguments see ``SharedEngine``."""
    from mlxk.adapters.unix_socket.listener import SharedEngine, SocketListener

    engine = SharedEngine(
        generator=ports.text_generator(),
        embedder=ports.text_embedder(),
        weight_bytes=lambda handle: ports.judge(handle).weights,
        budget_bytes=engine_limits(ports.memory_probe(), ports.server).model_budget_bytes,
        loads=ports.server is None or ports.server.embed_model is None,
        admit=admit,
        counts=counts,
        owner=owner,
        log=ports.event_log(),
    )
    return SocketListener(ports.settings.server_sockets, _program(ports), url, engine)
