"""Vision-language models with mlx-vlm, in the text engine: same thread, same batches, same settings.

``loader`` loads a model, ``prompts`` renders and processes a conversation, and ``prefill`` computes it; afterwards the
sequence decodes like any other, stepped by ``network``.

Imports mlx-vlm.

Raises:
    BackendNotInstalledError: mlx-vlm is not installed.
    ExecutionError: It cannot be imported.
"""

from mlxk.adapters.mlx import library_imports

try:
    # Before transformers' processors: mlx-vlm disables their advice to install PyTorch.
    import mlx_vlm  # noqa: F401
except ImportError as error:
    raise library_imports.import_failure(error, "Looking at images", "mlx", "mlx-lm", "mlx-vlm") from error
