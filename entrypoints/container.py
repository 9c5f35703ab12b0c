"""The composition root: the use cases, built on the adapters of this machine.

A use case that few commands need is imported when it is first built, so that a command loads only what it uses.
"""

import functools
from typing import TYPE_CHECKING, Any

import attrs

from mlxk.application.adapter_bases import AdapterBases
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.generation.profile import Profile
from mlxk.domain.models.model import ModelHandle, served_id
from mlxk.entrypoints.adapter_container import Adapters
from mlxk.entrypoints.providers import Factory, Singleton, imported
from mlxk.entrypoints.settings import ServerSettings, Settings

if TYPE_CHECKING:
    from mlxk.application.ports.backends import BackendRegistry
    from mlxk.application.ports.model_directories import ModelFiles
    from mlxk.application.use_cases.browse_hub import FindOutdated, RecommendModels, SearchModels, ShowRemoteModel
    from mlxk.application.use_cases.cache_upkeep import MeasureCache, PruneCache
    from mlxk.application.use_cases.clone_model import CloneModel
    from mlxk.application.use_cases.convert_model import ConvertModel
    from mlxk.application.use_cases.diagnose import DiagnoseHosts, DiagnoseInstallation
    from mlxk.application.use_cases.evaluate_model import EvaluateModel
    from mlxk.application.use_cases.fuse_adapter import FuseAdapter
    from mlxk.application.use_cases.generate_text import GenerateText
    from mlxk.application.use_cases.inspect_models import CheckHealth, ListModels, ShowModel
    from mlxk.application.use_cases.make_room import MakeRoom
    from mlxk.application.use_cases.measure_servers import CompareSpeed, MeasureServer
    from mlxk.application.use_cases.measure_speed import MeasureEmbeddings, MeasureModel, MeasureSpeech
    from mlxk.application.use_cases.model_tasks import (
        EmbedText,
        LoadModel,
        RerankDocuments,
        SpeakText,
        TokenizeText,
        TranscribeAudio,
    )
    from mlxk.application.use_cases.pull_model import PullModel
    from mlxk.application.use_cases.push_model import PushModel
    from mlxk.application.use_cases.remove_models import RemoveModel, StopModels
    from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
    from mlxk.application.use_cases.tune_model import ReadTrainingData, TuneModel
    from mlxk.application.use_cases.watch_machine import WatchMachine


def _generate_text(ports: "Adapters", resolve: ResolveModel, describe: DescribeModel) -> "GenerateText":
    from mlxk.application.use_cases.generate_text import GenerateText

    @functools.cache
    def profiles() -> dict[str, Profile]:
        return {served_id(resolve(reference)): profile for reference, profile in ports.model_profiles}

    return GenerateText(
        resolve,
        describe,
        ports.text_generator(),
        ports.image_reader(),
        ports.audio_decoder(),
        ports.video_decoder(),
        ports.memory_probe(),
        ports.event_log(),
        ports.settings.exif_metadata,
        ports.names.profiles,
        ports.names.usual,
        lambda model: profiles().get(served_id(model), Profile()),
        ports.division.held_here,
    )


def _with_adapters(resolve: ResolveModel, registry: "BackendRegistry") -> ResolveModel:
    return attrs.evolve(resolve, base_of=registry.base_of)


def _adapter_bases(resolve: ResolveModel, files: "ModelFiles") -> AdapterBases:
    return AdapterBases(resolve.with_base, files)


def _describe_model(describe: DescribeModel, bases: AdapterBases) -> DescribeModel:
    return attrs.evolve(describe, bases=bases)


def _load_model(generate: "GenerateText") -> "LoadModel":
    from mlxk.application.use_cases.model_tasks import LoadModel

    return LoadModel(
        generate.generator, generate.memory, generate.log, generate.profile_of, generate.compare_base, generate.held
    )


def _serve_catalogue(ports: "Adapters", resolve: ResolveModel, describe: DescribeModel) -> "ServeCatalogue":
    from mlxk.application.use_cases.serve_catalogue import ServeCatalogue

    def adapter_version(handle: ModelHandle) -> str | None:
        profile = None if handle.alias is None else ports.names.profiles.get(handle.alias)
        directory = (None if profile is None else profile.engine_options.adapter) or handle.adapter
        return None if directory is None else ports.backend_registry().adapter(directory).version

    allow_paths = ports.server is not None and ports.server.allow_paths
    return ServeCatalogue(resolve, describe, ports.text_generator(), ports.clock(), allow_paths, adapter_version)


