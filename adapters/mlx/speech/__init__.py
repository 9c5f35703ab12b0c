"""Speech to text with mlx-audio: one form of transcript for all families of speech models."""

from mlxk.adapters.mlx import library_imports as library_imports  # before any other import of mlx-lm
