"""Training with MLX: layers and adapters of mlx-lm, and a loop of our own, which can be continued exactly."""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
