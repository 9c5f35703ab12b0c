"""Lazy construction, so that a command loads only what it uses: providers, and adapters that defer another one.

The providers are those of dependency-injector, imported without its readers of configuration files. A class given as
``MODULE:NAME`` is imported with its first instance. A deferred adapter implements a port and builds the real adapter,
whose import costs time or memory, with the first call.
"""

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

from mlxk.application.ports.media import AudioDecoder, ImageReader, VideoDecoder
from mlxk.application.ports.system import EventLog
from mlxk.application.ports.text_generator import EngineState, KeptPrompts, TextGenerator, TextStream
from mlxk.domain.generation.media import DecodedAudio, DecodedImage, EncodedImage
from mlxk.domain.generation.media_facts import ImageFacts, ReadVideo
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.video import EncodedVideo
from mlxk.domain.models.model import ModelHandle

T = TypeVar("T")


class _WithoutConfigurationFiles:
    """Import finder that hides pydantic and yaml from dependency-injector: with them ``list`` takes a fifth longer.

    It uses them for configuration files only (ADR 0004).
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in {"pydantic", "pydantic_settings", "yaml"}:
            raise ModuleNotFoundError(name)
        return None


sys.meta_path.insert(0, _WithoutConfigurationFiles)
try:
    from dependency_injector import providers
finally:
    sys.meta_path.remove(_WithoutConfigurationFiles)

Factory = providers.Factory
Object = providers.Object
Provider = providers.Provider
Singleton = providers.ThreadSafeSingleton
"""The plain ``Singleton`` would build two instances when two threads call it at once."""


def imported(path: str, *first: object) -> Callable[..., Any]:
    """Return a function that imports a module when called, and calls a class or function of it.

    Args:
        path: The callable, as ``MODULE:NAME``.
        first: Arguments that stand before those of each call.
    """
    module, name = path.split(":")
    return lambda *arguments: getattr(import_module(module), name)(*first, *arguments)


def deferred(kind: Callable[[Callable[[], Any]], T], path: str) -> Provider[T]:
    """Return the provider of a deferred adapter.

    Args:
        kind: Its class, such as ``DeferredImageReader``.
        path: The class of the real adapter, as ``MODULE:NAME``.
    """
    return Singleton(kind, Object(imported(path)))


class DeferredTextGenerator(TextGenerator):
    """Builds the engine with the first request, so that errors about names and files come before the import of MLX."""

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
    """Builds the log with the first event; most commands log nothing."""

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


class DeferredVideoDecoder(VideoDecoder):
    """Builds the decoder with the first clip."""

    def __init__(self, build: Callable[[], VideoDecoder]) -> None:
        self._decoder = functools.cache(build)

    def decode(self, video: EncodedVideo) -> ReadVideo:
        return self._decoder().decode(video)
