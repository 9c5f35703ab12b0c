"""Text embeddings with mlx-vlm."""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
