"""Text to speech with mlx-audio: the families that load from their own folder, and their sound without clicks."""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
