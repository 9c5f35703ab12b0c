"""Reranking with cross-encoders of mlx-vlm, and with text models that answer yes or no."""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
