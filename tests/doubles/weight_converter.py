"""In-memory double of the weight converter: it writes the converted config and copies the weights.

converter = InMemoryWeightConverter(files)
converter.quantize(handle, "/home/me/.q4.draft", "mlx-lm", Quantization(4, 64), progress)
converter.missing["/home/me/.fixed.draft"] = ("model.norm.weight",)     # the result of missing_tensors
"""

import json
from typing import Any

from doubles.model_files import InMemoryModelFiles
from mlxk.application.ports.backends import ConvertedWeights, WeightConverter
from mlxk.application.ports.system import Progress
from mlxk.domain.errors import ConversionFailedError, UntrustedModelCodeError
from mlxk.domain.models.model import ModelHandle, Quantization

MODEL_FILE = "model_file"


class InMemoryWeightConverter(WeightConverter):
    """Converts models of in-memory files.

    Args:
        files: Has the models, and gets the results.
    """

    def __init__(self, files: InMemoryModelFiles) -> None:
        self._files = files
        self.missing: dict[str, tuple[str, ...]] = {}

    def quantize(
        self, source: ModelHandle, target: str, backend: str, scheme: Quantization, progress: Progress
    ) -> ConvertedWeights:
        scale = {"bits": scheme.bits, "group_size": scheme.group_size, "mode": scheme.mode}
        return self._write(source, target, {"quantization": scale, "quantization_config": scale}, progress)

    def dequantize(self, source: ModelHandle, target: str, backend: str, progress: Progress) -> ConvertedWeights:
        return self._write(source, target, {}, progress)

    def missing_tensors(self, model: ModelHandle, backend: str) -> tuple[str, ...]:
        self._config(model)
        return self.missing.get(model.directory, ())

    def _write(
        self, source: ModelHandle, target: str, entries: dict[str, object], progress: Progress
    ) -> ConvertedWeights:
        config = self._config(source)
        weights = {
            path: content
            for path, content in self._files.directories[source.directory].items()
            if path.endswith(".safetensors") and "/" not in path
        }
        if not weights:
            raise ConversionFailedError(f"'{source.name}' cannot be converted: no safetensors found")
        sizes = {path: len(content) for path, content in weights.items()}
        progress.begin("Converting", sizes)
        progress.advance(sizes)
        progress.end()
        plain = {key: value for key, value in config.items() if not key.startswith("quantization")}
        written = {**weights, "config.json": json.dumps({**plain, **entries}).encode()}
        self._files.directories.setdefault(target, {}).update(written)
        return ConvertedWeights(len(weights), (), sum(sizes.values()))

    def _config(self, model: ModelHandle) -> dict[str, Any]:
        config = json.loads(self._files.directories[model.directory].get("config.json", b"{}"))
        if config.get(MODEL_FILE):
            raise UntrustedModelCodeError(f"'{model.name}' wants to run code of its own; it is never executed.")
        return dict(config)
