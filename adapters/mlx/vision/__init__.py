"""Vision-language models with mlx-vlm, in the text engine: same thread, same batches, same settings.

``loader`` loads a model, ``prompts`` renders and processes a conversation, ``prefill`` computes it, and from then on
its sequence decodes like any other, stepped by ``network``.
"""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