def _use(path: str, *arguments: object) -> Any:  # noqa: ANN401 - a Factory of the class at the path
    """Return the provider of a use case, whose module is imported with the first instance."""
    return Factory(imported(f"mlxk.application.use_cases.{path}"), *arguments)


class UseCases:
    """The providers of the use cases. A use case holds ports and no state; each call of a Factory builds a new one."""

    def __init__(self, ports: Adapters) -> None:
        stores = (ports.model_cache, ports.workspaces, ports.built_in_models)
        owner = ports.settings.default_owner
        resolve = self.resolve_model = Factory(ResolveModel, *stores, owner, ports.names.aliases)
        bases = Singleton(_adapter_bases, Factory(_with_adapters, resolve, ports.backend_registry), ports.model_files)
        describe = self.describe_model = Factory(_describe_model, Factory(ports.describe), bases)
        self.list_models: Factory[ListModels] = _use("inspect_models:ListModels", resolve, describe)
        self.show_model: Factory[ShowModel] = _use("inspect_models:ShowModel", resolve, describe, ports.workspaces)
        health_ports = (resolve, describe, ports.workspaces, ports.content_verifier)
        self.check_health: Factory[CheckHealth] = _use("inspect_models:CheckHealth", *health_ports)
        without_aliases = Factory(ResolveModel, *stores, owner)  # an alias must not remove the model behind it
        self.remove_model: Factory[RemoveModel] = _use("remove_models:RemoveModel", ports.model_cache, without_aliases)
        self._wire_generation(ports)
        self._wire_hub(ports)
        self._wire_workspaces(ports)
        self._wire_machine(ports)

    def _wire_generation(self, ports: Adapters) -> None:
        running = Factory(_with_adapters, self.resolve_model, ports.backend_registry)
        resolve_ports = (running, self.describe_model)
        generate: Factory[GenerateText] = Factory(_generate_text, ports, *resolve_ports)
        self.generate_text = generate
        memory = ports.memory_probe
        transcriber_ports = (ports.speech_transcriber, memory)
        self.transcribe_audio: Factory[TranscribeAudio] = _use("model_tasks:TranscribeAudio", *transcriber_ports)
        self.speak_text: Factory[SpeakText] = _use("model_tasks:SpeakText", ports.speech_synthesizer, memory)
        embedder_ports = (ports.text_embedder, memory, ports.image_reader)
        self.embed_text: Factory[EmbedText] = _use("model_tasks:EmbedText", *embedder_ports)
        reranker_ports = (ports.document_reranker, memory, ports.image_reader)
        self.rerank_documents: Factory[RerankDocuments] = _use("model_tasks:RerankDocuments", *reranker_ports)
        self.load_model: Factory[LoadModel] = Factory(_load_model, generate)
        tokenizer = ports.model_tokenizer
        self.tokenize_text: Factory[TokenizeText] = _use("model_tasks:TokenizeText", generate, tokenizer)
        self.make_room: Factory[MakeRoom] = _use("make_room:MakeRoom", generate, self.tokenize_text)
        # One instance: it caches recent lookups.
        self.serve_catalogue: Singleton[ServeCatalogue] = Singleton(_serve_catalogue, ports, *resolve_ports)

    def _wire_hub(self, ports: Adapters) -> None:
        cache, hub, memory = ports.model_cache, ports.model_hub, ports.memory_probe
        owner = ports.settings.default_owner
        pull_ports = (cache, ports.built_in_models, hub, self.describe_model, owner)
        self.pull_model: Factory[PullModel] = _use("pull_model:PullModel", *pull_ports)
        self.search_models: Factory[SearchModels] = _use("browse_hub:SearchModels", hub, memory)
        recommended = Factory(ports.recommendations)
        self.recommend_models: Factory[RecommendModels] = _use("browse_hub:RecommendModels", recommended, memory)
        self.find_outdated: Factory[FindOutdated] = _use("browse_hub:FindOutdated", cache, hub)
        self.show_remote_model: Factory[ShowRemoteModel] = _use("browse_hub:ShowRemoteModel", cache, hub, memory, owner)
        self.measure_cache: Factory[MeasureCache] = _use("cache_upkeep:MeasureCache", cache)
        self.prune_cache: Factory[PruneCache] = _use("cache_upkeep:PruneCache", cache, self.measure_cache)

    def _wire_workspaces(self, ports: Adapters) -> None:
        resolve, describe, cache = self.resolve_model, self.describe_model, ports.model_cache
        files, workspaces = ports.model_files, ports.workspaces
        clone_ports = (resolve, self.pull_model, files, workspaces, cache, describe)
        self.clone_model: Factory[CloneModel] = _use("clone_model:CloneModel", *clone_ports)
        convert_ports = (files, workspaces, ports.backend_registry, ports.weight_converter, describe)
        self.convert_model: Factory[ConvertModel] = _use("convert_model:ConvertModel", resolve, cache, *convert_ports)
        images = Factory(
            imported("mlxk.application.example_images:ExampleImages"), ports.training_files, ports.image_reader
        )
        data_ports = (ports.training_files, images)
        self.read_training_data: Factory[ReadTrainingData] = _use("tune_model:ReadTrainingData", *data_ports)
        tune_ports = (ports.memory_probe, self.read_training_data, ports.model_tuner.provider)
        self.tune_model: Factory[TuneModel] = _use(
            "tune_model:TuneModel", resolve, describe, cache, files, workspaces, *tune_ports
        )
        tuner, generate = ports.model_tuner.provider, self.generate_text
        running = Factory(_with_adapters, resolve, ports.backend_registry)
        fuse_ports = (running, describe, cache, files, workspaces, tuner, generate)
        self.fuse_adapter: Factory[FuseAdapter] = _use("fuse_adapter:FuseAdapter", *fuse_ports)
        eval_ports = (running, describe, ports.memory_probe, self.read_training_data, tuner, generate)
        self.evaluate_model: Factory[EvaluateModel] = _use("evaluate_model:EvaluateModel", *eval_ports)
        push_ports = (ports.publication_folder, workspaces, ports.model_publisher, describe, ports.settings.home)
        self.push_model: Factory[PushModel] = _use("push_model:PushModel", *push_ports)

    def _wire_machine(self, ports: Adapters) -> None:
        probe, memory, clock, servers = ports.installation_probe, ports.memory_probe, ports.clock, ports.running_servers
        self.stop_models: Factory[StopModels] = _use("remove_models:StopModels", servers, self.resolve_model)
        machine_ports = (probe, memory, clock, ports.model_cache, self.resolve_model, self.describe_model)
        server_ports = (servers, ports.model_hub.provider)
        self.diagnose_installation: Factory[DiagnoseInstallation] = _use(
            "diagnose:DiagnoseInstallation", *machine_ports, *server_ports
        )
        host_ports = (ports.examine_hosts, memory, self.resolve_model, self.describe_model)
        self.diagnose_hosts: Factory[DiagnoseHosts] = _use("diagnose:DiagnoseHosts", *host_ports)
        machine = _use("measure_speed:MachineReader", probe, memory, ports.machine_meter)
        engine_ports = (self.generate_text, self.load_model, self.tokenize_text, clock)
        self.measure_model: Factory[MeasureModel] = _use("measure_speed:MeasureModel", machine, *engine_ports)
        speech_ports = (machine, self.transcribe_audio, clock, ports.text_generator)
        self.measure_speech: Factory[MeasureSpeech] = _use("measure_speed:MeasureSpeech", *speech_ports)
        embedding_ports = (machine, self.embed_text, ports.model_tokenizer, clock, ports.text_generator)
        self.measure_embeddings: Factory[MeasureEmbeddings] = _use("measure_speed:MeasureEmbeddings", *embedding_ports)
        watch_ports = (ports.machine_probe, servers, ports.server_probe, clock)
        self.watch_machine: Factory[WatchMachine] = _use("watch_machine:WatchMachine", *watch_ports)
        client = ports.completion_client
        self.measure_server: Factory[MeasureServer] = _use("measure_servers:MeasureServer", machine, client, clock)
        compare_ports = (machine, client, clock, self.generate_text, self.load_model, Factory(ports.model_pairs))
        self.compare_speed: Factory[CompareSpeed] = _use("measure_servers:CompareSpeed", *compare_ports)


class Container:
    """Adapters and the use cases built on them."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters
        self.use_cases = UseCases(adapters)


def build(settings: Settings, server: ServerSettings | None = None) -> Container:
    """Wire the program for this machine, as a server or, without its settings, as a command."""
    return Container(Adapters(settings, server))
