"""In-memory double of the registry of backends.

registry = InMemoryBackendRegistry({"mlx-lm": {"llama", "qwen3"}})
registry.supports("mlx-lm", "llama")            # True
registry.judge(snapshot, facts).backends        # ("mlx-lm",) for a llama
"""

from collections.abc import Collection, Mapping

from mlxk.application.ports.backends import Adapter, BackendRegistry
from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.models.detection import Facts
from mlxk.domain.models.model import Capability, Framework, Runtime
from mlxk.domain.models.snapshot import ModelSnapshot


class InMemoryBackendRegistry(BackendRegistry):
    """Backends as given, the preferred one first; models that need their own code are refused.

    Args:
        supported: The architectures that each installed backend implements.
        speech: The backends that only transcribe speech.
        convert: The backends that convert weights; the last one is preferred for models with media.
        adapters: The adapters, by directory.
        voices: The architectures of text-to-speech models.
        activations: Whether the machine supports quantized activations.
    """

    def __init__(
        self,
        supported: Mapping[str, Collection[str]] | None = None,
        speech: Collection[str] = ("mlx-audio",),
        convert: tuple[str, ...] = ("mlx-lm", "mlx-vlm"),
        adapters: Mapping[str, Adapter] | None = None,
        voices: Collection[str] = ("qwen3_tts",),
        activations: bool = False,
    ) -> None:
        self._activations = activations
        self._voices = frozenset(voices)
        self._adapters = adapters or {}
        self._supported = {backend: frozenset(types) for backend, types in (supported or {}).items()}
        self._speech = frozenset(speech)
        self._convert = convert

    def dedicated_to(self, architecture: str) -> Capability | None:
        known = self._known(architecture)
        if known and architecture in self._voices:
            return Capability.TEXT_TO_SPEECH
        return Capability.AUDIO if known and self._speech.issuperset(known) else None

    def judge(self, snapshot: ModelSnapshot, facts: Facts) -> Runtime:
        published = facts.framework is Framework.PYTORCH and bool(snapshot.top_level(".safetensors"))
        if facts.framework is not Framework.MLX and not published:
            return Runtime(compatible=False, reason=f"Incompatible framework: {facts.framework.value}")
        if "model_file" in snapshot.config:
            reason = "requires executing model-supplied code (config.json: model_file)"
            return Runtime(compatible=False, reason=reason)
        known = self._known(facts.architecture)
        return Runtime(bool(known), None if known else f"Model type {facts.architecture} not supported.", known)

    def converters(self, media: bool) -> tuple[str, ...]:
        return self._convert[::-1] if media else self._convert

    def supports(self, backend: str, architecture: str) -> bool:
        return architecture in self._supported.get(backend, frozenset())

    def require_quantized_activations(self) -> None:
        if not self._activations:
            raise CapabilityError("quantize_activations: no device does")

    def base_of(self, directory: str) -> str | None:
        adapter = self._adapters.get(directory)
        if adapter is not None and adapter.trained_on is None:
            raise ValidationError("adapter: it does not say which model it was trained on")
        return None if adapter is None else adapter.trained_on

    def adapter(self, directory: str) -> Adapter:
        if directory not in self._adapters:
            raise ValidationError("adapter: there is none")
        return self._adapters[directory]

    def _known(self, architecture: str | None) -> tuple[str, ...]:
        return tuple(backend for backend, types in self._supported.items() if architecture in types)
