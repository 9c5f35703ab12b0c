"""Providers of what the operations need: pull, rm, clone, convert, push. Part of the composition root.

``container`` registers them; they stand here because the two of them together would not fit on one page.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from mlxk.entrypoints.settings import Settings

if TYPE_CHECKING:
    from mlxk.adapters.huggingface.client import HubClient
    from mlxk.application.ports.backend_registry import BackendRegistry
    from mlxk.application.ports.built_in_models import BuiltInModels
    from mlxk.application.ports.cache_editor import CacheEditor
    from mlxk.application.ports.model_cache import ModelCache
    from mlxk.application.ports.model_files import ModelFiles
    from mlxk.application.ports.model_hub import ModelHub
    from mlxk.application.ports.model_publisher import ModelPublisher
    from mlxk.application.ports.publication_folder import PublicationFolder
    from mlxk.application.ports.weight_converter import WeightConverter
    from mlxk.application.ports.workspace_builder import WorkspaceBuilder
    from mlxk.application.ports.workspace_store import WorkspaceStore
    from mlxk.application.use_cases.clone_model import CloneModel
    from mlxk.application.use_cases.convert_model import ConvertModel
    from mlxk.application.use_cases.describe_model import DescribeModel
    from mlxk.application.use_cases.pull_model import PullModel
    from mlxk.application.use_cases.push_model import PushModel
    from mlxk.application.use_cases.remove_model import RemoveModel
    from mlxk.application.use_cases.resolve_model import ResolveModel


class OperationAdapters(Protocol):
    """The adapters that operations with many ports ask for, each by the provider that builds it."""

    model_cache: "Callable[[], ModelCache]"
    model_files: "Callable[[], ModelFiles]"
    workspaces: "Callable[[], WorkspaceStore]"
    workspace_builder: "Callable[[], WorkspaceBuilder]"
    backend_registry: "Callable[[], BackendRegistry]"
    cache_editor: "Callable[[], CacheEditor]"
    weight_converter: "Callable[[], WeightConverter]"
    publication_folder: "Callable[[], PublicationFolder]"
    model_publisher: "Callable[[], ModelPublisher]"


def model_hub(settings: Settings) -> "ModelHub":
    """Read models from the hub the settings name."""
    from mlxk.adapters.huggingface.hub import HuggingFaceModelHub

    return HuggingFaceModelHub(_hub_client(settings), settings.hub_cache)


def model_publisher(settings: Settings) -> "ModelPublisher":
    """Write to the hub the settings name."""
    from mlxk.adapters.huggingface.publisher import HuggingFaceModelPublisher

    return HuggingFaceModelPublisher(_hub_client(settings))


def publication_folder() -> "PublicationFolder":
    """Read folders that are to be published."""
    from mlxk.adapters.filesystem.publication_folder import FilesystemPublicationFolder

    return FilesystemPublicationFolder()


def _hub_client(settings: Settings) -> "HubClient":
    from mlxk.adapters.huggingface.client import HubAccess, HubClient, stored_token

    access = HubAccess(
        endpoint=settings.hub_endpoint,
        token=settings.hub_token or stored_token(settings.hub_token_file),
        offline=settings.hub_offline,
        timeout=settings.hub_timeout,
    )
    return HubClient(access)


def cache_editor(settings: Settings) -> "CacheEditor":
    """Write to the model cache."""
    from mlxk.adapters.huggingface.cache_editor import HuggingFaceCacheEditor

    return HuggingFaceCacheEditor(settings.hub_cache)


def workspace_builder(settings: Settings, workspaces: "WorkspaceStore") -> "WorkspaceBuilder":
    """Make workspaces, none of them in the cache."""
    from mlxk.adapters.filesystem.workspace_builder import FilesystemWorkspaceBuilder

    return FilesystemWorkspaceBuilder(workspaces, settings.workspace_home, protected=(settings.hub_cache,))


def weight_converter() -> "WeightConverter":
    """Convert weights with the MLX libraries."""
    from mlxk.adapters.mlx.conversion import MlxWeightConverter

    return MlxWeightConverter()


def pull_model(
    cache: "ModelCache",
    built_in: "BuiltInModels",
    hub: "ModelHub",
    editor: "CacheEditor",
    describe: "DescribeModel",
) -> "PullModel":
    """Pull one model."""
    from mlxk.application.use_cases.pull_model import PullModel

    return PullModel(cache, built_in, hub, editor, describe)


def remove_model(
    cache: "ModelCache", built_in: "BuiltInModels", resolve: "ResolveModel", editor: "CacheEditor"
) -> "RemoveModel":
    """Remove models from the cache."""
    from mlxk.application.use_cases.remove_model import RemoveModel

    return RemoveModel(cache, built_in, resolve, editor)


def clone_model(
    resolve: "ResolveModel",
    pull: "PullModel",
    describe: "DescribeModel",
    adapters: "OperationAdapters",
) -> "CloneModel":
    """Clone one model."""
    from mlxk.application.use_cases.clone_model import CloneModel

    return CloneModel(
        resolve,
        pull,
        adapters.model_files(),
        adapters.workspaces(),
        adapters.workspace_builder(),
        adapters.cache_editor(),
        describe,
    )


def convert_model(resolve: "ResolveModel", describe: "DescribeModel", adapters: "OperationAdapters") -> "ConvertModel":
    """Convert one model."""
    from mlxk.application.use_cases.convert_model import ConvertModel

    return ConvertModel(
        resolve=resolve,
        cache=adapters.model_cache(),
        files=adapters.model_files(),
        workspaces=adapters.workspaces(),
        registry=adapters.backend_registry(),
        builder=adapters.workspace_builder(),
        editor=adapters.cache_editor(),
        converter=adapters.weight_converter(),
        describe=describe,
    )


def push_model(describe: "DescribeModel", adapters: "OperationAdapters", settings: Settings) -> "PushModel":
    """Publish one folder."""
    from mlxk.application.use_cases.push_model import PushModel

    return PushModel(
        adapters.publication_folder(), adapters.workspaces(), adapters.model_publisher(), describe, settings.home
    )
