"""Training with MLX: layers and adapters of mlx-lm, and our own training loop, which can be resumed exactly."""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
