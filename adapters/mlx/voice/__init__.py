"""Text to speech with mlx-audio: families of models that load offline, and processing of their sound."""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
